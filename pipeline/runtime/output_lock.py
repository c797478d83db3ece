"""One command at a time on one output, and a clean start after one that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
from pathlib import Path
from typing import IO, Self

from pipeline.errors import OutputError
from pipeline.runtime.folder import Folder

STATE_NAME = "state"
LOCK_NAME = "lock"
_AT_WORK = b"at work\n"


class OutputLock:
    """Held while a command changes an output. Only where the output is on this machine; elsewhere nothing is locked.

    ``<output>/state/lock`` holds a word as long: where the next one finds it, the last one was killed, and what it had in the making
    is removed.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, *, clear_tmp: bool = True) -> None:
        """Raises OutputError where another command holds it. ``clear_tmp``: empty ``state/tmp``, whoever filled it."""
        local = self._output.local_path
        if local is None or self._file is not None:
            return
        state = local / STATE_NAME
        state.mkdir(parents=True, exist_ok=True)
        file = (state / LOCK_NAME).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(
                f"{self._output}: another build is at work there. Wait for it, or choose another output"
            ) from error
        self._file = file
        if clear_tmp:
            _clear(state / "tmp")
        if file.seek(0, io.SEEK_END):
            self._output.remove_unfinished()
            file.truncate(0)
        file.write(_AT_WORK)
        file.flush()
        os.fsync(file.fileno())  # or after a power loss nobody knows that there is something to clear

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _clear(folder: Path) -> None:
    # Twice: an encoder that outlived its killed build for a moment may have made a file meanwhile.
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder, ignore_errors=True)
