"""Pickles in the form of the official ``.pkl`` files, written by pickle itself.

The modules that such a file names (torch_utils.persistence, dnnlib.util) are made for as long as it is written, so that
its bytes carry their names. Attributes and buffers are those that the official classes keep.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.model.discriminator import Discriminator
from trainer.model.generator import Generator, GeneratorConfig
from trainer.model.stylegan3 import FilteredConv, StyleGan3Synthesis

SOURCE = "raise SystemExit('the source in a pickle was run')\n"


class _Persistent:
    """Pickles itself as an object of an official class."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": self.class_name,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def official_modules() -> Iterator[type[dict[str, Any]]]:
    """The modules that official pickles name; gives EasyDict."""

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError(f"a pickle was run: {meta['class_name']}")

    class EasyDict(dict[str, Any]):
        pass

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    made = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    made["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules.update(made)
    try:
        yield EasyDict
    finally:
        for name in made:
            del sys.modules[name]


def _object(network: nn.Module, extras: dict[str, dict[str, Any]], path: str = "") -> _Persistent:
    """A network with all below it. ``extras`` are attributes by dotted name."""
    buffers = OrderedDict(network.named_buffers(recurse=False))
    if "filter" in buffers:
        buffers["resample_filter"] = buffers.pop("filter")
    for key in ("up_matrix", "down_matrix"):
        buffers.pop(key, None)
    if isinstance(network, FilteredConv):
        for key in ("up_filter", "down_filter"):
            if buffers[key].numel() == 1:
                buffers[key] = None  # type: ignore[assignment]
    prefix = f"{path}." if path else ""
    children = OrderedDict((name, _object(child, extras, prefix + name)) for name, child in network.named_children())
    for name in extras:  # parts that are no network of ours, such as b4.mbstd
        owner, _, last = name.rpartition(".")
        if owner == path and last and last not in children and name != path:
            children[last] = _object(nn.Module(), extras, name)
    state = {
        "training": False,
        "_parameters": OrderedDict(network.named_parameters(recurse=False)),
        "_buffers": buffers,
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": children,
        "_init_args": (),
        **extras.get(path, {}),
    }
    return _Persistent(type(network).__name__, state)


def _generator_extras(config: GeneratorConfig, generator: Generator, easy: type[dict[str, Any]]) -> dict[str, Any]:
    arguments = easy(
        z_dim=config.z_dim, c_dim=config.c_dim, channel_base=config.channel_base, channel_max=config.channel_max
    )
    extras: dict[str, dict[str, Any]] = {
        "": {
            "z_dim": config.z_dim,
            "c_dim": config.c_dim,
            "w_dim": config.w_dim,
            "img_resolution": config.resolution,
            "img_channels": config.num_colours,
            "num_ws": generator.num_ws,
            "_init_kwargs": arguments,
        },
        "mapping": {"num_layers": config.mapping_layers, "w_avg_beta": config.w_avg_beta},
        "synthesis": {"w_dim": config.w_dim, "img_resolution": config.resolution, "_init_kwargs": arguments},
    }
    for index in range(config.mapping_layers):
        extras[f"mapping.fc{index}"] = {"activation": "lrelu", "bias_gain": 0.01}
    if isinstance(generator.synthesis, StyleGan3Synthesis):
        extras["synthesis"] |= {
            "num_layers": config.num_layers,
            "num_critical": config.num_critical,
            "margin_size": config.margin,
            "output_scale": config.output_scale,
            "num_fp16_res": config.num_half,
        }
        extras["synthesis.input"] = {"bandwidth": np.float64(config.first_cutoff)}
        for name in generator.synthesis.layer_names:
            extras[f"synthesis.{name}"] = {
                "conv_clamp": config.conv_clamp,
                "magnitude_ema_beta": np.float64(config.magnitude_beta),
            }
        return extras
    for side in generator.synthesis.sides:
        extras[f"synthesis.b{side}"] = {
            "architecture": "skip",
            "use_fp16": config.num_half > 0 and side >= generator.synthesis.half_from,
        }
        for conv in ("conv0", "conv1"):
            if (side, conv) != (4, "conv0"):
                extras[f"synthesis.b{side}.{conv}"] = {
                    "activation": "lrelu",
                    "conv_clamp": config.conv_clamp,
                    "use_noise": True,
                }
    return extras


def _discriminator_extras(config: GeneratorConfig, judge: Discriminator) -> dict[str, Any]:
    extras: dict[str, dict[str, Any]] = {
        "": {"c_dim": config.c_dim, "img_resolution": config.resolution, "img_channels": config.num_colours},
        "b4": {"architecture": "resnet"},
        "b4.mbstd": {"group_size": 4, "num_channels": 1},
        "b4.conv": {"activation": "lrelu", "conv_clamp": config.conv_clamp},
    }
    for side in judge.sides:
        extras[f"b{side}"] = {"architecture": "resnet", "use_fp16": config.num_half > 0 and side >= judge.half_from}
    if config.c_dim:
        extras["mapping"] = {"num_layers": judge.mapping.num_layers}
    return extras


def official_pickle(
    config: GeneratorConfig,
    generator: Generator,
    judge: Discriminator | None = None,
    *,
    protocol: int = 4,
    changes: dict[str, dict[str, Any]] | None = None,
) -> bytes:
    """The bytes of a file with G, D, G_ema and what lies beside them. ``changes`` overwrite attributes of G_ema."""
    with official_modules() as easy:
        extras = _generator_extras(config, generator, easy)
        for name, attributes in (changes or {}).items():
            extras[name] = extras.get(name, {}) | attributes
        data = {
            "G": None,
            "D": None if judge is None else _object(judge, _discriminator_extras(config, judge)),
            "G_ema": _object(generator, extras),
            "training_set_kwargs": easy(class_name="training.dataset.ImageFolderDataset", max_size=10),
            "augment_pipe": None,
        }
        file = io.BytesIO()
        pickle.dump(data, file, protocol=protocol)
    return file.getvalue()


def rosinality_state(generator: Generator) -> dict[str, torch.Tensor]:
    """A StyleGAN2's tensors under the names and in the shapes of rosinality's code."""
    state: dict[str, torch.Tensor] = {}
    kernel = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    for name, tensor in generator.mapping.state_dict().items():
        if name != "w_avg":
            layer, _, part = name.removeprefix("fc").partition(".")
            state[f"style.{int(layer) + 1}.{part}"] = tensor
    synthesis = generator.synthesis
    state["input.input"] = synthesis.get_parameter("b4.const")[None]
    sides = [4 << index for index in range(len(synthesis.widths))]  # type: ignore[arg-type]
    convs = ["b4.conv1", *(f"b{side}.conv{which}" for side in sides[1:] for which in (0, 1))]
    for index, ours in enumerate(convs):
        conv = synthesis.get_submodule(ours)
        theirs = "conv1" if index == 0 else f"convs.{index - 1}"
        state[f"{theirs}.conv.weight"] = conv.get_parameter("weight")[None]
        state[f"{theirs}.conv.modulation.weight"] = conv.get_parameter("affine.weight")
        state[f"{theirs}.conv.modulation.bias"] = conv.get_parameter("affine.bias")
        state[f"{theirs}.noise.weight"] = conv.get_parameter("noise_strength").reshape(1)
        state[f"{theirs}.activate.bias"] = conv.get_parameter("bias")
        state[f"noises.noise_{index}"] = conv.get_buffer("noise_const")[None, None]
        if ours.endswith("conv0"):
            state[f"{theirs}.conv.blur.kernel"] = kernel * 4
    for index, side in enumerate(sides):
        colours = synthesis.get_submodule(f"b{side}.torgb")
        theirs = "to_rgb1" if index == 0 else f"to_rgbs.{index - 1}"
        state[f"{theirs}.conv.weight"] = colours.get_parameter("weight")[None]
        state[f"{theirs}.conv.modulation.weight"] = colours.get_parameter("affine.weight")
        state[f"{theirs}.conv.modulation.bias"] = colours.get_parameter("affine.bias")
        state[f"{theirs}.bias"] = colours.get_parameter("bias").reshape(1, -1, 1, 1)
        if index:
            state[f"{theirs}.upsample.kernel"] = kernel * 4
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def rosinality_discriminator_state(judge: Discriminator) -> dict[str, torch.Tensor]:
    """A discriminator's tensors under the names of rosinality's code."""
    first = f"b{judge.sides[0]}.fromrgb"
    names = {
        "convs.0.0.weight": f"{first}.weight",
        "convs.0.1.bias": f"{first}.bias",
        "final_conv.0.weight": "b4.conv.weight",
        "final_conv.1.bias": "b4.conv.bias",
        "final_linear.0.weight": "b4.fc.weight",
        "final_linear.0.bias": "b4.fc.bias",
        "final_linear.1.weight": "b4.out.weight",
        "final_linear.1.bias": "b4.out.bias",
    }
    for index, side in enumerate(judge.sides, 1):
        names |= {
            f"convs.{index}.conv1.0.weight": f"b{side}.conv0.weight",
            f"convs.{index}.conv1.1.bias": f"b{side}.conv0.bias",
            f"convs.{index}.conv2.1.weight": f"b{side}.conv1.weight",
            f"convs.{index}.conv2.2.bias": f"b{side}.conv1.bias",
            f"convs.{index}.skip.1.weight": f"b{side}.skip.weight",
        }
    return {theirs: judge.get_parameter(ours).detach().clone() for theirs, ours in names.items()}
