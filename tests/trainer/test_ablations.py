"""Recipes over recipes, as a fit takes them: the paper's ablations over its own choices, and over the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.runtime.recipe_file import read_recipe
from trainer.fit import main
from trainer.invert.shared import model_config
from trainer.model.generator import build_generator
from trainer.model.sound_video import SoundVideoModel
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe

RECIPES = Path(__file__).parents[2] / "manifests" / "recipes"
ABLATIONS = sorted((RECIPES / "ablations").glob("*.toml"))
CHANGED = {
    "one-block": {"video.blocks": "one_equal"},
    "without-clip": {"invert.sound_weight": 0.0, "invert.text_weight": 0.0, "video.guide_weight": 0.0},
    "without-image-discriminator": {"video.image_weight": 0.0},
    "without-video-discriminator": {"video.video_weight": 0.0},
}


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_the_ablations_are_these() -> None:
    assert [path.stem for path in ABLATIONS] == list(CHANGED)


@pytest.mark.parametrize("below", ["fit-paper", "fit-tiny"])
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_what_it_says_and_nothing_else(below: str, path: Path) -> None:
    base = RECIPES / f"{below}.toml"
    before, after = (flat(read_recipe(FitRecipe, some).model_dump(mode="json")) for some in ([base], [base, path]))
    assert before.keys() == after.keys()
    assert {name: after[name] for name in after if after[name] != before[name]} == CHANGED[path.stem]


@pytest.mark.parametrize("below", ["fit-paper", "fit-tiny"])
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_has_as_many_parameters_as_the_whole_model(below: str, path: Path) -> None:
    base = RECIPES / f"{below}.toml"
    whole, changed = (read_recipe(FitRecipe, some) for some in ([base], [base, path]))
    generator = generator_config(whole.prior)  # without a prior in the recipe: StyleGAN2 of 256 pixels
    with torch.device("meta"):
        models = [SoundVideoModel(model_config(recipe), build_generator(generator)) for recipe in (whole, changed)]
    blocks, others = ([sum(one.numel() for one in network.parameters()) for network in networks]
                      for networks in ([model.blocks for model in models], [model.inversion for model in models]))  # fmt: skip
    assert others[1] == others[0]
    assert blocks[1] == pytest.approx(blocks[0], rel=0.01)
    assert len(models[1].blocks) == (1 if path.stem == "one-block" else 3)


def test_the_command_takes_several_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import paired

    paired.build_paired(tmp_path / "sets" / "paired", {"train": 1})
    (tmp_path / "generator.toml").write_text("stages = ['prior']\nprior.num_samples = 7\nrun.out = 'x'\n")
    named = [word for path in (RECIPES / "fit-tiny.toml", tmp_path / "generator.toml", ABLATIONS[0])
             for word in ("--recipe", str(path))]  # fmt: skip
    words = [*named, "--shards", str(tmp_path / "sets"), "--set", "prior.batch_size=4", "--set", "reader.upscale=true"]
    words += ["--out", str(tmp_path / "run")]
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    settings = json.loads(told[: told.index("\ndataset ")])
    assert settings["prior"]["num_samples"] == 7
    assert settings["prior"]["batch_size"] == 4
    assert settings["prior"]["init"] == "painted"
    assert settings["video"]["blocks"] == "one_equal"
    assert settings["run"]["out"] == str(tmp_path / "run")


def test_the_command_names_the_recipe_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text("[video\n")
    words = [
        "--shards",
        str(tmp_path),
        "--recipe",
        str(RECIPES / "fit-tiny.toml"),
        "--recipe",
        str(tmp_path / "bad.toml"),
    ]
    assert main(words) == 2
    assert f"error: recipe {tmp_path / 'bad.toml'}: not TOML" in capsys.readouterr().err
    (tmp_path / "bad.toml").write_text("[video]\nblocks = 'two'\n")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "bad.toml") in said and "video.blocks: Input should be 'three', 'one' or 'one_equal'" in said
