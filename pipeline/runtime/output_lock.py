"""Locks an output, so that one command at a time changes it, and cleans up after a killed command."""

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
    """Held while a command changes an output. Outputs on other machines are not locked.

    ``<output>/state/lock`` is not empty while it is held. If the next command finds a text in it, the last command was killed, and
    its unfinished files are removed.
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
        """Takes the lock. ``clear_tmp``: empty ``state/tmp``. Raises OutputError if another command holds the lock."""
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
                f"{self._output}: another build is running there. Wait for it, or choose another output"
            ) from error
        self._file = file
        if clear_tmp:
            _clear(state / "tmp")
        if file.seek(0, io.SEEK_END):
            self._output.remove_unfinished()
            file.truncate(0)
        file.write(_AT_WORK)
        file.flush()
        os.fsync(file.fileno())  # so that after a power loss the next command knows that there are unfinished files

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _clear(folder: Path) -> None:
    # Twice: an encoder may live a moment longer than its killed build, and may have created a file meanwhile.
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder, ignore_errors=True)
