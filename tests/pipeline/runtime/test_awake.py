"""Time-outs of ffmpeg and of downloads, of a process that is stopped for longer than they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.runtime.awake import awake_seconds, wait_awake
from tests.faulty_server import Answer, FaultyServer

pytestmark = pytest.mark.alone

BUILD = """
import sys, threading
from pathlib import Path
import ffmpeg
from pipeline.fetch.download import fetch
from pipeline.fetch.settings import DownloadSettings
from pipeline.media.ffmpeg import run_ffmpeg
from pipeline.schema import Source
from pipeline.fetch.download_store import DownloadStore

folder, link = Path(sys.argv[1]), sys.argv[2]
settings = DownloadSettings(timeout_seconds=7.0, stall_seconds=7.0, retries=0)

def cut():
    pictures = ffmpeg.input("testsrc=s=64x64:d=3", f="lavfi", re=None)
    run_ffmpeg(pictures.output(str(folder / "cut.nut"), vcodec="rawvideo"), timeout_seconds=7.0)
    print("cut", flush=True)

cutting = threading.Thread(target=cut)
cutting.start()
with DownloadStore(folder / "store") as store:
    print(fetch(Source("s", link), store, settings, settings.host_gate()).num_bytes, flush=True)
cutting.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_neither_a_cut_nor_a_download_ends_because_the_build_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.py").write_text(BUILD)
    body = b"\0\0\0\x18ftypisom" + bytes(5000)
    with FaultyServer() as server:
        link = server.serve("/a.mp4", Answer(body=body, body_seconds=2.0))
        with subprocess.Popen(
            [sys.executable, str(tmp_path / "build.py"), str(tmp_path), link],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as build:
            deadline = time.monotonic() + 120
            while server.hits() == 0 or not (tmp_path / "cut.nut").exists():
                assert build.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            build.send_signal(signal.SIGSTOP)
            time.sleep(10.0)
            build.send_signal(signal.SIGCONT)
            said, errors = build.communicate(timeout=120)
    assert errors == ""
    assert sorted(said.split()) == [str(len(body)), "cut"]


def test_a_step_that_took_long_counts_for_twice_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.runtime.awake.time.monotonic", lambda: now[0])
    steps: list[float] = []

    def is_over(step_seconds: float) -> bool:
        steps.append(step_seconds)
        now[0] += 3600.0 if len(steps) == 2 else step_seconds
        return False

    assert not wait_awake(is_over, 5.0)
    assert steps == [1.0] * 4
    assert wait_awake(lambda _: True, 5.0)


def test_the_clock_goes_on_while_this_process_does() -> None:
    started = awake_seconds()
    time.sleep(0.2)
    assert 0.2 <= awake_seconds() - started < 5.0
