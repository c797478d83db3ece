"""Any generator that can be read, into our format, and what was in its file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.encoders.weights import resolve_weights
from pipeline.errors import GeneratorError
from trainer.model.generator import Generator, GeneratorConfig, weights_sha256
from trainer.model.generator_file import GeneratorFile
from trainer.model.load import read_generator_file, save_generator


def convert(
    source: str, target: Path, sha256: str | None = None, *, generator_only: bool = False, half: bool = False
) -> list[str]:
    """Writes ``target``, with ``half`` as 16-bit floats; returns a description of ``source`` in lines.

    Raises GeneratorError or EncoderError.
    """
    if target.suffix != ".safetensors":
        raise GeneratorError(f"{target} should end in .safetensors, which is what is written")
    if not target.parent.is_dir():
        raise GeneratorError(f"there is no folder {target.parent} to write {target.name} to; make it first")
    file = read_generator_file(resolve_weights(source, sha256, field="IN"))
    generator = file.generator()
    with_judge = file.discriminator_config is not None and not generator_only
    judge = file.discriminator() if with_judge else None
    encoder = None if file.encoder_config is None else file.frame_codes(torch.device("cpu")).encoder
    judge_config = file.discriminator_config if with_judge else None
    lines = description(file, generator, judge)
    if half:
        for network in (generator, judge, encoder):
            if network is not None:
                network.half()
    save_generator(target, file.config, generator, judge_config, judge, file.encoder_config, encoder)
    return lines


def description(file: GeneratorFile, generator: Generator, judge: nn.Module | None) -> list[str]:
    """The contents of a generator's file, in lines for the terminal."""
    config = file.config
    groups = generator.layer_groups
    lines = [
        f"{file.origin}: {file.form}",
        f"  network        {network_name(config)}, {config.resolution} x {config.resolution}, {config.num_colours} colours",
        f"  latent, style  {config.z_dim}, {config.w_dim}; {config.mapping_layers} mapping layers; "
        + (f"{config.c_dim} classes" if config.c_dim else "no classes"),
        f"  W+             {generator.num_ws} layers: coarse {_span(groups.coarse)}, middle {_span(groups.middle)}, "
        f"fine {_span(groups.fine)}",
        f"  parameters     {num_parameters(generator.mapping):,} mapping, {num_parameters(generator.synthesis):,} synthesis",
        f"  half precision {config.num_half} highest resolutions, clamp {config.conv_clamp}",
        f"  discriminator  {f'{num_parameters(judge):,} parameters' if judge is not None else 'none'}",
        f"  frame encoder  {'there is one' if file.encoder_config is not None else 'none'}",
        f"  weights        SHA-256 {weights_sha256(generator)}",
    ]
    return lines + [f"  note: {note}" for note in file.notes]


def network_name(config: GeneratorConfig) -> str:
    """The usual name of the architecture."""
    if config.kind == "stylegan2":
        return "StyleGAN2"
    if config.conv_kernel == 1 and config.radial_filters:
        return "StyleGAN3-R"
    return "StyleGAN3-T" if config.conv_kernel == 3 and not config.radial_filters else "StyleGAN3"


def num_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def _span(layers: range) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers else "none"
