"""The signals that ask a fit to stop, and the processes that read for it: they go on until the fit itself ends.

Ctrl-C, torchrun and Slurm send a signal to all processes of a fit at once. If it ended those that read, the fit would get no batch for
the step in hand.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; torchrun, Slurm and ``kill``; and the warning before a time limit that ``sbatch --signal=USR1`` asks for."""


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server() -> None:
    """Starts multiprocessing's fork server, unless it runs. It and the processes that it forks have the stop signals blocked."""
    with _blocked():
        resource_tracker.ensure_running()  # first, because it unblocks signals when it starts
    with _blocked():
        forkserver.ensure_running()


def outlive_stop_signals() -> None:
    """Makes this child process end at SIGTERM only if its own parent sends it; called in the child at its start."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def watch() -> None:
        while True:
            received = signal.sigwaitinfo(STOP_SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent.pid:
                os._exit(0)

    threading.Thread(target=watch, name="stop-signals", daemon=True).start()
