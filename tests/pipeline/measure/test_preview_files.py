"""Previews in the state: which go when there is too little room, and which never."""

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.measure.preview_files import PreviewFiles
from pipeline.runtime.folder import Folder

KEYS = [f"{number:02d}key" for number in range(6)]
SIZE = 1000


def add(files: PreviewFiles, key: str, folder: Path) -> None:
    """A thousand bytes."""
    (folder / "frames").write_bytes(b"f" * 300)
    (folder / "sound").write_bytes(b"s" * 700)
    files.add(key, folder / "frames", folder / "sound")


def fill(files: PreviewFiles, state: Folder, folder: Path, keys: list[str]) -> None:
    """Sources that finished one after the other, long ago."""
    for number, key in enumerate(keys):
        with files.in_use(key):
            add(files, key, folder)
        for name, _, _ in state.files("previews"):
            if key in name and state.local_path is not None:
                os.utime(state.local_path / name, (1000.0 + number, 1000.0 + number))


def fail_after(files: PreviewFiles, key: str, folder: Path) -> None:
    add(files, key, folder)
    raise FileNotFoundError("something that the source needs next")


def left(files: PreviewFiles) -> list[str]:
    return [key for key in KEYS if files.have(key)]


def test_without_a_limit_nothing_is_deleted_and_nothing_is_marked(tmp_path: Path) -> None:
    state = Folder(tmp_path / "state")
    files = PreviewFiles(state)
    fill(files, state, tmp_path, KEYS)
    assert left(files) == KEYS
    assert sorted({name.split("/")[1] for name in state.walk("previews")}) == [key[:2] for key in KEYS]
    frames, sound = files.copy_to(KEYS[3], tmp_path, None)
    assert (frames.read_bytes(), sound.read_bytes()) == (b"f" * 300, b"s" * 700)


def test_those_that_finished_longest_ago_go_first(tmp_path: Path) -> None:
    state = Folder(tmp_path / "state")
    fill(PreviewFiles(state), state, tmp_path, KEYS[:5])
    files = PreviewFiles(state, budget_bytes=4 * SIZE)
    with files.in_use(KEYS[0]):  # used once more: the youngest now
        pass
    assert left(files) == [KEYS[0], KEYS[3], KEYS[4]]  # a tenth of the budget is left free
    with files.in_use(KEYS[5]):
        add(files, KEYS[5], tmp_path)
    assert left(files) == [KEYS[0], KEYS[3], KEYS[4], KEYS[5]]  # four fit


def test_what_is_in_use_is_never_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = Folder(tmp_path / "state")
    files, other_process = PreviewFiles(state, SIZE), PreviewFiles(state, SIZE)
    with files.in_use(KEYS[0]), files.in_use(KEYS[0]), other_process.in_use(KEYS[1]):
        add(files, KEYS[0], tmp_path)
        add(other_process, KEYS[1], tmp_path)
        with files.in_use(KEYS[2]):
            add(files, KEYS[2], tmp_path)
        assert left(files) == [KEYS[0], KEYS[1]]
        assert "previews in use take 2000 bytes, more than their budget of 1000; going on" in caplog.text
    assert left(files) == [KEYS[0]]  # it alone fits
    assert list(state.walk("previews/in-use")) == []


def test_previews_are_deleted_with_the_end_of_their_source_where_none_are_kept(tmp_path: Path) -> None:
    state = Folder(tmp_path / "state")
    files = PreviewFiles(state, keep=False)
    with files.in_use(KEYS[0]):
        with files.in_use(KEYS[0]):
            add(files, KEYS[0], tmp_path)
        assert left(files) == [KEYS[0]]  # another source has the same video
    assert left(files) == []
    with pytest.raises(FileNotFoundError), files.in_use(KEYS[1]):
        fail_after(files, KEYS[1], tmp_path)
    assert left(files) == [KEYS[1]]  # the next run needs them


def test_a_new_build_clears_the_marks_of_a_killed_one(tmp_path: Path) -> None:
    state = Folder(tmp_path / "state")
    killed = PreviewFiles(state, SIZE)
    block = killed.in_use(KEYS[0])
    block.__enter__()
    add(killed, KEYS[0], tmp_path)
    files = PreviewFiles(state, SIZE)
    fill(files, state, tmp_path, [KEYS[1]])
    assert left(files) == [KEYS[0]]
    PreviewFiles.clear_marks(state)
    fill(files, state, tmp_path, [KEYS[2]])
    assert left(files) == []
    del block


def test_a_state_on_another_machine_is_kept_to_its_budget_too(tmp_path: Path) -> None:
    state = Folder("memory://preview-test/state")
    try:
        files = PreviewFiles(state, budget_bytes=3 * SIZE)
        fill(files, state, tmp_path, KEYS)
        assert sum(size for _, size, _ in state.files("previews")) <= 3 * SIZE
        assert files.have(KEYS[5])
        assert not files.have(KEYS[0])
    finally:
        fsspec.filesystem("memory").rm("/preview-test", recursive=True)
