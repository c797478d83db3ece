"""Temporary files of processes that are no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
USER = f"hearscape-{os.getuid()}"
BEGIN = (
    "import os, sys\n"
    "from pipeline.runtime.process_folder import temporary_folder\n"
    "(temporary_folder() / 'left').write_text('x')\n"
    "print(temporary_folder(), flush=True)\n"
)


def begun(tmp_path: Path, then: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + then],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Path:
    said, _ = process.communicate(timeout=300)
    return Path(said.strip())


def test_the_next_process_removes_what_a_killed_one_left_and_not_what_a_living_one_has(tmp_path: Path) -> None:
    living = begun(tmp_path, "sys.stdin.read()\n")
    assert living.stdout is not None
    used = Path(living.stdout.readline().strip())
    killed = begun(tmp_path, "os.kill(os.getpid(), 9)\n")
    left = ended(killed)
    assert killed.returncode == -signal.SIGKILL
    assert (left / "left").is_file()
    assert left.parent == used.parent == tmp_path / USER
    after = begun(tmp_path)
    assert not ended(after).exists()
    assert after.returncode == 0
    assert {path.name for path in (tmp_path / USER).iterdir()} == {"lock", used.name, f"{used.name}.lock"}
    assert (used / "left").is_file()
    ended(living)
    assert [path.name for path in (tmp_path / USER).iterdir()] == ["lock"]


@pytest.mark.parametrize("kind", ["open to all", "a link", "a file"])
def test_a_folder_that_somebody_else_may_have_made_is_not_used(tmp_path: Path, kind: str) -> None:
    if kind == "open to all":
        (tmp_path / USER).mkdir()
        (tmp_path / USER).chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (tmp_path / USER).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / USER).write_text("")
    before = {path.name for path in tmp_path.rglob("*")}
    used = ended(begun(tmp_path))
    assert used.parent == tmp_path
    assert used.name != USER
    assert {path.name for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_sockets_have_short_paths(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 50)
    deep.mkdir()
    then = (
        "from pipeline.runtime.process_folder import socket_folder\n"
        "from pipeline.runtime.workers import Workers\n"
        "print(socket_folder().parent)\n"
        "Workers(1).close()\n"
    )
    started = begun(deep, then)
    said, _ = started.communicate(timeout=300)
    assert started.returncode == 0
    usual, short = said.splitlines()
    assert Path(usual).parent == deep / USER
    assert short == f"/tmp/{USER}"


def test_a_fork_does_not_remove_what_it_has_on_loan(tmp_path: Path) -> None:
    then = "if (pid := os.fork()): os.waitpid(pid, 0); sys.exit(not (temporary_folder() / 'left').exists())\n"
    process = begun(tmp_path, then)
    ended(process)
    assert process.returncode == 0
