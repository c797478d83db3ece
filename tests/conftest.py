"""What more than one folder of tests needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["DO_NOT_TRACK"] = "1"  # before Prefect is imported


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """One Prefect server with a database of its own for every flow of the session: it takes 10 s to start."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
