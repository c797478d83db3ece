"""A video stage on a dataset read from its shards, and what the stages before it leave."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.trainer.guided import SIDE_PX, prepared
from trainer.invert.shared import clip_reader, generator_file, model_config
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import SoundVideoHeader, save_model
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader
from trainer.video.stage import Video, start_model

THREE = "reader.num_frames=3"
"""With two segments a block makes one step, and has nothing to remember."""
FAST = ("video.validation_samples=8", "video.num_shown=1")


def save_inverted(folder: Path, out: Path, *changes: str) -> Path:
    """What the invert stage leaves in a run; its encoder has learned nothing, but it is loud."""
    recipe, _ = prepared(folder, out, *changes)
    torch.manual_seed(5)
    prior_file = generator_file(recipe, out)
    model = SoundVideoModel(model_config(recipe), prior_file.generator())
    for head in model.inversion.heads:
        assert isinstance(head, nn.Sequential)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, 0, 0.1)
    header = SoundVideoHeader(stage="invert", model=model.config, generator=prior_file.config)
    path = out / "invert" / "best.safetensors"
    path.parent.mkdir(parents=True)
    save_model(path, header, model)
    return path


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[Video, Reader]:
    if not (out / "invert").exists():
        save_inverted(folder, out, *(change for change in changes if change.startswith(("reader.", "invert."))))
    recipe, run = prepared(folder, out, *changes)
    model, held = start_model(recipe, run)
    reader = clip_reader(recipe, run, "train", recipe.video.batch_size, SIDE_PX, bursts=True)
    return Video(recipe, run, model, held), reader


def first_batch(reader: Reader) -> Batch:
    batch = next(iter(reader))
    reader.close()
    return batch


def named_parameters(networks: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.{path}": one for name, network in networks.items() for path, one in network.named_parameters()}
