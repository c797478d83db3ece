"""What more than one folder of tests needs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterator

import pytest

from tests.needs import LACKS

os.environ["DO_NOT_TRACK"] = "1"  # before Prefect is imported

POISONED_SIZES = tuple(1 << power for power in range(6, 23))
"""Bytes of the buffers that are freed full of NaN."""

NOTHING_SKIPPED = "HEARSCAPE_NO_SKIPS"
OURS = ("pipeline", "flows", "trainer")


class _Errors(logging.Handler):
    """Keeps what the project itself logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in OURS:
            self.records.append(record)


@pytest.fixture(autouse=True)
def no_error_is_logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """An error that is only logged fails the test, unless the test is marked ``logs_errors``."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    yield
    logging.getLogger().removeHandler(errors)
    if errors.records and request.node.get_closest_marker("logs_errors") is None:
        pytest.fail("logged: " + "; ".join(record.getMessage() for record in errors.records))


@pytest.fixture(autouse=True)
def freed_memory_is_poisoned() -> None:
    """Whoever reads memory that nobody wrote finds NaN there, whatever ran before."""
    torch = sys.modules.get("torch")
    if torch is not None:
        buffers = [torch.full((size // 4,), torch.nan) for size in POISONED_SIZES for _ in range(2)]
        del buffers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where ``HEARSCAPE_NO_SKIPS`` is set, as in CI, a test that skips itself fails, unless the machine lacks what it needs."""
    report = yield
    if report.skipped and os.environ.get(NOTHING_SKIPPED) and LACKS not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, though {NOTHING_SKIPPED} is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """One Prefect server with a database of its own for every flow of the session: it takes 10 s to start."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
