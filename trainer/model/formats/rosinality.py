"""StyleGAN2 checkpoints in the form of rosinality's PyTorch code (``g_ema`` in a ``.pt``), read as data.

The network is the official one with other names: the constant and the kernels have one axis more, the noise pictures are separate, and
only converted files have an average style. The config follows from names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import GeneratorError
from trainer.model.filters import binomial_filter
from trainer.model.formats.torch_files import FindStorage, is_tensor, tensor_of
from trainer.model.generator import GeneratorConfig
from trainer.model.generator_file import W_AVG, DiscriminatorConfig, GeneratorFile, checked_config

MAX_TENSORS = 10_000


def read_rosinality(top: Any, find_storage: FindStorage, origin: str, num_bytes: int) -> GeneratorFile:
    """The averaged generator, and the discriminator ``d`` if the file has one. Raises GeneratorError."""
    records = top.get("g_ema", top.get("g")) if isinstance(top, dict) else None
    if not isinstance(top, dict) or not isinstance(records, dict):
        contents = ", ".join(map(str, list(top)[:5]))[:120] if isinstance(top, dict) else type(top).__name__
        raise GeneratorError(
            f"{origin} holds no generator: wanted 'g_ema', as rosinality's code saves it; found {contents}"
        )
    notes = [] if "g_ema" in top else ["it has no averaged generator (g_ema): the generator in training (g) was taken"]
    theirs = _tensors(records, find_storage, origin, 2 * num_bytes)
    average = top.get("latent_avg")
    config, tensors = _generator(theirs, origin)
    if is_tensor(average):
        tensors[W_AVG] = tensor_of(average, find_storage, origin).reshape(-1)
    else:
        notes.append("it has no average style: the mean of 10,000 styles was taken")
    if added := _add_noise(config, tensors):
        notes.append(f"it has no noise pictures: {added} were drawn (seed 0)")
    judge: tuple[DiscriminatorConfig | None, dict[str, Tensor]] = (None, {})
    if isinstance(top.get("d"), dict):
        judge = _discriminator(_tensors(top["d"], find_storage, origin, 2 * num_bytes), origin)
    return GeneratorFile(origin, "StyleGAN2 in rosinality's form", config, tensors, *judge, tuple(notes))


def _tensors(records: dict[Any, Any], find_storage: FindStorage, origin: str, budget: int) -> dict[str, Tensor]:
    """The tensors by name. Raises GeneratorError for anything else, and for more than ``budget`` bytes."""
    tensors: dict[str, Tensor] = {}
    for key, record in records.items():
        if not isinstance(key, str) or not is_tensor(record) or len(tensors) == MAX_TENSORS:
            raise GeneratorError(f"{origin}: its generator holds more than tensors ({str(key)[:60]!r})")
        name = key.removeprefix("module.")
        tensors[name] = tensor_of(record, find_storage, origin)
        budget -= tensors[name].nbytes
        if budget < 0:
            raise GeneratorError(f"{origin}: its tensors are larger than the file; it is refused")
    return tensors


def _generator(theirs: dict[str, Tensor], origin: str) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name.endswith(".kernel"):
            _check_kernel(name, tensor, origin)
        elif new := _generator_name(name):
            tensors[new] = _reshaped(new, tensor)
        else:
            raise GeneratorError(f"{origin}: {name[:80]!r} is no part of StyleGAN2 as rosinality's code names it")
    widths = _widths(tensors, "synthesis.b{}.conv1.weight", origin)
    layers = [name for name in tensors if re.fullmatch(r"mapping\.fc\d+\.weight", name)]
    first = tensors.get("mapping.fc0.weight")
    colours = tensors.get("synthesis.b4.torgb.bias")
    if first is None or colours is None or first.ndim != 2:
        raise GeneratorError(f"{origin} is no whole StyleGAN2: style.1.weight or to_rgb1.bias is missing")
    values = {
        "kind": "stylegan2",
        "resolution": 4 << (len(widths) - 1),
        "z_dim": first.shape[1],
        "w_dim": first.shape[0],
        "num_colours": len(colours),
        "mapping_layers": len(layers),
        "widths": widths,
    }
    return checked_config(GeneratorConfig, values, origin), tensors


def _generator_name(name: str) -> str | None:
    """Our name for a name of rosinality's. None: the name is unknown."""
    if name == "input.input":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"style\.(\d{1,2})\.(weight|bias)", name):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}"  # style.0 normalises
    if match := re.fullmatch(r"noises\.noise_(\d{1,2})", name):
        return f"{_conv(int(match[1]))}.noise_const"
    if match := re.fullmatch(r"(?:conv1|convs\.(\d{1,2}))\.(.+)", name):
        owner = _conv(0 if match[1] is None else int(match[1]) + 1)
    elif match := re.fullmatch(r"(?:to_rgb1|to_rgbs\.(\d{1,2}))\.(.+)", name):
        owner = f"synthesis.b{4 << (0 if match[1] is None else int(match[1]) + 1)}.torgb"
    else:
        return None
    parts = {
        "conv.weight": "weight",
        "conv.modulation.weight": "affine.weight",
        "conv.modulation.bias": "affine.bias",
        "noise.weight": "noise_strength",
        "activate.bias": "bias",
        "bias": "bias",
    }
    return f"{owner}.{parts[match[2]]}" if match[2] in parts else None


def _conv(index: int) -> str:
    """Our name of the ``index``-th convolution after the constant."""
    return f"synthesis.b{4 << ((index + 1) // 2)}.conv{(index + 1) % 2}"


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("noise_strength"):
        return tensor.reshape(()) if tensor.numel() == 1 else tensor
    if name.endswith("noise_const"):
        return tensor.reshape(tensor.shape[-2:]) if tensor.ndim == 4 and tensor.shape[:2] == (1, 1) else tensor
    if name.startswith("synthesis.") and name.endswith((".const", "conv0.weight", "conv1.weight", "torgb.weight")):
        return tensor[0] if tensor.ndim > 3 and len(tensor) == 1 else tensor
    if name.endswith("torgb.bias"):
        return tensor.reshape(-1)
    return tensor


def _check_kernel(name: str, tensor: Tensor, origin: str) -> None:
    """Raises GeneratorError for another filter than 1 3 3 1. Filters after an upsampling are scaled by 4."""
    ours = binomial_filter()
    if tensor.shape != ours.shape or not torch.allclose(tensor.float() / tensor.float().sum(), ours, atol=1e-5):
        raise GeneratorError(f"{origin} uses another filter than 1 3 3 1 ({name[:80]}); that is not supported")


def _widths(tensors: Mapping[str, Tensor], pattern: str, origin: str) -> tuple[int, ...]:
    widths: list[int] = []
    while (name := pattern.format(4 << len(widths))) in tensors and len(widths) < 12:
        widths.append(int(tensors[name].shape[0]) if tensors[name].ndim else 0)
    if len(widths) < 2:
        raise GeneratorError(f"{origin} is no whole StyleGAN2: its convolutions are missing")
    return tuple(widths)


def _add_noise(config: GeneratorConfig, tensors: dict[str, Tensor]) -> int:
    source = torch.Generator().manual_seed(0)
    missing = 0
    for index in range(2 * int(math.log2(config.resolution)) - 3):
        name = f"{_conv(index)}.noise_const"
        if name not in tensors:
            side = 4 << ((index + 1) // 2)
            tensors[name] = torch.randn(side, side, generator=source)
            missing += 1
    return missing


def _discriminator(theirs: dict[str, Tensor], origin: str) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    blocks = sorted({int(match[1]) for name in theirs if (match := re.match(r"convs\.(\d{1,2})\.conv1\.", name))})
    tensors: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name.endswith(".kernel"):
            _check_kernel(name, tensor, origin)
        elif new := _discriminator_name(name, len(blocks)):
            tensors[new] = tensor
        else:
            raise GeneratorError(
                f"{origin}: {name[:80]!r} is no part of the discriminator as rosinality's code names it"
            )
    largest = tensors.get(f"b{4 << len(blocks)}.fromrgb.weight")
    last = tensors.get("b4.conv.weight")
    if largest is None or last is None or largest.ndim != 4 or last.ndim != 4:
        raise GeneratorError(
            f"{origin} holds no whole discriminator: convs.0.0.weight or final_conv.0.weight is missing"
        )
    inner = [tensors.get(f"b{4 << index}.conv0.weight") for index in range(1, len(blocks) + 1)]
    widths = (last.shape[0], *(0 if one is None else one.shape[0] for one in inner))
    values = {"resolution": 4 << len(blocks), "widths": widths, "num_colours": largest.shape[1]}
    return checked_config(DiscriminatorConfig, values, origin), tensors


def _discriminator_name(name: str, num_blocks: int) -> str | None:
    largest = f"b{4 << num_blocks}"
    fixed = {
        "convs.0.0.weight": f"{largest}.fromrgb.weight",
        "convs.0.1.bias": f"{largest}.fromrgb.bias",
        "final_conv.0.weight": "b4.conv.weight",
        "final_conv.1.bias": "b4.conv.bias",
        "final_linear.0.weight": "b4.fc.weight",
        "final_linear.0.bias": "b4.fc.bias",
        "final_linear.1.weight": "b4.out.weight",
        "final_linear.1.bias": "b4.out.bias",
    }
    if name in fixed:
        return fixed[name]
    parts = {
        "conv1.0.weight": "conv0.weight",
        "conv1.1.bias": "conv0.bias",
        "conv2.1.weight": "conv1.weight",
        "conv2.2.bias": "conv1.bias",
        "skip.1.weight": "skip.weight",
    }
    match = re.fullmatch(r"convs\.(\d{1,2})\.(.+)", name)
    if match is None or match[2] not in parts or not 1 <= int(match[1]) <= num_blocks:
        return None
    return f"b{4 << (num_blocks + 1 - int(match[1]))}.{parts[match[2]]}"
