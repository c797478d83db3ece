from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from flows.batches import is_transient
from flows.runners import is_remote, run_in_window, task_runner
from pipeline.build.recipe import ExecutionSettings
from pipeline.errors import OutputError, TransientDownloadError, UserError


def test_threads_are_the_default() -> None:
    execution = ExecutionSettings(batches_in_flight=3)
    runner = task_runner(execution)
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner == ThreadPoolTaskRunner(max_workers=3)
    assert not is_remote(execution)


@pytest.mark.parametrize(("name", "module"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_a_cluster_without_its_package_is_refused(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"execution.task_runner: '{name}' needs .*{module}.*hearscape\[cluster\]"):
        task_runner(ExecutionSettings(task_runner=name))


def test_the_window_bounds_what_is_in_flight() -> None:
    lock = threading.Lock()
    running: list[int] = [0, 0]

    def work(number: int) -> int:
        with lock:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return number * number

    submitted = 0
    with ThreadPoolExecutor(16) as pool:

        def submit(number: int) -> Future[int]:
            nonlocal submitted
            submitted += 1
            return pool.submit(work, number)

        results = run_in_window(submit, iter(range(50)), 3)  # type: ignore[arg-type]
        first = next(results)
        assert submitted == 3, "nothing is taken from the plan before there is room for it"
        assert sorted([first, *results]) == [number * number for number in range(50)]
    assert running == [0, 3]


def test_nothing_to_do_submits_nothing() -> None:
    assert list(run_in_window(lambda _: pytest.fail("submitted"), [], 2)) == []


def test_a_failure_stops_the_submitting() -> None:
    submitted: list[int] = []
    with ThreadPoolExecutor(1) as pool:

        def work(number: int) -> int:
            if number == 2:
                raise KeyError("a bug")
            return number

        def submit(number: int) -> Future[int]:
            submitted.append(number)
            return pool.submit(work, number)

        with pytest.raises(KeyError, match="a bug"):
            list(run_in_window(submit, range(100), 1))  # type: ignore[arg-type]
    assert submitted == [0, 1, 2]


class FailedState:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def result(self, *, raise_on_failure: bool) -> Any:
        assert not raise_on_failure
        return self._error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TransientDownloadError("http_503", "busy"), True),
        (ConnectionResetError("gone"), True),
        (TimeoutError("slow"), True),
        (OutputError("no space left"), False),
        (KeyError("a bug"), False),
        (PermissionError("not yours"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: BaseException, again: bool) -> None:
    assert is_transient(None, None, FailedState(error)) is again
