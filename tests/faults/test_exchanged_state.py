"""Files of ``state`` that are whole, but lie in another's place: what belongs elsewhere is made again, and nothing false is packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.verify import verify
from pipeline.events import ignore
from pipeline.synthetic.video import write_video
from tests.faults.kill import RECIPE, contents
from tests.footage import FPS, noise, shots

PACKED_ANEW = "shards.max_samples=2"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sources of two clips each, the dataset ``killed`` made of them, and ``expected``: the same, packed anew."""
    folder = tmp_path_factory.mktemp("clean")
    for seed, name in enumerate("ab"):
        frames = list(shots([0.3] * seed + [4.3], size=(160, 96)))[round(0.3 * seed * FPS) :]
        write_video(folder / f"{name}.mp4", frames, noise(4.3, seed=seed), fps=FPS)
    rows = [json.dumps({"id": name, "path": str(folder / f"{name}.mp4")}) for name in "ab"]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    run(folder / "killed", folder)
    shutil.copytree(folder / "killed", folder / "expected")
    run(folder / "expected", folder, PACKED_ANEW)
    return folder


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean / "killed", tmp_path / "killed")
    return tmp_path / "killed"


def run(output: Path, clean: Path, *changes: str) -> None:
    recipe = output.with_suffix(".toml")
    recipe.write_text(RECIPE.format(output=output, sources=clean / "list.jsonl") + "[encoders]\n")
    running = Build(load_recipe(recipe, changes))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize(
    "pattern", ["cuts/*/*", "measured/*/*.json", "probed/*/*.json", "embedded/*/*.npz", "downloads/index/*/*.json"]
)
@pytest.mark.parametrize("with_records", [True, False], ids=["records", "no_records"])
def test_nothing_is_taken_for_what_should_lie_in_its_place(
    clean: Path, dataset: Path, pattern: str, with_records: bool
) -> None:
    first, *_, last = sorted((dataset / "state").glob(pattern))
    exchange(first, last)
    if not with_records:
        shutil.rmtree(dataset / "state" / "done")
    run(dataset, clean, PACKED_ANEW)
    assert contents(dataset) == contents(clean / "expected")
    assert verify(str(dataset)) == []
