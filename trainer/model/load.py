"""Loads generators from official pickles, rosinality's checkpoints and our own safetensors. Nothing in a file is executed.

Our files hold the generator's tensors under ``generator.``, those of a discriminator under ``discriminator.`` and of an encoder of frames
under ``encoder.``, and their configs as JSON in the header.
"""

from __future__ import annotations

import json
import logging
import mmap
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.encoders.weights import resolve_weights
from pipeline.errors import GeneratorError
from trainer.model.formats.official import read_official
from trainer.model.formats.rosinality import read_rosinality
from trainer.model.formats.torch_files import is_torch_file, read_torch_file
from trainer.model.frame_encoder import FrameEncoderConfig
from trainer.model.generator import Generator, GeneratorConfig
from trainer.model.generator_file import DiscriminatorConfig, GeneratorFile, checked_config
from trainer.model.stylegan3 import FirForm

logger = logging.getLogger(__name__)

METADATA_KEY = "hearscape_generator"
VERSION = 1


def load_generator(
    path_or_url: str | Path,
    sha256: str | None = None,
    *,
    grouped: bool = False,
    channels_last: bool = True,
    fir: FirForm = "convolution",
    recompute: bool = False,
) -> Generator:
    """The generator of a file, on the CPU, in eval mode, without gradients.

    A URL needs ``sha256`` and is fetched once. The format is recognised by the contents. The other arguments are those of
    ``build_generator``. Raises GeneratorError for a file that is damaged, hostile or of another network, EncoderError if it cannot be
    fetched.
    """
    file = read_generator_file(resolve_weights(str(path_or_url), sha256, field="generator"))
    network = file.generator(grouped=grouped, channels_last=channels_last, fir=fir, recompute=recompute)
    logger.info("%s: %s, %d pixels", file.origin, file.form, file.config.resolution)
    return network.requires_grad_(False)


def read_generator_file(path: Path) -> GeneratorFile:
    """Reads a file in any supported format, recognised by its first bytes. Raises GeneratorError."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if start[8:] == b"{":
                return _read_own(path)
            if not start:
                raise GeneratorError(f"{path} is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise GeneratorError(f"{path} cannot be read: {error}") from error
    origin = str(path)
    if is_torch_file(data):
        top, find_storage = read_torch_file(data, origin)
        return read_rosinality(top, find_storage, origin, len(data))
    return read_official(data, origin)


def save_generator(
    path: Path,
    config: GeneratorConfig,
    generator: nn.Module,
    discriminator_config: DiscriminatorConfig | None = None,
    discriminator: nn.Module | None = None,
    encoder_config: FrameEncoderConfig | None = None,
    encoder: nn.Module | None = None,
) -> None:
    """Writes ``path`` (safetensors, the configs in its header), through a temporary name."""
    configs = {
        "version": VERSION,
        "generator": config.model_dump(mode="json"),
        "discriminator": None if discriminator_config is None else discriminator_config.model_dump(mode="json"),
    }
    if encoder_config is not None:
        configs["encoder"] = encoder_config.model_dump(mode="json")
    networks = {"generator": generator, "discriminator": discriminator, "encoder": encoder}
    tensors = {
        name: tensor
        for prefix, network in networks.items()
        if network is not None
        for name, tensor in _named(prefix, network).items()
    }
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(configs)})
    partial.replace(path)


def _named(prefix: str, network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()
    }


def _read_own(path: Path) -> GeneratorFile:
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
        tensors = {} if text is None else load_file(path)
    except (SafetensorError, OSError) as error:
        raise GeneratorError(f"{path} is damaged or not complete: {error}; fetch it again") from error
    if text is None:
        raise GeneratorError(f"{path} is a safetensors file, but not of a generator: it has no {METADATA_KEY}")
    try:
        configs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GeneratorError(f"{path} is damaged or not complete: {error}; fetch it again") from error
    if not isinstance(configs, dict) or configs.get("version") != VERSION:
        raise GeneratorError(f"{path} is a generator of another version of this format; version {VERSION} is known")
    origin = str(path)
    judge, encoder = configs.get("discriminator"), configs.get("encoder")
    by_network: dict[str, dict[str, torch.Tensor]] = {"generator": {}, "discriminator": {}, "encoder": {}}
    for name, tensor in tensors.items():
        network, _, rest = name.partition(".")
        if network not in by_network:
            raise GeneratorError(f"{path} holds {name[:80]!r}, which is no part of a generator")
        by_network[network][rest] = tensor
    return GeneratorFile(
        origin,
        "safetensors",
        checked_config(GeneratorConfig, configs.get("generator") or {}, origin),
        by_network["generator"],
        None if judge is None else checked_config(DiscriminatorConfig, judge, origin),
        by_network["discriminator"],
        encoder_config=None if encoder is None else checked_config(FrameEncoderConfig, encoder, origin),
        encoder_tensors=by_network["encoder"],
    )
