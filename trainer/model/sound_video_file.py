"""A sound-to-video model in one safetensors file, with the configs of the model and its generator in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.encoders.weights import check_fit, load_into, resolve_weights
from pipeline.errors import CheckpointError
from pipeline.settings import Settings
from trainer.model.generator import GeneratorConfig, build_generator
from trainer.model.generator_file import checked_config
from trainer.model.sound_video import SoundVideoConfig, SoundVideoModel

METADATA_KEY = "hearscape_sound_video"
CANDIDATES = ("video/best.safetensors", "video/last.safetensors", "invert/best.safetensors", "invert/last.safetensors")
"""Paths of the model in a run's folder, in the order in which they are tried."""


class SoundVideoHeader(Settings):
    """The header of a file."""

    version: Literal[1] = 1
    """Version of this format."""
    stage: Literal["invert", "video"]
    """The stage that wrote the file. After ``invert`` the recurrent blocks are not trained yet."""
    model: SoundVideoConfig
    """Config of the model."""
    generator: GeneratorConfig
    """Config of the generator."""
    encoder_ids: tuple[str, ...] = ()
    """Ids of the encoders in the losses: of picture and text, and of sound."""
    classes: tuple[str, ...] = ()
    """Labels of the clips in training."""
    samples_seen: int = Field(default=0, ge=0)
    """Number of samples that the stage has learned from."""


def save_model(path: Path, header: SoundVideoHeader, model: SoundVideoModel) -> None:
    """Writes ``path`` through a temporary name."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={METADATA_KEY: header.model_dump_json()})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def find_model(checkpoint: str, sha256: str | None = None) -> Path:
    """The path of a model: of a file, of a URL (with its SHA-256) once it is fetched, or of the best model in a run's folder.

    Raises CheckpointError, or EncoderError if a URL cannot be fetched.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        if "://" not in checkpoint and not folder.is_file():
            raise CheckpointError(f"{checkpoint}: there is no such file or folder; name a run, such as runs/NAME")
        return resolve_weights(checkpoint, sha256, field="checkpoint")
    for candidate in (*CANDIDATES, *(name.partition("/")[2] for name in CANDIDATES[:2])):
        if (folder / candidate).is_file():
            return folder / candidate
    raise CheckpointError(
        f"{folder} holds no model of sound and video ({', '.join(CANDIDATES)}); "
        f"train one: python -m trainer.fit --shards manifests/ --stages invert,video --out {folder}"
    )


def load_model(path: Path) -> tuple[SoundVideoModel, SoundVideoHeader]:
    """The model of a file, on the CPU, in eval mode, without gradients; and the header.

    Raises CheckpointError for a file that is damaged or holds no such model, GeneratorError for settings that do not define a model.
    """
    header, tensors = _read(path)
    with torch.device("meta"):
        empty = SoundVideoModel(header.model, build_generator(header.generator))
    check_fit(empty, tensors, path)
    model = SoundVideoModel(header.model, build_generator(header.generator))
    load_into(model, tensors, path)
    model.generator.freeze_input()  # at the average style that was just loaded
    return model.eval().requires_grad_(False), header


def _read(path: Path) -> tuple[SoundVideoHeader, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise CheckpointError(
                f"{path} is no model of sound and video; the stages invert and video of a fit write them"
            )
        values = json.loads(text)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if not isinstance(values, dict) or values.get("version") != 1:
        raise CheckpointError(f"{path} is of another version of this format; version 1 is known")
    return checked_config(SoundVideoHeader, values, str(path)), tensors
