"""Folders for temporary files that end with their process, were it by SIGKILL: the next process removes what a dead one left."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

from pipeline.errors import OutputError

MAX_ROOT_BYTES = 48
"""A socket's path has 103 at most (macOS), of which ``/hearscape-12345/0a1b2c/pymp-xxxxxxxx/listener-xxxxxxxx`` takes 55."""
_LAST = -200
"""After multiprocessing has removed its own folder, which lies in ours. It runs nothing of this in a fork, which has the folder on loan."""


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """One at a time, of all processes."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ProcessFolder:
    """A new folder ``path`` below ``parent``. Beside it lies a file that is locked as long as the process lives.

    Of all that share a parent only one may be made or closed at a time: see :func:`exclusive`. Raises OSError.
    """

    def __init__(self, parent: Path) -> None:
        _remove_what_the_dead_left(parent)
        self.path = parent / uuid.uuid4().hex[:6]
        while self.path.exists():
            self.path = parent / uuid.uuid4().hex[:6]
        self._lock_path = self.path.with_suffix(".lock")
        self._lock: int | None = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path.mkdir()

    @property
    def is_open(self) -> bool:
        return self._lock is not None

    def close(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _remove_what_the_dead_left(parent: Path) -> None:
    for lock in parent.glob("*.lock"):
        with lock.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def system_folder() -> str:
    """The system's folder of temporary files. Raises OutputError where none can be written; torch cannot even be imported then."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutputError(f"TMPDIR: {error.strerror}: set TMPDIR to a folder that can be written") from error


def temporary_folder() -> Path:
    """This process's folder among the system's temporary files, for what belongs to no output. Raises OutputError."""
    return _folder_below(system_folder())


def socket_folder() -> Path:
    """The same, but in ``/tmp`` where the other's path is too long for the sockets that multiprocessing puts into it."""
    usual = system_folder()
    is_short = len(os.fsencode(usual)) <= MAX_ROOT_BYTES
    return _folder_below(usual if is_short or not os.access("/tmp", os.W_OK) else "/tmp")


@functools.cache
def _folder_below(root: str) -> Path:
    parent = Path(root) / f"hearscape-{os.getuid()}"
    if not _is_ours(parent):  # whoever made it could look into it, or lead us elsewhere
        made = Path(tempfile.mkdtemp(prefix="hearscape-", dir=root))
        Finalize(None, shutil.rmtree, (made, True), exitpriority=_LAST)
        return made
    with exclusive(parent / "lock"):
        folder = ProcessFolder(parent)
    Finalize(None, _close, (folder, parent / "lock"), exitpriority=_LAST)
    return folder.path


def _is_ours(folder: Path) -> bool:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _close(folder: ProcessFolder, lock: Path) -> None:
    with contextlib.suppress(FileNotFoundError), exclusive(lock):
        folder.close()
