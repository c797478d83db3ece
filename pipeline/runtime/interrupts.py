"""Handles Ctrl-C while a command is starting: its imports take seconds, in which Python would print a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that was ended by Ctrl-C, as shells give it."""


def interrupted_text(again: str) -> str:
    """The text that an interrupted command prints. ``again``: the command that continues it."""
    return f"\nInterrupted. To continue, run it again: {again}"


@contextmanager
def interruptible(again: str) -> Iterator[None]:
    """Ends the block at Ctrl-C and prints how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted_text(again), file=sys.stderr)  # noqa: T201


def end_quietly() -> None:
    """Makes Ctrl-C end this command with a short text instead of a traceback, and with the exit status 130. It is called in the first lines
    of a command's file, before imports that take seconds."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nInterrupted.", file=sys.stderr)  # noqa: T201
        else:
            before(kind, error, trace)

    sys.excepthook = hook
