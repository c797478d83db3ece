"""Every recipe for a fit in ``manifests/recipes``, rehearsed as its users run it: its precision, batches and stages, on painted clips."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.runtime.recipe_file import read_recipe
from trainer.engine.checkpoint import load_state
from trainer.fit import main
from trainer.recipe import FitRecipe
from trainer.rehearsal import NUM_TRAINED, shrink
from trainer.stages import STAGES, chosen_stages

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

RECIPES = sorted((Path(__file__).parents[2] / "manifests" / "recipes").glob("fit-*.toml"))
MAY_SHRINK = {
    # widths, depths and kinds of networks
    "align.backbone", "align.partner.picture_model", "align.partner.picture_weights", "invert.backbone", "invert.generator",
    "invert.guide.sound_weights", "prior.generator", "prior.init", "prior.reconstruction.encoder.width",
    "video.discriminator_widths", "video.hidden_width", "video.noise_width",
    # sides and seconds
    "prior.blur_px", "prior.reconstruction.encoder.features.picture_px", "reader.num_frames", "reader.picture_px", "reader.window_seconds",
    # numbers of steps, of what is shown and of what is measured
    *(f"{stage}.{name}_samples" for stage in STAGES for name in ("num", "validate_every", "save_every", "validation")),
    "prior.ada_every", "prior.ada_fixed_p", "prior.fidelity.num_pictures", "prior.grid_seeds", "prior.path_every", "prior.r1_every",
    "video.num_shown", "video.r1_every", "invert.codes.alone_share", "video.codes.alone_share",
    # where it runs
    "reader.num_workers", "run.out", "run.pause_after_samples", "run.tick_seconds", "stages",
}  # fmt: skip


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and f"{prefix}{name}" != "prior.generator"
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_rehearsal_changes_sizes_and_nothing_else(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(FitRecipe, path)
    before, after = (flat(some.model_dump(mode="json")) for some in (recipe, shrink(recipe, tmp_path)))
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} - MAY_SHRINK == set()
    assert (after["stages"] or list(STAGES)) == list(chosen_stages(recipe.stages))
    generator = after["prior.generator"]
    if (was := before["prior.generator"]) is not None:
        kept = (
            "kind",
            "conv_kernel",
            "radial_filters",
            "num_half",
            "conv_clamp",
            "magnitude_beta",
            "filter_size",
            "oversampling",
        )
        assert {name: generator[name] for name in kept} == {name: was[name] for name in kept}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages, two steps each in two runs, and a video of a sound at the end."""
    recipe = read_recipe(FitRecipe, path)
    out = tmp_path / "run"
    assert main(["--recipe", str(path), "--rehearse", "--out", str(out), "--set", "run.num_threads=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = chosen_stages(recipe.stages)
    for stage in stages:
        _, values = load_state(out / stage / "resume.safetensors", stage)
        assert values["num_steps"] == 2, stage
    if "align" in stages and recipe.reader.batch_size > NUM_TRAINED:
        note = f"align: reader.batch_size is {NUM_TRAINED}, not {recipe.reader.batch_size:,}: the split train has {NUM_TRAINED} clips"
        assert note in lines
    assert f"in {recipe.run.precision}, 2 steps each" in "\n".join(lines)
    if "video" in stages:
        with av.open(out / "rehearsal.mp4") as container:
            assert len(list(container.decode(video=0))) == 8
        with av.open(out / "rehearsal.mp4") as container:
            assert container.streams.audio
    else:
        assert "there is no stage that makes videos" in lines[-1]
    shutil.rmtree(out)
