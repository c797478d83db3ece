"""The real command, ended by a signal in the middle of a build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from pipeline.dataset.verify import verify
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.needs import needs_proc

pytestmark = pytest.mark.alone

PROJECT = Path(__file__).parents[2]


def processes_with(word: str) -> list[str]:
    """Command lines of all processes that have ``word`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@needs_proc
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_a_build_in_seconds_and_leaves_no_process(
    number: signal.Signals, code: int, recipe: Path, video: Path, tmp_path: Path, prefect_harness: None
) -> None:
    """SIGINT reaches all processes, as Ctrl-C does on a terminal, SIGTERM the command alone."""
    url = get_current_settings().api.url
    assert url is not None
    mark = f"STOP_TEST={tmp_path}"
    environment = {**os.environ, "PREFECT_API_URL": url, "STOP_TEST": str(tmp_path), "no_proxy": "127.0.0.1"}
    with FaultyServer() as server:
        stalled = server.serve("/a.mp4", Answer(body=bytes(9000), fault=Fault.STALL, fault_after=100))
        (tmp_path / "sources.csv").write_text(f"id,url\nstalled,{stalled}\nwaves,{video}\n")
        build = subprocess.Popen(
            [sys.executable, "-m", "flows.build_dataset", str(recipe)],
            cwd=PROJECT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while server.hits() == 0 or len(processes_with(mark)) < 3:
            assert build.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = time.monotonic()
        (os.killpg if number == signal.SIGINT else os.kill)(build.pid, number)
        _, err = build.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert build.returncode == code, err
    assert f"run it again: python -m flows.build_dataset {recipe}" in err
    assert "Traceback" not in err
    assert "ERROR" not in err
    assert processes_with(mark) == []
    records = [path.read_text() for path in (tmp_path / "tiny" / "state" / "done").rglob("*.json*")]
    assert [record for record in records if "stalled" in record] == []


def test_the_second_ctrl_c_ends_at_once_and_the_next_run_goes_on(
    recipe: Path, video: Path, tmp_path: Path, prefect_harness: None
) -> None:
    """As on a terminal, both reach every process of the group; the first finds a download and an ffmpeg that cuts."""
    url = get_current_settings().api.url
    assert url is not None
    mark = f"STOP_TEST={tmp_path}"
    environment = {**os.environ, "PREFECT_API_URL": url, "STOP_TEST": str(tmp_path), "no_proxy": "127.0.0.1"}
    words = [str(recipe), "--set", "execution.workers=2", "--set", "execution.batch_size=2"]
    with FaultyServer() as server:
        stalled = server.serve("/a.mp4", Answer(body=bytes(9000), fault=Fault.STALL, fault_after=100))
        (tmp_path / "sources.csv").write_text(f"id,url\nstalled,{stalled}\nwaves,{video}\n")
        build = subprocess.Popen(
            [sys.executable, "-m", "flows.build_dataset", *words, "--set", "cut.preset=placebo"],
            cwd=PROJECT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert build.stderr is not None
        deadline = time.monotonic() + 120
        while server.hits() == 0 or not list((tmp_path / "tiny" / "state").glob("tmp/*/*/128.mp4")):
            assert build.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(build.pid, signal.SIGINT)
        while "Ctrl-C again" not in (line := build.stderr.readline()):
            assert line, "it ended before it said so"
        started = time.monotonic()
        os.killpg(build.pid, signal.SIGINT)
        _, err = build.communicate(timeout=60)
        assert time.monotonic() - started < 5
        assert build.returncode == 130, err
        assert "Traceback" not in err
        while processes_with(mark):
            assert time.monotonic() - started < 30
            time.sleep(0.05)
        server.serve("/a.mp4", Answer(status=404))
        again = subprocess.run(
            [sys.executable, "-m", "flows.build_dataset", *words],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert again.returncode == 0, again.stderr
    assert verify(str(tmp_path / "tiny")) == []
    assert list((tmp_path / "tiny" / "state").glob("tmp/*")) == []
