"""Work in other processes: what it returns, and what is left when it dies."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import ClipError, MediaError, StoppedError, TransientError, WorkerError
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
