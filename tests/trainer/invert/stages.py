"""An invert stage on a dataset read from its shards."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.trainer.guided import SIDE_PX, prepared
from trainer.invert.shared import clip_reader, generator_file, model_config
from trainer.invert.stage import Invert
from trainer.model.sound_video import SoundVideoModel
from trainer.streaming.reader import Reader


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[Invert, Reader]:
    recipe, run = prepared(folder, out, *changes)
    prior_file = generator_file(recipe, run.folder)
    torch.manual_seed(run.settings.seed)
    model = SoundVideoModel(model_config(recipe), prior_file.generator())
    pictures = recipe.invert.codes is not None
    reader = clip_reader(recipe, run, "train", recipe.invert.batch_size, SIDE_PX, pictures=pictures)
    return Invert(recipe, run, model, prior_file.config), reader
