"""``python -m trainer.model.parity FOLDER``: compares our networks with recorded outputs of other implementations.

FOLDER holds ``.safetensors`` files, each with a network's tensors under their official names (``state/mapping.*``,
``state/synthesis.*``, ``discriminator/*``), inputs and outputs (``io/z``, ``io/w``, ``io/w_truncated_0.7``,
``io/image``, ``io/d_image``, ``io/d_logits``) and the constructor's arguments as JSON in the metadata entry ``config``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import GeneratorError, UserError
from trainer.model.generator import GeneratorConfig, build_generator, widths_of
from trainer.model.generator_file import DiscriminatorConfig, build_discriminator_of, checked_config, fill
from trainer.model.stylegan3 import FirForm

TOLERANCE = 1e-4
"""Largest difference, relative to the largest number of the recorded output."""


def official_config(arguments: dict[str, Any], tensors: dict[str, Tensor], origin: str) -> GeneratorConfig:
    """Our config for the constructor arguments of an official network."""
    is_third = "synthesis.input.weight" in tensors
    names = {
        "img_resolution": "resolution",
        "img_channels": "num_colours",
        "num_fp16_res": "num_half",
        "use_radial_filters": "radial_filters",
    }
    kept = ("z_dim", "c_dim", "w_dim", "channel_base", "channel_max", "conv_clamp", "conv_kernel")
    values = {names.get(key, key): value for key, value in arguments.items() if key in (*names, *kept)}
    values["kind"] = "stylegan3" if is_third else "stylegan2"
    values["mapping_layers"] = arguments.get("mapping_kwargs", {}).get("num_layers", 2 if is_third else 8)
    return checked_config(GeneratorConfig, values, origin)


@torch.no_grad()
def output_differences(path: Path, *, grouped: bool = False, fir: FirForm = "convolution") -> dict[str, float]:
    """For each output the largest difference, relative to the largest recorded number. Raises GeneratorError."""
    try:
        with safe_open(path, framework="pt") as opened:
            arguments = json.loads((opened.metadata() or {})["config"])
        recorded = load_file(path)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise GeneratorError(f"{path} is no recorded network: {type(error).__name__} {error}") from error
    origin = str(path)
    state = {name.removeprefix("state/"): one for name, one in recorded.items() if name.startswith("state/")}
    config = official_config(arguments, state, origin)
    generator = build_generator(config, grouped=grouped, fir=fir).eval()
    fill(generator, state, origin)
    z_BZ, w_BLD = recorded["io/z"], recorded["io/w"]
    differences = {
        "mapping": _difference(generator.mapping(z_BZ), w_BLD),
        "truncation": _difference(generator.mapping(z_BZ, truncation_psi=0.7), recorded["io/w_truncated_0.7"]),
        "image": _difference(generator.synthesis(w_BLD), recorded["io/image"]),
        "image from z": _difference(generator(z_BZ), recorded["io/image"]),
    }
    judge_state = {
        name.removeprefix("discriminator/"): one for name, one in recorded.items() if "discriminator/" in name
    }
    if judge_state:
        judge = build_discriminator_of(DiscriminatorConfig(resolution=config.resolution, widths=widths_of(config)))
        fill(judge, judge_state, origin)
        differences["logits"] = _difference(judge(recorded["io/d_image"]), recorded["io/d_logits"])
    return differences


def _difference(ours: Tensor, recorded: Tensor) -> float:
    return float((ours - recorded).abs().max() / recorded.abs().max())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 equal within the tolerance, 1 a larger difference, 2 no recordings."""
    parser = argparse.ArgumentParser(prog="python -m trainer.model.parity", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    options = parser.parse_args(arguments)
    paths = sorted(options.folder.glob("*.safetensors"))
    worst = 0.0
    try:
        if not paths:
            raise GeneratorError(f"{options.folder} holds no .safetensors files")
        for path in paths:
            for grouped, fir in ((False, "convolution"), (True, "convolution"), (False, "matrix")):
                form: FirForm = "matrix" if fir == "matrix" else "convolution"
                differences = output_differences(path, grouped=grouped, fir=form)
                worst = max(worst, *differences.values())
                title = f"{'grouped' if grouped else 'scaled'}, {fir}"
                numbers = "  ".join(f"{name} {value:.1e}" for name, value in differences.items())
                print(f"{path.name:28} {title:20} {numbers}")  # noqa: T201
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"largest relative difference {worst:.1e}, wanted {TOLERANCE:.0e} at most")  # noqa: T201
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
