"""Work in other processes: what it returns, and what is left when it dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ClipError, MediaError, StoppedError, TransientError, WorkerError
from pipeline.memory import IS_SUPPORTED, resident_bytes
from pipeline.workers import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    opened = Workers(2)
    yield opened
    opened.close()


def double(number: int) -> int:
    return 2 * number


def refuse(code: str) -> None:
    raise MediaError(code, "it is no film")


def choke() -> None:
    raise IndexError("list index out of range")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hog(num_mib: int) -> int:
    held = []
    for _ in range(num_mib // 32):
        held.append(np.ones(32 << 17))
        time.sleep(0.02)
    return len(held)


def work_in_processes_of_its_own() -> int:
    return os.getpid()


def test_work_is_done_elsewhere(workers: Workers) -> None:
    assert workers.run(double, 30.0, 21) == 42
    assert workers.run(work_in_processes_of_its_own, 30.0) != os.getpid()


def test_an_error_keeps_its_kind_and_code(workers: Workers) -> None:
    with pytest.raises(MediaError, match="it is no film") as caught:
        workers.run(refuse, 30.0, "not_media")
    assert caught.value.code == "not_media"


@pytest.mark.logs_errors
def test_an_unforeseen_error_costs_its_source_and_is_logged(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClipError, match="IndexError: list index out of range") as caught:
        workers.run(choke, 30.0)
    assert caught.value.code == "unexpected"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_killed_worker_is_an_error_and_the_next_work_is_done(workers: Workers) -> None:
    with pytest.raises(WorkerError, match=r"killed twice.*too little memory") as caught:
        workers.run(die, 30.0)
    assert isinstance(caught.value, TransientError)
    assert workers.run(double, 30.0, 4) == 8


def test_work_that_takes_too_long_is_ended(workers: Workers) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match="took longer than 1 s"):
        workers.run(time.sleep, 1.0, 60.0)
    assert time.monotonic() - started < 20
    assert workers.run(double, 30.0, 5) == 10


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_a_process_that_takes_too_much_memory_is_ended_at_once_and_its_work_is_not_given_to_another() -> None:
    opened = Workers(1, memory_bytes=1 << 30)
    try:
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"held 1\d\d\d MiB of memory, over the limit of 1024 MiB") as caught:
            opened.run(hog, 60.0, 8192)
        assert caught.value.code == "out_of_memory"
        assert time.monotonic() - started < 20
        assert opened.run(hog, 60.0, 64) == 2
    finally:
        opened.close()


BUILD = """
import sys, time
from pathlib import Path
from pipeline.workers import Workers
from tests.pipeline.test_workers import note_and_sleep

if __name__ == "__main__":
    Workers(1).run(note_and_sleep, 100.0, sys.argv[1])
"""


def note_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_processes_end_with_a_build_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(BUILD)
    build = subprocess.Popen(
        [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with build:
        assert wait_until((tmp_path / "pid").exists, 60.0)
        time.sleep(0.2)
        build.kill()
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: resident_bytes(pid) == 0, 10.0)


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_closing_ends_what_runs() -> None:
    opened = Workers(1)
    assert opened.run(double, 30.0, 1) == 2
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(opened.run, time.sleep, 100.0, 60.0)
        time.sleep(0.3)
        started = time.monotonic()
        opened.close()
        with pytest.raises(StoppedError):
            running.result(timeout=10)
    assert time.monotonic() - started < 10
    with pytest.raises(StoppedError):
        opened.run(double, 30.0, 1)
