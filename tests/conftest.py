"""What more than one folder of tests needs."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.needs import LACKS

os.environ["DO_NOT_TRACK"] = "1"  # before Prefect is imported

if num_workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # before anything computes: processes that share the cores take a part of them each; no number depends on it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(num_workers))))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell lets a job in the background, and whatever that starts, ignore Ctrl-C, which tests send to commands
    signal.signal(signal.SIGINT, signal.default_int_handler)

POISONED_SIZES = tuple(1 << power for power in range(6, 23))
"""Bytes of the buffers that are freed full of NaN."""

SLOW_PLACES = (
    "docs",
    "faults",
    "flows/test_cluster.py",
    "flows/test_command.py",
    "flows/test_command_line.py",
    "flows/test_dataset_flow.py",
    "flows/test_dataset_report.py",
    "flows/test_demo.py",
    "flows/test_early_interrupts.py",
    "flows/test_prefect_faults.py",
    "flows/test_runners.py",
    "flows/test_secrets.py",
    "flows/test_server.py",
    "flows/test_short_names.py",
    "pipeline/build/test_bad_input.py",
    "pipeline/build/test_bugs.py",
    "pipeline/build/test_build.py",
    "pipeline/build/test_build_with_encoders.py",
    "pipeline/build/test_calibrated_build.py",
    "pipeline/build/test_changes.py",
    "pipeline/build/test_embedder.py",
    "pipeline/build/test_packaged_filter.py",
    "pipeline/build/test_two_spellings.py",
    "pipeline/build/test_withdraw.py",
    "pipeline/build/test_withdrawn_files.py",
    "pipeline/encoders/test_sound_networks.py",
    "pipeline/fetch/test_fetch_failures.py",
    "pipeline/fetch/test_links.py",
    "pipeline/fetch/test_sections.py",
    "pipeline/media/test_cut.py",
    "pipeline/media/test_first_and_last_frames.py",
    "pipeline/media/test_joined_files.py",
    "pipeline/media/test_tracks.py",
    "pipeline/report/test_files.py",
    "pipeline/report/test_page.py",
    "pipeline/synthetic/test_follows.py",
    "pipeline/synthetic/test_synthetic.py",
    "test_wheel.py",
    "trainer/align/test_align.py",
    "trainer/engine/test_compiled.py",
    "trainer/engine/test_presence.py",
    "trainer/invert/test_codes.py",
    "trainer/invert/test_guide.py",
    "trainer/invert/test_invert.py",
    "trainer/invert/test_style_mean.py",
    "trainer/model/test_hostile_files.py",
    "trainer/prior/test_prior.py",
    "trainer/result_page/test_result_page.py",
    "trainer/prior/test_reconstruction.py",
    "trainer/small_pair/test_small_pair.py",
    "trainer/streaming/test_data.py",
    "trainer/streaming/test_data_faults.py",
    "trainer/streaming/test_data_remote.py",
    "trainer/streaming/test_torchcodec.py",
    "trainer/test_ablations.py",
    "trainer/test_demo.py",
    "trainer/test_evaluate.py",
    "trainer/test_fit.py",
    "trainer/test_fit_ranks.py",
    "trainer/test_fit_stages.py",
    "trainer/test_generate.py",
    "trainer/test_rehearsal.py",
    "trainer/test_slurm.py",
    "trainer/video/test_video_codes.py",
    "trainer/video/test_video_losses.py",
    "trainer/video/test_video_runs.py",
)
"""Folders and files below ``tests`` with a browser, a Prefect server, a fit, the wheel, builds of many files, or half a minute and more.

There are three tiers. ``make test-fast`` passes what is neither in these places nor marked ``slow``: the unit tests of every package, with
small media and networks, in one process. ``make test`` passes all. Tests marked ``alone`` come last there, one after the other, since
they measure time or suspend processes. In a file that is mostly fast, single tests are marked: those that start interpreters or run a
large network.
"""

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


def is_slow(path: Path) -> bool:
    return any(path.is_relative_to(Path(__file__).parent / place) for place in SLOW_PLACES)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are left out, their files are not imported either: the imports take as long as many tests."""
    return True if "not slow" in config.option.markexpr and is_slow(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of ``SLOW_PLACES``."""
    for item in items:
        if is_slow(item.path):
            item.add_marker("slow")


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
