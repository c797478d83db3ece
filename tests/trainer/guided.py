"""What the stages that are guided by the shared space learn from in tests: all of it small, most of it with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.runtime.recipe_file import read_recipe
from tests import paired
from tests.trainer.sounding import GENERATOR
from trainer.align.frozen_encoders import PartnerSettings, load_partner
from trainer.engine.run import Run, make_fabric
from trainer.engine.stats import Stats
from trainer.fit import main
from trainer.model.generator import build_discriminator, build_generator
from trainer.model.generator_file import DiscriminatorConfig
from trainer.model.load import save_generator
from trainer.recipe import FitRecipe, find_datasets

# the packaged encoder knows no pigeons, but birds
PACKAGED = (
    "align.partner={picture_model = 'hearscape-small'}",
    "align.use_captions=false",
    "align.prompts=['birds {}']",
)
SIDE_PX = GENERATOR.resolution


def save_random_align(path: Path, picture_id: str | None, width: int = paired.WIDTH) -> None:
    """An align checkpoint as its stage writes it."""
    torch.manual_seed(3)
    config = AlignConfig(picture_id=picture_id, width=width, backbone="test_resnet", num_frames=87, mel=MelConfig())
    save_align(path, SoundNetwork(width, "test_resnet"), config)


def build_guided(folder: Path) -> None:
    """Below ``folder``: the dataset ``paired`` (16 samples to train on, 8 to validate), an open_clip model, an align checkpoint
    beside it, a generator of 16 pixels with its discriminator, and the recipe ``fit.toml`` that names them.
    """
    paired.build_paired(folder / "sets" / "paired", {"train": 4, "validation": 2})
    weights = paired.save_model(folder)
    settings = PartnerSettings(picture_model=paired.MODEL, picture_weights=str(weights))
    partner = load_partner(settings, torch.device("cpu"), "fp32", "align.partner")
    save_random_align(folder / "align.safetensors", partner.encoder_id)
    torch.manual_seed(4)
    judge = DiscriminatorConfig(resolution=SIDE_PX, widths=GENERATOR.widths or ())
    generator = build_generator(GENERATOR)
    save_generator(folder / "generator.safetensors", GENERATOR, generator, judge, build_discriminator(GENERATOR))
    extra = [
        f"invert.generator = '{folder / 'generator.safetensors'}'",
        f"invert.guide.sound_weights = '{folder / 'align.safetensors'}'",
        "invert.guide.num_cutouts = 2",
        "invert.backbone = 'test_resnet'",
        "invert.batch_size = 8",
        "invert.num_samples = 32",
        "video.hidden_width = 16",
        "video.noise_width = 4",
        "video.discriminator_widths = [8, 8, 8]",
        "video.batch_size = 8",
        "video.num_samples = 32",
        "video.num_shown = 2",
        "video.r1_every = 2",
    ]
    (folder / "fit.toml").write_text(paired.recipe_text(weights, extra))


def words(folder: Path, out: Path, stages: str, *changes: str) -> list[str]:
    """The command that fits these stages."""
    named = ["--shards", str(folder / "sets"), "--recipe", str(folder / "fit.toml"), "--out", str(out)]
    return [*named, "--stages", stages, *(word for change in changes for word in ("--set", change))]


def fit(folder: Path, out: Path, stages: str, *changes: str) -> int:
    return main(words(folder, out, stages, *changes))


def prepared(folder: Path, out: Path, *changes: str) -> tuple[FitRecipe, Run]:
    """What a stage is made of, for a run that writes no stats."""
    recipe = read_recipe(FitRecipe, folder / "fit.toml", changes)
    run = Run(out, recipe.run, find_datasets(str(folder / "sets"), {}), make_fabric(recipe.run), Stats(None))
    return recipe, run


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """Those of the stats."""
    read = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in tensors.items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal to the last bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
