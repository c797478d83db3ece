"""The program ``hearscape``. Its commands are imported inside ``main``, where Ctrl-C ends it without a trace."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.runtime.interrupts import INTERRUPTED, interruptible

PROGRAM = "hearscape"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: those of the commands; 0 done, 1 failed, 2 refused (the message says what to correct), 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    with interruptible(" ".join([PROGRAM, *words])):
        from flows.commands import HEARSCAPE  # noqa: PLC0415
        from pipeline.runtime.commands import run_command  # noqa: PLC0415

        return run_command(HEARSCAPE, PROGRAM, words)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
