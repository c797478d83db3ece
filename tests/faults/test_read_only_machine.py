"""Commands on a machine where folders that libraries write into are read-only: they find another, or say which setting names one."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import build_dataset
from pipeline.report.__main__ import main as report_main
from pipeline.runtime.folder import Folder
from pipeline.runtime.numba_cache import provide_numba_cache
from tests.reported import make_rows, write_dataset
from tests.trainer.sounding import saved_run
from tests.unreadable import permissions_count
from trainer import evaluate, fit, generate


def leave_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/tmp, /var/tmp and the working folder cannot be made read-only in a test: none of them is looked at."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "file")])


def test_no_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(Folder(str(tmp_path / "built")), make_rows(10))
    saved_run(tmp_path / "run")
    (tmp_path / "recipe.toml").write_text(
        f'name = "x"\noutput = "{tmp_path / "x"}"\nsources = ["{tmp_path / "x.csv"}"]\n'
    )
    (tmp_path / "x.csv").write_text("url\nhttp://127.0.0.1:9/a.mp4\n")
    leave_no_temporary_folder(monkeypatch, tmp_path)
    run, shards = ["--checkpoint", str(tmp_path / "run")], ["--shards", str(tmp_path)]
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (report_main, [str(tmp_path / "built")]),
        (generate.main, [*run, "--sound", "x.wav", "--out", str(tmp_path / "x.mp4")]),
        (evaluate.main, [*run, *shards]),
        (fit.main, [*shards, "--dry-run"]),
        (build_dataset.main, [str(tmp_path / "recipe.toml")]),
    ]
    for command, words in commands:
        assert command(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: TMPDIR: No usable temporary directory found in ")
        assert err.endswith(": set TMPDIR to a folder that can be written\n")


def test_numba_gets_a_cache_only_where_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, home = tmp_path / "librosa", tmp_path / "home"
    for folder in (own, home):
        folder.mkdir()
    found = importlib.machinery.ModuleSpec("librosa", None, origin=str(own / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    with permissions_count():
        provide_numba_cache()
        own.chmod(0o555)
        provide_numba_cache()  # ~/.cache can be made
        assert "NUMBA_CACHE_DIR" not in os.environ
        home.chmod(0o555)
        provide_numba_cache()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert tempfile.gettempdir() in str(chosen)
    assert chosen.parent.is_dir()
    provide_numba_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == str(chosen)
