"""A folder on any file system of fsspec. Writes are atomic: a name belongs to the complete file, or does not exist.

On a local disk this also holds after a power loss: the content is on the disk before the file gets its name, and the name is on the
disk when the write returns.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from pipeline.errors import OutputError

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_MAKING_FOLDERS = threading.Lock()
"""Locked while folders are made, so that no thread uses a folder whose name is not on the disk yet."""
_CANNOT_BE_SYNCED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""Errors of file systems without fsync for folders."""


class Folder:
    """A folder by path or URL (``s3://bucket/name``). Names inside it are relative, with forward slashes."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        if "::" in self.url and "://" not in self.url:  # fsspec would split the path there
            raise OutputError(f"{self.url}: a folder with '::' in its path cannot be used; choose another name")
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise OutputError(f"{self.url}: {error}") from error
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    @property
    def local_path(self) -> Path | None:
        """The folder's path on this machine. None: it is on another machine."""
        return (
            Path(self._root)
            if "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
            else None
        )

    def _at(self, name: str) -> str:
        assert not name.startswith("/") and ".." not in name.split("/"), name
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self._at(name)))

    def open(self, name: str) -> IO[bytes]:
        return cast("IO[bytes]", self._fs.open(self._at(name), "rb"))

    def read_bytes(self, name: str) -> bytes:
        return cast("bytes", self._fs.cat_file(self._at(name)))

    def names(self, below: str = "") -> list[str]:
        """Names of the files and folders directly in ``below``, sorted. A missing folder is empty."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                entry.rstrip("/").rsplit("/", 1)[1]
                for entry in self._fs.ls(self._at(below), detail=False, refresh=True)
            )
        return []

    @contextlib.contextmanager
    def writing(self, name: str, *, lasting: bool = True) -> Iterator[IO[bytes]]:
        """A file that gets its ``name`` when the block ends without an error.

        ``lasting=False``: do not wait until it is on the disk; it may be lost by a power loss.
        """
        folder, _, base = self._at(name).rpartition("/")
        partial = f"{folder}/.{base}.{uuid.uuid4().hex[:8]}.part"
        self._make_folder(folder)
        try:
            with self._fs.open(partial, "wb") as file:
                yield file
            if self.local_path is None:
                self._fs.mv(partial, self._at(name))
            else:
                if lasting:
                    _sync(partial)
                Path(partial).replace(self._at(name))
                if lasting:
                    _sync_folder(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                self._fs.rm_file(partial)
            raise

    def write_bytes(self, name: str, content: bytes, *, lasting: bool = True) -> None:
        with self.writing(name, lasting=lasting) as file:
            file.write(content)

    def write_json(self, name: str, values: Any) -> None:
        self.write_bytes(name, json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def move_in(self, files: Mapping[str, Path]) -> None:
        """Moves local files into this folder. ``files``: path by new name. Renames on the same disk, copies otherwise."""
        folders = set()
        for name, local in files.items():
            if self.local_path is not None:
                target = Path(self._at(name))
                self._make_folder(str(target.parent))
                folders.add(target.parent)
                _sync(local)
                with contextlib.suppress(OSError):
                    local.replace(target)
                    continue
            with local.open("rb") as source, self.writing(name) as target_file:
                shutil.copyfileobj(source, target_file, 1 << 20)
            local.unlink()
        for folder in folders:
            _sync_folder(folder)

    def _make_folder(self, folder: str) -> None:
        if self.local_path is None:
            self._fs.makedirs(folder, exist_ok=True)
            return
        with _MAKING_FOLDERS:
            missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                _sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content. A missing one is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(name), recursive=True)

    def remove_for_good(self, names: Iterable[str]) -> None:
        """Removes files or folders so that they do not reappear after a power loss."""
        folders = set()
        for name in names:
            self.remove(name)
            folders.add(self._at(name).rpartition("/")[0])
        for folder in folders if self.local_path is not None else ():
            if Path(folder).is_dir():
                _sync_folder(folder)

    def remove_empty_folders(self, below: str) -> None:
        """Removes ``below`` and the folders directly in it that are empty. Only on local disks: object stores have no empty folders."""
        if self.local_path is not None:
            for name in (*(f"{below}/{name}" for name in self.names(below)), below):
                with contextlib.suppress(OSError):  # a file, or not empty
                    Path(self._at(name)).rmdir()

    def walk(self, below: str = "") -> Iterator[str]:
        """Names of all files below, relative to this folder, sorted."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._fs.find(self._at(below))):
                yield path[len(self._root) + 1 :]

    def files(self, below: str = "") -> Iterator[tuple[str, int, float]]:
        """Name, size in bytes and time of the last change (seconds since 1970; 0: not known) of all files below."""
        with contextlib.suppress(FileNotFoundError):
            for path, details in self._fs.find(self._at(below), detail=True).items():
                yield path[len(self._root) + 1 :], int(details["size"]), _seconds_of(details)

    def changed_seconds(self, name: str) -> float:
        """Time of a file's last change, seconds since 1970; 0: not known. On local disks moving or replacing a file counts as a change,
        whatever its modification time is."""
        if self.local_path is not None:
            status = (self.local_path / name).stat()
            return max(status.st_mtime, status.st_ctime)
        return _seconds_of(self._fs.info(self._at(name)))

    def touch(self, name: str) -> None:
        """Sets the time of the file's last change to now. Only on local disks; on others it does nothing."""
        if self.local_path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._at(name))

    def remove_unfinished(self) -> None:
        """Removes the unfinished files of killed processes, in all folders below. No other process may be writing here."""
        for path in self._fs.find(self._root):
            if _UNFINISHED.fullmatch(path.rpartition("/")[2]):
                self._fs.rm_file(path)

    def check_writable(self) -> None:
        """Raises OutputError if no file can be created."""
        try:
            self.write_bytes(".writable", b"", lasting=False)
            self.remove(".writable")
        except OSError as error:
            raise OutputError(
                f"output {self.url}: cannot write there: {error.strerror or error}. Choose another folder or correct its permissions"
            ) from error


def _sync(path: str | Path) -> None:
    """Returns when the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str | Path) -> None:
    """Returns when the names in the folder are on the disk, if its file system supports that."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _CANNOT_BE_SYNCED:
            raise


def _seconds_of(details: Mapping[str, Any]) -> float:
    """Time of the last change from the details of a file. File systems use different names, and a number, text or time."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        changed = details.get(name)
        if isinstance(changed, str):
            with contextlib.suppress(ValueError):
                changed = datetime.fromisoformat(changed)
        if isinstance(changed, datetime):
            return changed.timestamp()
        if isinstance(changed, int | float):
            return float(changed)
    return 0.0
