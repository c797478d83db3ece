"""StyleGAN2-ADA's and StyleGAN3's published ``.pkl`` files, read as data.

Such a pickle holds its networks as persistent objects: a class name, the source code of the class (ignored here), and a state of
attributes, parameters, buffers and modules. Sizes and settings come from this state and from the shapes of the tensors. Tested with
files of the same form, not with the published files themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import GeneratorError
from trainer.model.formats.symbolic_pickle import Call, read_pickle
from trainer.model.formats.torch_files import is_tensor, plain_number, storage_in_pickle, tensor_of
from trainer.model.generator import GeneratorConfig, bands_of
from trainer.model.generator_file import DiscriminatorConfig, GeneratorFile, checked_config

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
MAX_MODULES = 2_000
MAX_TENSORS = 10_000
MAX_DEPTH = 32
MAX_NAME = 200
"""Largest length of a dotted name. Long keys at every depth could make names that are longer than the file."""
_DESIGN = ("first_cutoff", "first_stopband", "last_stopband_rel", "filter_size")
"""Constructor arguments of StyleGAN3 that do not follow from shapes; the filters in the file are compared with them."""


@dataclass(frozen=True, slots=True)
class Module:
    """A network or one of its parts: dotted name, class and attributes."""

    name: str
    class_name: str
    attributes: dict[str, Any]
    origin: str

    def number(self, key: str, default: Any = None) -> Any:
        """An attribute that is a number, bool, text or None. Raises GeneratorError for anything else."""
        value = plain_number(self.attributes.get(key, default), self.origin)
        if not isinstance(value, int | float | str | None):
            raise GeneratorError(f"{self.origin}: {self.name}.{key} is a {type(value).__name__}, not a number")
        return value

    def argument(self, key: str, default: Any = None) -> Any:
        """An argument of the constructor, as recorded in the file."""
        recorded = self.attributes.get("_init_kwargs")
        value = recorded.get(key, default) if isinstance(recorded, dict) else default
        value = plain_number(value, self.origin)
        return value if isinstance(value, int | float | str | None) else default


Modules = dict[str, Module]


def read_official(data: memoryview, origin: str) -> GeneratorFile:
    """The averaged generator ``G_ema``, and the discriminator ``D`` if the file has one.

    Raises GeneratorError for a pickle that is hostile, damaged, or holds another network.
    """
    top, _ = read_pickle(data, origin)
    if not isinstance(top, dict) or not isinstance(top.get("G_ema", top.get("G")), Call):
        contents = f"a {type(top).__name__}" + (
            f" of {', '.join(map(str, list(top)[:5]))}"[:120] if isinstance(top, dict) else ""
        )
        raise GeneratorError(f"{origin} holds no generator (G_ema) but {contents}")
    notes = [] if "G_ema" in top else ["it has no averaged generator (G_ema): the generator in training (G) was taken"]
    budget = 2 * len(data)
    modules = dict(_modules(top.get("G_ema", top.get("G")), origin))
    tensors = _tensors(modules, origin, budget)
    config = _generator_config(modules, tensors, origin)
    is_third = config.kind == "stylegan3"
    form = "official StyleGAN3 pickle" if is_third else "official StyleGAN2-ADA pickle"
    judge_config, judge_tensors = None, {}
    if isinstance(top.get("D"), Call):
        judge_modules = dict(_modules(top["D"], origin))
        judge_tensors = _tensors(judge_modules, origin, budget)
        judge_config = _discriminator_config(judge_modules, judge_tensors, origin)
    return GeneratorFile(origin, form, config, tensors, judge_config, judge_tensors, tuple(notes))


def _modules(record: Any, origin: str) -> Iterator[tuple[str, Module]]:
    """All modules of a network, with their dotted names. Raises GeneratorError for too many, too deep or circular ones."""
    waiting = [("", record, 0)]
    visited: set[int] = set()
    while waiting:
        name, one, depth = waiting.pop()
        if id(one) in visited or depth > MAX_DEPTH or len(visited) > MAX_MODULES:
            raise GeneratorError(f"{origin}: modules are nested in each other too deeply or in a circle; it is refused")
        visited.add(id(one))
        match one:
            case Call(name=call, args=({"class_name": str(class_name), "state": dict(state)},)) if call == PERSISTENT:
                pass
            case Call(name=call, state=dict(state)) if call.startswith("torch.nn.modules."):
                class_name = call.rpartition(".")[2]
            case _:
                raise GeneratorError(f"{origin}: {name[:80] or 'the network'} is no module that can be read")
        yield name, Module(name, class_name, state, origin)
        children = state.get("_modules") or {}
        if not isinstance(children, dict):
            raise GeneratorError(f"{origin} is damaged: {name[:80] or 'the network'} has no list of modules")
        waiting += [
            (_below(name, key, origin), child, depth + 1) for key, child in children.items() if child is not None
        ]


def _below(owner: str, key: Any, origin: str) -> str:
    """The dotted name of the entry ``key`` of a module."""
    if not isinstance(key, str) or len(owner) + len(key) > MAX_NAME:
        raise GeneratorError(
            f"{origin}: a part of {owner[:80] or 'the network'} has a name that is no text or too long; it is refused"
        )
    return f"{owner}.{key}" if owner else key


def _tensors(modules: Modules, origin: str, budget: int) -> dict[str, Tensor]:
    """Parameters and buffers by dotted names. Raises GeneratorError for more than ``budget`` bytes."""
    tensors: dict[str, Tensor] = {}
    find_storage = storage_in_pickle(origin, budget)
    for module in modules.values():
        for kind in ("_parameters", "_buffers"):
            records = module.attributes.get(kind) or {}
            for key, record in records.items() if isinstance(records, dict) else ():
                if is_tensor(record):
                    tensor = tensor_of(record, find_storage, origin)
                    budget -= tensor.numel() * tensor.itemsize
                    if budget < 0 or len(tensors) == MAX_TENSORS:
                        raise GeneratorError(
                            f"{origin}: its tensors are larger than the file, or too many; it is refused"
                        )
                    tensors[_below(module.name, key, origin)] = tensor
    return tensors


def _part(modules: Modules, name: str) -> Module:
    try:
        return modules[name]
    except KeyError as error:
        raise GeneratorError(
            f"{modules[''].origin} holds no network that is known: {name or 'it'} is missing"
        ) from error


def _side(tensors: dict[str, Tensor], name: str, axis: int, origin: str) -> int:
    if name not in tensors or tensors[name].ndim <= axis:
        raise GeneratorError(f"{origin} holds no network that is known: {name} is missing")
    return int(tensors[name].shape[axis])


def _generator_config(modules: Modules, tensors: dict[str, Tensor], origin: str) -> GeneratorConfig:
    top, mapping, synthesis = _part(modules, ""), _part(modules, "mapping"), _part(modules, "synthesis")
    first = _part(modules, "mapping.fc0")
    rate = first.number("bias_gain", 0.01)
    if not isinstance(rate, float) or not math.isclose(rate, 0.01):
        raise GeneratorError(f"{origin}: the mapping network's learning rate is not 0.01, which is not supported")
    c_dim = top.number("c_dim", 0)
    values: dict[str, Any] = {
        "resolution": top.number("img_resolution"),
        "c_dim": c_dim,
        "z_dim": top.number("z_dim"),
        "w_dim": _side(tensors, "mapping.fc0.weight", 0, origin),
        "num_colours": top.number("img_channels"),
        "mapping_layers": mapping.number("num_layers"),
        "w_avg_beta": mapping.number("w_avg_beta", 0.998),
    }
    _check_activations(modules, origin)
    if "synthesis.input" in modules:
        values |= _stylegan3_values(top, modules, synthesis, tensors, origin)
        config = checked_config(GeneratorConfig, values, origin)
        _check_channels(config, tensors, origin)
        return config
    values |= _stylegan2_values(modules, "synthesis.", tensors, origin)
    return checked_config(GeneratorConfig, values | {"kind": "stylegan2"}, origin)


def _check_activations(modules: Modules, origin: str) -> None:
    for module in modules.values():
        wrong = [
            f"{module.name}.{key} is {str(module.number(key))[:40]!r}"
            for key, known in (("activation", ("lrelu", "linear")), ("architecture", ("skip", "resnet")))
            if key in module.attributes and module.number(key) not in known
        ]
        if wrong or module.number("use_noise", True) is False:
            raise GeneratorError(f"{origin}: {', '.join(wrong) or 'it has no noise'}; that is not supported")


def _blocks(modules: Modules, prefix: str) -> list[Module]:
    """The blocks of the resolutions, lowest first."""
    names = {int(name.removeprefix(f"{prefix}b")): name for name in modules if _is_block(name, prefix)}
    return [modules[names[side]] for side in sorted(names)]


def _is_block(name: str, prefix: str) -> bool:
    rest = name.removeprefix(f"{prefix}b")
    return name.startswith(f"{prefix}b") and rest.isascii() and rest.isdigit() and len(rest) < 6


def _stylegan2_values(modules: Modules, prefix: str, tensors: dict[str, Tensor], origin: str) -> dict[str, Any]:
    blocks = _blocks(modules, prefix)
    if wrong := [block.name for block in blocks if block.number("architecture", "skip") != "skip"]:
        raise GeneratorError(f"{origin}: {wrong[0]} is not of the skip architecture, which is the supported one")
    convs = [_part(modules, f"{block.name}.conv1") for block in blocks]
    return {
        "widths": tuple(_side(tensors, f"{conv.name}.weight", 0, origin) for conv in convs),
        "num_half": sum(bool(block.number("use_fp16", False)) for block in blocks),
        "conv_clamp": convs[0].number("conv_clamp") if convs else None,
    }


def _stylegan3_values(
    top: Module, modules: Modules, synthesis: Module, tensors: dict[str, Tensor], origin: str
) -> dict[str, Any]:
    names = sorted(
        (name for name in modules if name.startswith("synthesis.L") and name.count(".") == 1),
        key=_layer_number,
    )
    if len(names) < 2:
        raise GeneratorError(f"{origin} holds no network that is known: synthesis has no layers")
    first = modules[names[0]]
    down = tensors.get(f"{names[0]}.down_filter")
    recorded = {key: synthesis.argument(key, top.argument(key)) for key in ("channel_base", "channel_max", *_DESIGN)}
    return {
        "kind": "stylegan3",
        "num_layers": len(names) - 1,
        "num_critical": synthesis.number("num_critical", 2),
        "margin": synthesis.number("margin_size", 10),
        "output_scale": synthesis.number("output_scale", 0.25),
        "num_half": synthesis.number("num_fp16_res", 0),
        "conv_kernel": _side(tensors, f"{names[0]}.weight", 2, origin),
        "radial_filters": down is not None and down.ndim == 2,
        "conv_clamp": first.number("conv_clamp"),
        "magnitude_beta": first.number("magnitude_ema_beta", 0.999),
        **{key: value for key, value in recorded.items() if value is not None},
    }


def _layer_number(name: str) -> int:
    digits = name.removeprefix("synthesis.L").partition("_")[0]
    return int(digits) if re.fullmatch(r"[0-9]{1,4}", digits) else -1


def _check_channels(config: GeneratorConfig, tensors: dict[str, Tensor], origin: str) -> None:
    """Raises GeneratorError if the layers' names, which hold their sizes, differ from those that follow from the settings."""
    names = {f"L{index}_{band.side}_{band.num_channels}" for index, band in enumerate(bands_of(config))}
    in_file = {name.split(".")[1] for name in tensors if name.startswith("synthesis.L") and name.count(".") > 1}
    if names != in_file:
        differ = ", ".join(sorted(in_file - names)[:3]) or "nothing"
        raise GeneratorError(
            f"{origin} has layers that its settings (channel_base {config.channel_base}, channel_max {config.channel_max}) "
            f"do not define: {differ} instead of {', '.join(sorted(names - in_file)[:3])}"
        )


def _discriminator_config(modules: Modules, tensors: dict[str, Tensor], origin: str) -> DiscriminatorConfig:
    top, last = _part(modules, ""), _part(modules, "b4")
    blocks = _blocks(modules, "")[1:]
    _check_activations(modules, origin)
    if wrong := [one.name for one in (last, *blocks) if one.number("architecture", "resnet") != "resnet"]:
        raise GeneratorError(f"{origin}: {wrong[0]} of the discriminator is not residual, which is the supported form")
    group = modules["b4.mbstd"].number("group_size", 4) if "b4.mbstd" in modules else 0
    if "b4.mbstd" in modules and modules["b4.mbstd"].number("num_channels", 1) != 1:
        raise GeneratorError(f"{origin}: the discriminator has more than one channel of deviation; not supported")
    values: dict[str, Any] = {
        "resolution": top.number("img_resolution"),
        "c_dim": top.number("c_dim", 0),
        "num_colours": top.number("img_channels"),
        "widths": (
            _side(tensors, "b4.conv.weight", 0, origin),
            *(_side(tensors, f"{block.name}.conv0.weight", 0, origin) for block in blocks),
        ),
        "num_half": sum(bool(block.number("use_fp16", False)) for block in blocks),
        "conv_clamp": _part(modules, "b4.conv").number("conv_clamp"),
        "group_size": group if group is not None else 4,
    }
    if "mapping" in modules:
        values["mapping_layers"] = modules["mapping"].number("num_layers")
        values["mapping_width"] = _side(tensors, "b4.out.weight", 0, origin)
    return checked_config(DiscriminatorConfig, values, origin)
