"""The demo's command, interrupted in its first phases and begun twice: words, no trace, and nothing is left at work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import demo
from pipeline.synthetic.render import sources_locked

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the demo's recipe lies, and nothing that a demo made."""
    shutil.copytree(PROJECT / "manifests" / "recipes", tmp_path / "manifests" / "recipes")
    return tmp_path


def started(checkout: Path, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(PROJECT), "PREFECT_HOME": str(checkout / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as on a terminal
    )


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_empty(group: int) -> bool:
    """Whether no process of the group is alive; those that have ended and wait to be told so do not count."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return not [stat for pgid, stat in rows if pgid == str(group) and not stat.startswith("Z")]


def interrupted(process: subprocess.Popen[str], times: int = 1) -> str:
    """What a command says that Ctrl-C ends, and nothing of it is left at work."""
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    until(lambda: is_empty(process.pid))
    return err


def is_loading(process: subprocess.Popen[str], library: str) -> bool:
    """Whether a process has mapped something of a library."""
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("words", [["flows.demo"], ["flows.build_dataset", "manifests/recipes/demo.toml"]])
def test_ctrl_c_while_a_command_starts(checkout: Path, words: list[str]) -> None:
    process = started(checkout, *words)
    until(lambda: is_loading(process, "pydantic_core"))
    assert f"Interrupted. To continue, run it again: python -m {' '.join(words)}" in interrupted(process)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_samples_are_rendered(checkout: Path, times: int) -> None:
    samples = checkout / "manifests" / "demo-sources"
    process = started(checkout, "flows.demo")
    until(lambda: list(samples.glob(".writing-*")))
    assert "Interrupted. To continue, run it again: python -m flows.demo" in interrupted(process, times)
    with sources_locked(samples):
        assert [path.name for path in samples.iterdir() if path.name.startswith((".part-", ".writing-"))] == []


def test_a_second_demo_at_the_same_time_is_refused(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    with sources_locked(checkout / "manifests" / "demo-sources"):
        assert demo.main([]) == 2
    assert capsys.readouterr().err == (
        "error: manifests/demo-sources: another command uses these synthetic sources; wait until it ends\n"
    )
