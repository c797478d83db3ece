"""Work in other processes: what it returns, and what is left when it dies."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from pipeline.errors import MediaError, StoppedError, TransientError, WorkerError
from pipeline.runtime.memory import IS_SUPPORTED, resident_bytes
from pipeline.runtime.workers import Workers

pytestmark = pytest.mark.alone


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


class NeedsTwoError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def raise_what_cannot_be_sent() -> None:
    raise NeedsTwoError("one", "two")


def ask_for_an_exabyte() -> None:
    bytearray(1 << 60)


def suspend(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_deaf(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path).write_text(str(os.getpid()))
    time.sleep(3600)


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


def test_an_unforeseen_error_is_raised_as_it_is_with_the_traceback_of_the_process(workers: Workers) -> None:
    with pytest.raises(IndexError, match="list index out of range") as caught:
        workers.run(choke, 300.0)
    assert "in choke" in str(caught.value.__cause__)
    assert workers.run(double, 300.0, 3) == 6


def test_an_error_that_cannot_be_sent_does_not_break_the_pool(workers: Workers) -> None:
    with pytest.raises(RuntimeError, match="NeedsTwoError: one and two") as caught:
        workers.run(raise_what_cannot_be_sent, 300.0)
    assert "in raise_what_cannot_be_sent" in str(caught.value.__cause__)
    assert workers.run(double, 300.0, 3) == 6


def test_memory_that_is_not_given_costs_the_source(workers: Workers) -> None:
    with pytest.raises(WorkerError, match="got no more memory") as caught:
        workers.run(ask_for_an_exabyte, 300.0)
    assert caught.value.code == "out_of_memory"


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_a_process_that_is_suspended_or_deaf_is_ended_by_its_time_out(tmp_path: Path) -> None:
    opened = Workers(1)
    try:
        for work in (suspend, sleep_deaf):
            with pytest.raises(WorkerError, match="took longer than 3 s") as caught:
                opened.run(work, 3.0, str(tmp_path / work.__name__))
            assert caught.value.code == "timed_out"
            assert resident_bytes(int((tmp_path / work.__name__).read_text())) == 0
            assert opened.run(double, 60.0, 3) == 6
        idle = opened.run(work_in_processes_of_its_own, 60.0)
        os.kill(idle, signal.SIGSTOP)
        with pytest.raises(WorkerError, match="took longer than 3 s"):
            opened.run(double, 3.0, 4)
        assert opened.run(double, 60.0, 4) == 8
    finally:
        opened.close()


class SlowPipe:
    """A pipe whose messages are read later than they came."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def recv(self) -> object:
        message = self._pipe.recv()
        time.sleep(0.3)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()


class SlowlyToldWorkers(Workers):
    def _listen(self, pids: Connection) -> None:
        super()._listen(SlowPipe(pids))


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_a_process_whose_short_job_was_told_of_after_its_end_counts_as_idle() -> None:
    opened = SlowlyToldWorkers(1)
    try:
        idle = opened.run(work_in_processes_of_its_own, 60.0)
        os.kill(idle, signal.SIGSTOP)
        with pytest.raises(WorkerError, match="took longer than 3 s"):
            opened.run(double, 3.0, 4)
        assert opened.run(double, 20.0, 4) == 8
    finally:
        opened.close()


def test_an_idle_process_that_is_killed_is_replaced() -> None:
    opened = Workers(1)
    try:
        os.kill(opened.run(work_in_processes_of_its_own, 60.0), signal.SIGKILL)
        for number in range(3):
            assert opened.run(double, 60.0, number) == 2 * number
    finally:
        opened.close()


SLEEPER = """
import sys, time
from pathlib import Path
from pipeline.runtime.workers import Workers
from tests.pipeline.runtime.test_workers import note_and_sleep

if __name__ == "__main__":
    workers = Workers(1)
    workers.run(abs, 300.0, 1)
    print(workers.run(note_and_sleep, 6.0, sys.argv[1], 4.0), flush=True)
    workers.close()
"""


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_time_in_which_the_build_is_stopped_is_not_counted(tmp_path: Path) -> None:
    """As by Ctrl-Z, or on a laptop that slept: the work is done meanwhile, and its result is taken when the build goes on."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "sleeper.py"), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        assert wait_until((tmp_path / "pid").exists, 300.0)
        build.send_signal(signal.SIGSTOP)
        time.sleep(9.0)
        build.send_signal(signal.SIGCONT)
        said, errors = build.communicate(timeout=300.0)
    assert (said, errors) == ("slept\n", "")


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
        with pytest.raises(WorkerError, match=r"used 1\d\d\d MiB of memory, over the limit of 1024 MiB") as caught:
            opened.run(hog, 7200.0, 1536, tmp_path / "note")
        assert caught.value.code == "out_of_memory"
        assert (tmp_path / "note").read_text() == "begun\n"
        assert opened.run(hog, 300.0, 64, tmp_path / "note") == 2
    finally:
        opened.close()


BUILD = """
import sys, time
from pathlib import Path
from pipeline.runtime.workers import Workers
from tests.pipeline.runtime.test_workers import note_and_sleep

if __name__ == "__main__":
    Workers(1).run(note_and_sleep, 300.0, sys.argv[1])
"""


def note_and_sleep(path: str, seconds: float = 3600.0) -> str:
    Path(path).write_text(f"{os.getpid()}\n")
    time.sleep(seconds)
    return "slept"


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
@pytest.mark.parametrize("suspended", [False, True])
def test_processes_end_with_a_build_that_is_killed(tmp_path: Path, suspended: bool) -> None:
    (tmp_path / "build.py").write_text(BUILD)
    build = subprocess.Popen(
        [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with build:
        assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"), 300.0)
        pid = int((tmp_path / "pid").read_text())
        if suspended:
            os.kill(pid, signal.SIGSTOP)
        build.kill()
    assert wait_until(lambda: resident_bytes(pid) == 0, 60.0)


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
