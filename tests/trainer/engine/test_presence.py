"""A fit, and its dry run, look whether every tar and index that is read is there, before any work."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_server import Answer, FaultyServer
from tests.trainer.guided import words
from trainer.fit import main

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TAR = "shards/48/train-000001.tar"
INDEX = TAR.replace(".tar", ".index.json")
QUICK = "reader.retries={num = 2, pause_seconds = 0.01}"


@pytest.fixture
def copy(guided: Path, tmp_path: Path) -> Path:
    """The dataset, to be damaged; beside it the recipe."""
    shutil.copytree(guided, tmp_path / "guided")
    return tmp_path / "guided"


def told(folder: Path, stages: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Exit code and errors of a dry run; a fit is refused with the same words and leaves nothing."""
    out = folder / "run"
    capsys.readouterr()
    code = main([*words(folder, out, stages), *more, "--dry-run"])
    err = capsys.readouterr().err
    if code:
        assert main([*words(folder, out, stages), *more]) == code
        assert capsys.readouterr().err == err
        assert not out.exists()
    return code, err


@pytest.mark.parametrize("stages", ["prior", "align", "invert", "video"])
def test_a_missing_shard_is_named_before_any_stage(copy: Path, stages: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy / "sets" / "paired"
    upscale = ("--set", "reader.upscale=true")  # the recipe's prior draws 256 pixels
    assert told(copy, stages, capsys, *upscale) == (0, "")
    (root / TAR).unlink()
    assert told(copy, stages, capsys, *upscale) == (
        2,
        f"error: {root}: 1 of 6 files are not as its manifest says\n  {TAR} is missing\n"
        "This fit reads them: copy them there again, or build the dataset again\n",
    )


def test_every_kind_of_damage_that_a_look_can_tell(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy / "sets" / "paired"
    size = (root / TAR).stat().st_size
    (root / TAR).write_bytes(b"short")
    (root / INDEX).write_bytes(b"")
    (root / "shards/48/validation-000000.tar").unlink()
    (root / "shards/48/validation-000000.tar").mkdir()
    code, err = told(copy, "align", capsys)
    assert code == 2
    assert err.splitlines()[1:4] == [
        f"  {INDEX} has 0 bytes",
        f"  {TAR} has 5 bytes, not {size:,}",
        "  shards/48/validation-000000.tar is missing",
    ]


def test_a_rendition_that_is_not_read_may_be_left_out(
    clips: object, numbered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(numbered, tmp_path / "numbered")
    shutil.rmtree(tmp_path / "numbered" / "shards" / "96")
    changes = ["--set", "align.partner={picture_model = 'hearscape-small'}", "--set", "align.use_captions=false"]
    command = ["--shards", str(tmp_path / "numbered"), "--stages", "align", "--out", str(tmp_path / "run"), *changes]
    with caplog.at_level(logging.WARNING):
        assert main([*command, "--set", "reader.picture_px=48", "--dry-run"]) == 0
    assert "10 files that this fit does not read are not as its manifest says" in caplog.text
    assert main([*command, "--set", "reader.picture_px=96", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'numbered'}: 10 of 10 files are not as its manifest says" in err
    assert "  and 5 more" in err


@pytest.fixture
def server(guided: Path) -> Iterator[FaultyServer]:
    root = guided / "sets" / "paired"
    with FaultyServer() as running:
        for path in root.rglob("*"):
            if path.is_file():
                running.serve(f"/data/{path.relative_to(root)}", Answer(body=path.read_bytes()))
        body = b'<a href="manifest.json">manifest.json</a>'
        running.serve("/data/", Answer(status=503), Answer(body=body, content_type="text/html"))
        yield running


def test_a_server_is_asked_for_each_file_and_asked_again(
    guided: Path, server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*words(guided, tmp_path / "run", "align", QUICK), "--shards", server.url("/data"), "--dry-run"]
    # a look is a HEAD and, where that fails, a GET
    server.serve(f"/data/{TAR}", Answer(status=503), Answer(status=503), server.next_answer(f"/data/{TAR}"))
    assert main(command) == 0
    assert server.hits(f"/data/{TAR}") == 3
    server.serve(f"/data/{TAR}", Answer(status=404))
    server.serve(f"/data/{INDEX}", Answer(status=500))
    capsys.readouterr()
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[1:3] == [
        f"  {INDEX} cannot be read: HTTP 500 Internal Server Error",
        f"  {TAR} is missing",
    ]
