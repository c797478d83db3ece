"""Ctrl-C while a command is still starting: what it imports takes seconds, in which Python would end in a trace."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that was ended by Ctrl-C, as a shell would give it."""


def told(again: str) -> str:
    """What a command says that was interrupted; ``again`` is the command that continues it."""
    return f"\nInterrupted. To continue, run it again: {again}"


@contextmanager
def interruptible(again: str) -> Iterator[None]:
    """Ctrl-C ends the block, with a word on how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        print(told(again), file=sys.stderr)  # noqa: T201
