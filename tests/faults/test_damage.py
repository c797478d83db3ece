"""Full and read-only disks, two builds on one output, and built datasets that somebody changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.verify import verify
from pipeline.errors import OutputError
from pipeline.events import ignore
from tests.faults.kill import RECIPE, Trial, contents, names_of, write_videos
from tests.needs import LACKS

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``videos``, and the dataset ``killed`` that an uninterrupted build made of them."""
    folder = tmp_path_factory.mktemp("clean")
    write_videos(folder / "videos")
    run(folder)
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, beside the recipe that goes on with it."""
    shutil.copytree(clean / "killed", tmp_path / "killed")
    write_recipe(tmp_path, clean / "videos")
    return tmp_path


def write_recipe(folder: Path, videos: Path) -> Path:
    recipe = folder / "killed.toml"
    recipe.write_text(RECIPE.format(output=folder / "killed", sources=videos / "list.jsonl"))
    return recipe


def run(folder: Path) -> None:
    """The build in this process."""
    recipe = folder / "killed.toml"
    running = Build(load_recipe(recipe if recipe.exists() else write_recipe(folder, folder / "videos")))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()


def in_a_namespace(*command: str) -> list[str]:
    return ["unshare", "--map-root-user", "--mount", *command]


def test_a_build_on_a_full_disk_says_so_and_goes_on_when_there_is_room(clean: Path, tmp_path: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            in_a_namespace("mount", "-t", "tmpfs", "none", str(tmp_path)), check=False, capture_output=True
        ).returncode
    ):
        pytest.skip(f"{LACKS}user namespaces, to mount a small disk in")
    (tmp_path / "videos").symlink_to(clean / "videos")
    command = [sys.executable, "-m", "tests.faults.full_disk", str(tmp_path), "150", "5"]
    done = subprocess.run(
        in_a_namespace(*command), cwd=PROJECT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *full, (_, last) = json.loads((tmp_path / "messages.json").read_text())
    assert last == ""
    assert len(full) >= 2
    expected = f"no space left on the disk of {tmp_path}/disk/killed: free some and run the same command again"
    assert {message for _, message in full} <= {expected}
    dataset = {
        name: content.replace(bytes(tmp_path), bytes(clean)) for name, content in contents(tmp_path / "killed").items()
    }
    assert dataset == contents(clean / "killed")
    assert names_of(tmp_path / "killed") == names_of(clean / "killed")


def test_an_output_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    recipe = folder / "killed.toml"
    recipe.write_text(recipe.read_text().replace(f'"{folder}/killed"', f'"{folder}/file/killed"'))
    running = Build(load_recipe(recipe))
    with pytest.raises(OutputError, match=r"cannot write there: Not a directory\. Choose another folder"):
        running.check()
    running.close()


def test_the_second_of_two_builds_refuses_and_the_first_is_not_disturbed(clean: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, clean / "videos")
    first = Trial(tmp_path, clean / "videos" / "list.jsonl", encoders=False, command=False)
    process = first.start()
    lock = tmp_path / "killed" / "state" / "lock"
    deadline = time.monotonic() + 300
    while not lock.exists() or not lock.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGSTOP)  # it must not end before the second has looked
    with pytest.raises(OutputError, match=r"another build is running there\. Wait for it, or choose another output"):
        run(tmp_path)
    os.killpg(process.pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert contents(tmp_path / "killed") == contents(clean / "killed")


def flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def identity(path: Path) -> tuple[int, int]:
    """Another one when the file was written anew. Numbers of deleted files are given away again, so its time is a part of it."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit_manifest(path: Path) -> None:
    values = json.loads(path.read_text())
    values["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(values))


SHARD = "shards/96/train-000001.tar"


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        (SHARD, Path.unlink, "is missing"),
        (SHARD, cut, "bytes, not"),
        (SHARD, flip, "has SHA-256"),
        (SHARD.replace(".tar", ".index.json"), Path.unlink, "its index train-000001.index.json is missing"),
        ("samples.parquet", flip, "has SHA-256"),
        ("manifest.json", edit_manifest, "has SHA-256"),
    ],
)
def test_what_somebody_changed_is_found_and_the_next_build_repairs_just_it(
    folder: Path, clean: Path, name: str, damage: Callable[[Path], None], found: str
) -> None:
    dataset = folder / "killed"
    before = {path: identity(dataset / path) for path in contents(dataset) if path.endswith(".tar")}
    time.sleep(0.02)  # the clock of file times is a coarse one
    damage(dataset / name)
    assert any(found in str(difference) for difference in verify(str(dataset)))
    run(folder)
    assert verify(str(dataset)) == []
    assert contents(dataset) == contents(clean / "killed")
    after = {path: identity(dataset / path) for path in before}
    assert {path for path in before if after[path] != before[path]} == (
        {SHARD} if SHARD.partition(".")[0] in name else set()
    )


def test_a_dataset_that_was_copied_is_not_written_again(folder: Path, clean: Path) -> None:
    """Its tars look younger than their indexes."""
    dataset = folder / "killed"
    tars = sorted(dataset.glob("shards/*/*.tar"))
    for path in tars:
        os.utime(path)
    before = [path.stat().st_ino for path in tars]
    run(folder)
    assert [path.stat().st_ino for path in tars] == before
    assert contents(dataset) == contents(clean / "killed")
    assert all(path.stat().st_mtime <= path.with_suffix(".index.json").stat().st_mtime for path in tars)


def test_a_work_folder_that_vanished_and_a_clock_that_went_back_change_nothing(folder: Path, clean: Path) -> None:
    dataset = folder / "killed"
    shutil.rmtree(dataset / "state")
    for path in dataset.rglob("*"):
        os.utime(path, (4e9, 4e9))  # the year 2096
    run(folder)
    assert contents(dataset) == contents(clean / "killed")
    assert verify(str(dataset)) == []
