"""What was withdrawn under one id does not come back under another without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.build.build import Build, BuildSummary
from pipeline.build.recipe import load_recipe
from pipeline.build.withdraw import summary_lines, withdraw
from pipeline.events import ignore
from pipeline.synthetic.video import write_video
from tests.faults.kill import RECIPE
from tests.footage import FPS, noise, shots


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two sources, ``a`` and ``b``, and ``copy``, which is ``a``."""
    for seed, name in enumerate("ab"):
        frames = list(shots([0.3] * seed + [2.2], size=(160, 96)))[round(0.3 * seed * FPS) :]
        write_video(tmp_path / f"{name}.mp4", frames, noise(2.2, seed=seed), fps=FPS)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    return tmp_path


def build(folder: Path, names: list[str]) -> BuildSummary:
    """``names`` of files in the folder, which are ids as well."""
    rows = [json.dumps({"id": name, "path": str(folder / f"{name}.mp4")}) for name in names]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    recipe = folder / "killed.toml"
    recipe.write_text(RECIPE.format(output=folder / "killed", sources=folder / "list.jsonl"))
    running = Build(load_recipe(recipe))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        return running.finish(ignore)
    finally:
        running.close()


def test_a_withdrawn_file_that_is_listed_under_another_id_is_named_by_every_build(videos: Path):
    build(videos, ["a", "b"])
    done = withdraw(str(videos / "killed"), ["a"])
    assert done.same_files == ()
    assert not any("withdrawn" in note for note in build(videos, ["a", "b"]).notes)
    for _ in range(2):
        said = [note for note in build(videos, ["b", "copy"]).notes if "withdrawn" in note]
        assert len(said) == 1
        assert "1 listed source(s) are the same file as one that was withdrawn" in said[0]
        assert ": copy. Withdraw" in said[0]


def test_a_copy_that_stays_is_named_when_a_source_is_withdrawn(videos: Path):
    build(videos, ["a", "b", "copy"])
    done = withdraw(str(videos / "killed"), ["a"])
    assert done.same_files == ("copy",)
    assert ": copy. Withdraw" in summary_lines(done)[-1]
    assert withdraw(str(videos / "killed"), ["copy"]).same_files == ()


@pytest.mark.parametrize("step", ["_rewrite_shards", "remove_state_files"])
def test_a_build_after_a_killed_withdrawal_removes_what_was_kept_of_the_source(
    videos: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    build(videos, ["a", "b"])
    cuts = videos / "killed" / "state" / "cuts"
    assert len(list(cuts.glob("*/*"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.build.withdraw.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw(str(videos / "killed"), ["a"])
    build(videos, ["a", "b"])
    assert len(list(cuts.glob("*/*"))) == 1
    assert not (videos / "killed" / "state" / "withdrawing.json").exists()
