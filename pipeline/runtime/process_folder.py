"""Temporary folders that belong to a process. If it is killed, the next process removes its folder."""

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
"""Longest path of the root. A socket's path has at most 103 bytes (macOS), and ``/hearscape-12345/0a1b2c/pymp-xxxxxxxx/listener-xxxxxxxx``
takes 55 of them."""
_LAST = -200
"""Exit priority after that of multiprocessing, which removes its own folder inside ours first. A forked process does not run the
finalizers of its parent, so it does not remove the parent's folder."""


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds a lock file while the block runs, so that one process at a time runs it."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ProcessFolder:
    """A new folder ``path`` below ``parent``, and a lock file beside it that is locked while the process lives.

    Making and closing folders of one parent must be done under :func:`exclusive`. Raises OSError.
    """

    def __init__(self, parent: Path) -> None:
        _remove_folders_of_ended_processes(parent)
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


def _remove_folders_of_ended_processes(parent: Path) -> None:
    for lock in parent.glob("*.lock"):
        with lock.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def system_folder() -> str:
    """The system's folder for temporary files. Raises OutputError if none is writable; torch cannot be imported then."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutputError(f"TMPDIR: {error.strerror}: set TMPDIR to a folder that can be written") from error


def temporary_folder() -> Path:
    """This process's folder among the system's temporary files, for files of no output. Raises OutputError."""
    return _folder_below(system_folder())


def socket_folder() -> Path:
    """This process's folder for the sockets of multiprocessing: :func:`temporary_folder`, or one in ``/tmp`` if its path is too long."""
    root = system_folder()
    is_short = len(os.fsencode(root)) <= MAX_ROOT_BYTES
    return _folder_below(root if is_short or not os.access("/tmp", os.W_OK) else "/tmp")


@functools.cache
def _folder_below(root: str) -> Path:
    parent = Path(root) / f"hearscape-{os.getuid()}"
    if not _belongs_to_user(parent):  # its owner could read our files, or replace it by a link
        private = Path(tempfile.mkdtemp(prefix="hearscape-", dir=root))
        Finalize(None, shutil.rmtree, (private, True), exitpriority=_LAST)
        return private
    with exclusive(parent / "lock"):
        folder = ProcessFolder(parent)
    Finalize(None, _close, (folder, parent / "lock"), exitpriority=_LAST)
    return folder.path


def _belongs_to_user(folder: Path) -> bool:
    """Makes the folder if it does not exist. Whether it is a folder of this user that no other user can write to."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _close(folder: ProcessFolder, lock: Path) -> None:
    with contextlib.suppress(FileNotFoundError), exclusive(lock):
        folder.close()
