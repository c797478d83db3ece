"""The recipe fit-paper: what is ours is switched off, there and nowhere else, and the stage that comes of it has none of it."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.runtime.recipe_file import read_recipe
from tests.trainer.guided import copied, differing
from tests.trainer.video.stages import THREE, first_batch, stage_of
from trainer.align.augment import draw
from trainer.invert.guide import cutouts
from trainer.recipe import FitRecipe
from trainer.video.stage import make_image_discriminator

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

RECIPES = Path(__file__).parents[2] / "manifests" / "recipes"
OURS: dict[str, tuple[Any, Any]] = {
    "video.pull": (True, False),
    "video.hears": (True, False),
    "video.mismatch_weight": (0.5, 0.0),
    "video.spliced_share": (0.3, 0.0),
    "video.augment_p": (0.3, 0.0),
    "video.image_discriminator_from_prior": (True, False),
    "video.ema_half_life": (2000.0, 0.0),
    "align.augment.min_crop": (0.5, 1.0),
    "align.augment.mix_probability": (0.5, 0.0),
    "invert.augment.mix_probability": (0.5, 0.0),
    "invert.augment.num_masks": (2, 0),
    "align.augment.max_gain_db": (6.0, 0.0),
    "invert.augment.max_gain_db": (6.0, 0.0),
    "align.norm": ("group", "batch"),
    "invert.mel_reference": ("full_scale", "maximum"),
    "invert.start_from_align": (True, False),
    "invert.style_mean": ("generator", "encoder"),
}
"""Setting -> its value in the other recipes, and in fit-paper."""
CHOSEN: dict[str, Any] = {
    "invert.guide.smallest_cutout": 0.875,
    "invert.guide.num_cutouts": 32,
    "invert.text_against": "picture",
    "invert.truncation": 0.7,
    "invert.augment.min_crop": 1.0,
    "align.augment.num_masks": 2,
    "align.augment.max_mel_mask": 0.15,
    "align.augment.max_time_mask": 0.30,
    "video.blocks": "three",
    "video.balance_gradients": False,
    "video.generator_learning_rate": None,
    "reader.num_frames": 5,
}
"""Setting -> its value in fit-paper."""


def value_of(recipe: FitRecipe, name: str) -> Any:
    return reduce(getattr, name.split("."), recipe)


def test_the_recipe_switches_off_what_is_ours() -> None:
    recipe = read_recipe(FitRecipe, RECIPES / "fit-paper.toml")
    assert {name: value_of(recipe, name) for name in OURS} == {name: off for name, (_, off) in OURS.items()}
    assert {name: value_of(recipe, name) for name in CHOSEN} == CHOSEN


@pytest.mark.parametrize("name", ["fit-tiny", "fit-256", "fit-1024"])
def test_other_recipes_keep_it(name: str) -> None:
    recipe = read_recipe(FitRecipe, RECIPES / f"{name}.toml")
    assert {name: value_of(recipe, name) for name in OURS} == {name: on for name, (on, _) in OURS.items()}
    assert recipe.video.blocks == "three"
    assert recipe.invert.text_against == "picture"


def test_the_documentation_names_each_switch() -> None:
    text = (RECIPES.parents[1] / "docs" / "explanation" / "model.md").read_text()
    tables = {"align.augment.min_crop": "align.augment", "align.augment.mix_probability": "align.augment",
              "invert.augment.mix_probability": "invert.augment", "invert.augment.num_masks": "invert.augment",
              "align.augment.max_gain_db": "align.augment", "invert.augment.max_gain_db": "invert.augment",
              }  # fmt: skip
    assert [name for name in OURS if f"| `{tables.get(name, name)}` |" not in text] == []


def test_augmented_sounds_are_masked_and_neither_cropped_nor_mixed() -> None:
    recipe = read_recipe(FitRecipe, RECIPES / "fit-paper.toml")
    for number in range(50):
        of_align, of_invert = draw(recipe.align.augment, number), draw(recipe.invert.augment, number)
        assert of_align.crop[0] == of_invert.crop[0] == 1.0
        assert of_align.below_db is of_invert.below_db is None
        assert (len(of_align.mel_masks), len(of_align.time_masks)) == (2, 2)
        assert of_invert.mel_masks == of_invert.time_masks == ()


def test_cutouts_of_256_pixels_have_224_or_more() -> None:
    guide = read_recipe(FitRecipe, RECIPES / "fit-paper.toml").invert.guide
    torch.manual_seed(0)
    sides = [one.shape[-1] for one in cutouts(torch.zeros(1, 1, 256, 256), torch.rand(256, 3), guide.smallest_cutout)]
    assert 224 <= min(sides) <= 226
    assert 254 <= max(sides) <= 256


@pytest.mark.slow
def test_the_stage_has_none_of_it(guided: Path, tmp_path: Path) -> None:
    """The small stage of the tests with the values of fit-paper."""
    recipe = read_recipe(FitRecipe, RECIPES / "fit-paper.toml")
    names = (*OURS, "invert.augment.min_crop")
    changes = [f"{name}={str(value_of(recipe, name)).lower()}" for name in names]
    stage, reader = stage_of(guided, tmp_path, *changes, THREE)
    model, contest = stage.model, stage.contest
    assert contest.video is not None and contest.image is not None
    assert [name for name, _ in model.named_parameters() if "pull" in name] == []
    assert contest.video.sound_width == 0
    batch = first_batch(reader)
    clips = stage._clips(batch)
    assert torch.equal(clips.sounds_BTD, clips.sounds_BTD[:, :1].expand_as(clips.sounds_BTD))
    assert torch.equal(clips.segments_BTMS, model.segments_of(model.front_end(batch.sounds_BN), batch.seconds_B))
    assert contest.shown(clips.reals_BTCHW) is clips.reals_BTCHW
    with torch.no_grad():
        own, other = (contest.judge_video(clips.reals_BTCHW, rows) for rows in (clips.own_sounds, clips.other_BD))
    assert torch.equal(own, other)
    before = copied(model.blocks.state_dict())
    first_mean = model.style_mean.clone()
    stage.step(batch)
    assert differing(model.blocks.state_dict(), before) == list(before)
    assert differing(stage.average.state_dict(), model.state_dict()) == []  # there is no average: it is the latest
    assert not torch.equal(model.style_mean, first_mean)


@pytest.mark.slow
def test_the_image_discriminator_is_new(guided: Path, tmp_path: Path) -> None:
    from trainer.model.load import read_generator_file

    prior_file = read_generator_file(guided / "generator.safetensors")
    settings = read_recipe(FitRecipe, RECIPES / "fit-paper.toml").video
    of_prior = prior_file.discriminator().state_dict()
    assert "b16.conv0.weight" in differing(make_image_discriminator(settings, prior_file).state_dict(), of_prior)
