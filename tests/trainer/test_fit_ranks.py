"""All stages on two ranks: with unequal shares of the data, with a rank that is killed in each, and on with one rank and two."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests import paired
from tests.trainer.guided import build_guided, fit, lines, words
from tests.trainer.several_ranks import Started, ticks, torchrun
from trainer.engine.checkpoint import load_state
from trainer.model.sound_video_file import find_model, load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

STAGES = ("prior", "align", "invert", "video")
SMALL = (
    "prior.generator={kind = 'stylegan2', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, widths = [8, 8, 8]}",
    "prior.batch_size=8", "prior.grid_seeds=4", "prior.fidelity.num_pictures=6", "prior.r1_every=2", "prior.path_every=2",
    "invert.generator=null", "invert.guide.sound_weights=null", "video.validation_samples=4", "video.num_shown=1",
    "run.tick_seconds=0.0001", *(f"{stage}.save_every_samples=14" for stage in STAGES),
)  # fmt: skip
ENDLESS = 10_000_000


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples to train on, of which 2 have no sound and 1 has no picture that can be read; 12 to validate, of which as many are bad."""
    folder = tmp_path_factory.mktemp("uneven")
    build_guided(folder)
    shutil.rmtree(folder / "sets")
    paired.build_paired(
        folder / "sets" / "paired", {"train": 5, "validation": 3}, spoilt=(1, 6), without_pictures=(11,)
    )
    return folder


def seen(out: Path, stage: str) -> int:
    samples_seen: int = load_state(out / stage / "resume.safetensors", stage)[1]["samples_seen"]
    return samples_seen


def test_each_stage_outlives_a_killed_rank_and_goes_on_with_one_rank_and_with_two(uneven: Path, tmp_path: Path) -> None:
    """Four times two ranks, which end the stage before and begin the next one, where one of them is killed. One rank alone goes on there
    for a step.
    """
    out, ends = tmp_path / "run", dict.fromkeys(STAGES, ENDLESS)
    for number, stage in enumerate(STAGES):
        changes = (*SMALL, *(f"{name}.num_samples={end}" for name, end in ends.items()))
        resume = out / stage / "resume.safetensors"
        started = Started(
            torchrun(uneven, words(uneven, out, ",".join(STAGES[: number + 1]), *changes)), tmp_path / "log"
        )
        try:
            started.wait_until(lambda stage=stage, resume=resume: len(ticks(out, stage)) >= 4 and resume.exists())
            started.rank(number % 2).kill()
            assert started.end() == 1
        finally:
            started.kill()
        speaker = "rank 1: " if number % 2 == 0 else ""
        assert f"\n{speaker}failed: another rank has ended, or its machine cannot be reached (" in started.said
        assert f"{resume} is complete, and the same command goes on from it" in started.said
        counts = [0, *(line["samples_seen"] for line in ticks(out, stage))]
        steps = {after - before for before, after in pairwise(counts)}
        # where a sample is bad, one rank has fewer than the other
        assert steps & {5, 6, 7} and steps <= {5, 6, 7, 8}, stage
        killed_at = seen(out, stage)
        assert 14 <= killed_at <= counts[-1] + 8
        assert fit(uneven, out, stage, *changes, "run.pause_after_samples=1") == 0
        assert killed_at < seen(out, stage) <= killed_at + 8
        ends[stage] = seen(out, stage) + 8
    changes = (*SMALL, *(f"{name}.num_samples={end}" for name, end in ends.items()))
    assert fit(uneven, out, ",".join(STAGES), *changes) == 0
    assert all(end <= seen(out, stage) < end + 8 for stage, end in ends.items())
    validated = [line["stage"] for line in lines(out, "validation")]
    assert validated == list(STAGES)
    assert load_model(find_model(str(out)))[1].stage == "video"
