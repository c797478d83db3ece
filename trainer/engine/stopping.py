"""Requests to stop a fit: signals are noted, and the loop asks for them after every step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.streaming.stop_signals import STOP_SIGNALS


@contextmanager
def signals_noted(signalled: list[int]) -> Iterator[None]:
    """Adds the number of each signal to ``signalled``: the fit ends the step in hand and writes a checkpoint. The second signal ends the
    process at once.

    Under torchrun only the first one counts: torchrun passes on what it gets, so that a signal to all processes arrives twice. torchrun
    itself kills what has not ended after ``--shutdown-timeout`` seconds.
    """
    is_under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, _frame: object) -> None:
        if signalled and not is_under_torchrun:
            os._exit(128 + number)
        signalled.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
