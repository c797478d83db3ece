"""Ctrl-C while a command is still starting: what it imports takes seconds, in which Python would end in a trace."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

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


def end_quietly() -> None:
    """From now on Ctrl-C ends this command with a word instead of a trace, and with the exit status that shells show as 130. For the first
    lines of a command's file, before what takes seconds to import."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nInterrupted.", file=sys.stderr)  # noqa: T201
        else:
            before(kind, error, trace)

    sys.excepthook = hook
