"""Work in other processes: what it returns, and what is left when it dies."""

import os
import signal
import subprocess
import sys
import tempfile
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


def hog(num_mib: int, note: Path) -> int:
    with note.open("a") as file:
        file.write("begun\n")
    held = []
    for _ in range(num_mib // 32):
        held.append(np.ones(32 << 17))
    time.sleep(3600.0 if num_mib > 1024 else 0.0)
    return len(held)


def work_in_processes_of_its_own() -> int:
    return os.getpid()


def test_work_is_done_elsewhere(workers: Workers) -> None:
    assert workers.run(double, 300.0, 21) == 42
    assert workers.run(work_in_processes_of_its_own, 300.0) != os.getpid()


def test_an_error_keeps_its_kind_and_code(workers: Workers) -> None:
    with pytest.raises(MediaError, match="it is no film") as caught:
        workers.run(refuse, 300.0, "not_media")
    assert caught.value.code == "not_media"


@pytest.mark.logs_errors
def test_an_unforeseen_error_costs_its_source_and_is_logged(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClipError, match="IndexError: list index out of range") as caught:
        workers.run(choke, 300.0)
    assert caught.value.code == "unexpected"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_killed_worker_is_an_error_and_the_next_work_is_done(workers: Workers) -> None:
    with pytest.raises(WorkerError, match=r"killed twice.*too little memory") as caught:
        workers.run(die, 300.0)
    assert isinstance(caught.value, TransientError)
    assert workers.run(double, 300.0, 4) == 8


def test_work_that_takes_too_long_is_ended(workers: Workers) -> None:
    with pytest.raises(WorkerError, match="took longer than 1 s"):
        workers.run(time.sleep, 1.0, 7200.0)
    assert workers.run(double, 300.0, 5) == 10


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_a_process_that_takes_too_much_memory_is_ended_at_once_and_its_work_is_not_given_to_another(
    tmp_path: Path,
) -> None:
    opened = Workers(1, memory_bytes=1 << 30)
    try:
        with pytest.raises(WorkerError, match=r"held 1\d\d\d MiB of memory, over the limit of 1024 MiB") as caught:
            opened.run(hog, 7200.0, 1536, tmp_path / "note")
        assert caught.value.code == "out_of_memory"
        assert (tmp_path / "note").read_text() == "begun\n"
        assert opened.run(hog, 300.0, 64, tmp_path / "note") == 2
    finally:
        opened.close()


BUILD = """
import sys, time
from pathlib import Path
from pipeline.workers import Workers
from tests.pipeline.test_workers import note_and_sleep

if __name__ == "__main__":
    Workers(1).run(note_and_sleep, 300.0, sys.argv[1])
"""


def note_and_sleep(path: str) -> None:
    Path(path).write_text(f"{os.getpid()}\n")
    time.sleep(3600)


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_processes_end_with_a_build_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(BUILD)
    build = subprocess.Popen(
        [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with build:
        assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"), 300.0)
        build.kill()
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: resident_bytes(pid) == 0, 300.0)


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_closing_ends_what_runs() -> None:
    opened = Workers(1)
    assert opened.run(double, 300.0, 1) == 2
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(opened.run, time.sleep, 7200.0, 3600.0)
        time.sleep(0.3)
        opened.close()
        with pytest.raises(StoppedError):
            running.result(timeout=300.0)
    with pytest.raises(StoppedError):
        opened.run(double, 300.0, 1)


def make_temporary_file() -> str:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return file.name


def test_what_is_temporary_in_a_process_lies_where_it_is_told(tmp_path: Path) -> None:
    opened = Workers(1, temporary=tmp_path)
    try:
        made = Path(opened.run(make_temporary_file, 300.0))
        assert made.parent == tmp_path
        assert opened.run(os.getenv, 300.0, "TMPDIR") == str(tmp_path)
    finally:
        opened.close()
