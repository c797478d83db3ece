"""The store of downloaded files, addressed by their content, with a budget of disk space.

    root/objects/ab/<sha256>.mp4     the files; the same bytes under two URLs are one file
    root/index/ab/<key>.json         result of a fetch: content, provenance. Kept when the file itself is freed
    root/tmp/<process>/              unfinished files, and pins; removed after the process has ended
    root/tmp/<process>.lock          locked while the process lives
    root/lock                        held for short times by threads and processes that change the store

All files get their names by rename, so a process may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import OutputError
from pipeline.runtime.process_folder import ProcessFolder, exclusive
from pipeline.schema import Fetched

LOG = logging.getLogger(__name__)

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """The result of a fetch. ``outside``: path of a file that is used in place. None: the file is in the store."""

    key: str
    sha256: str
    num_bytes: int
    suffix: str = ""
    offset_ms: int = 0
    outside: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    validators: Mapping[str, str] = field(default_factory=dict)
    """Validators of a plain file on a server: see :mod:`pipeline.fetch.validators`."""


class DownloadStore:
    """Content-addressed files below ``root``. Safe for threads, and for several processes on one folder.

    ``budget_bytes``: while all files together are larger, files without pins are deleted, the least recently used first. None: nothing
    is deleted. Raises OutputError if the folder cannot be used.
    """

    def __init__(self, root: Path | str, budget_bytes: int | None = None) -> None:
        self.root = Path(root).absolute()
        self.budget_bytes = budget_bytes
        self._pins: Counter[str] = Counter()
        self._total_bytes: int | None = None
        self._told_full = False
        self._thread_lock = threading.RLock()
        self._running: dict[str, tuple[threading.Lock, int]] = {}
        try:
            for name in ("objects", "index", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                self._folder = ProcessFolder(self.root / "tmp")
                self._own = self._folder.path
                (self._own / "pins").mkdir()
        except OSError as error:
            raise OutputError(f"the download store {self.root} cannot be used: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes all pins and temporary files of this process. If a process ends without this, the next one removes them."""
        if self._folder.is_open:
            with contextlib.suppress(FileNotFoundError), self._exclusive():  # the whole store may have been deleted
                self._folder.close()

    @contextlib.contextmanager
    def only_one(self, key: str) -> Iterator[None]:
        """Lets one thread of this process at a time work on a key, so that two sources with one file download it once."""
        with self._thread_lock:
            lock, waiting = self._running.get(key, (threading.Lock(), 0))
            self._running[key] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            with self._thread_lock:
                lock, waiting = self._running.pop(key)
                if waiting > 1:
                    self._running[key] = (lock, waiting - 1)

    @contextlib.contextmanager
    def temp_folder(self) -> Iterator[Path]:
        """A temporary folder on the store's file system, removed after the block."""
        folder = self._own / uuid.uuid4().hex[:12]
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def known(self, key: str) -> StoreEntry | None:
        """The result of an earlier fetch, even if its file was freed. None: there is none."""
        try:
            values = json.loads(self._record_path(key).read_bytes())
            if values["version"] != RECORD_VERSION:
                return None
            entry = StoreEntry(**values["record"])
            if entry.key != key:
                raise ValueError(f"it is that of {entry.key}, put into the place of another")
            return entry
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            LOG.warning("the record %s is damaged and is not used: %s", self._record_path(key), error)
            return None

    def find(self, key: str) -> Fetched | None:
        """The file of an earlier fetch, pinned. None: it was never fetched, or was freed."""
        entry = self.known(key)
        if entry is None:
            return None
        if entry.outside is not None:
            if not Path(entry.outside).is_file():
                return None
            self.pin(entry.sha256)
            return self._fetched(entry)
        with self._exclusive():
            if not self._is_whole(entry):
                return None
            self._pin(entry.sha256)
            os.utime(self._object_path(entry))
        return self._fetched(entry)

    def add(
        self,
        key: str,
        path: Path,
        suffix: str = "",
        *,
        offset_ms: int = 0,
        provenance: Mapping[str, Any] | None = None,
        validators: Mapping[str, str] | None = None,
    ) -> Fetched:
        """Moves the file at ``path``, in a folder of :meth:`temp_folder`, into the store, and pins it."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        entry = StoreEntry(
            key,
            digest,
            path.stat().st_size,
            suffix,
            offset_ms,
            provenance=dict(provenance or {}),
            validators=dict(validators or {}),
        )
        earlier = self.known(key)
        if earlier is not None and earlier.sha256 != digest:
            LOG.warning(
                "%s has changed since it was last fetched: its SHA-256 is %s, it was %s",
                entry.provenance.get("fetched_url", key),
                digest[:12],
                earlier.sha256[:12],
            )
        target = self._object_path(entry)
        with self._exclusive():
            self._pin(digest)
            was_there = self._is_whole(entry)
            if was_there:
                path.unlink()
                os.utime(target)
            else:
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
                if self._total_bytes is not None:
                    self._total_bytes += entry.num_bytes
            self._write_entry(entry)
        self._keep_to_budget()
        return replace(self._fetched(entry), is_new=not was_there)

    def add_outside(self, key: str, path: Path, sha256: str, provenance: Mapping[str, Any] | None = None) -> Fetched:
        """Stores an entry for a file that is used in place and never deleted. It is pinned, too, so that callers can release every file."""
        entry = StoreEntry(key, sha256, path.stat().st_size, outside=str(path), provenance=dict(provenance or {}))
        self.pin(sha256)
        self._write_entry(entry)
        return self._fetched(entry)

    def forget(self, key: str) -> None:
        """Removes the entry of this key, so that the next fetch downloads the file again. The file stays: other keys may refer to it."""
        self._record_path(key).unlink(missing_ok=True)

    def pin(self, sha256: str) -> None:
        """Adds a pin, which keeps a file from being freed. Every pin needs a :meth:`release`."""
        with self._exclusive():
            self._pin(sha256)

    def release(self, sha256: str) -> None:
        """Removes one pin. A file without pins may be freed."""
        with self._exclusive():
            if self._pins[sha256] > 1:
                self._pins[sha256] -= 1
                return
            del self._pins[sha256]
            (self._own / "pins" / sha256).unlink(missing_ok=True)
        self._keep_to_budget()

    def total_bytes(self) -> int:
        """Size of all files in the store, in bytes."""
        return sum(size for _, size, _ in self._objects())

    def free_finished(self) -> int:
        """Deletes files without pins, the least recently used first, until the budget is kept. Returns the number of bytes freed."""
        if self.budget_bytes is None:
            return 0
        freed = 0
        with self._exclusive():
            pinned = {pin.name for pin in self.root.glob("tmp/*/pins/*")}
            objects = sorted(self._objects())
            total = sum(size for _, size, _ in objects)
            for _, size, path in objects:
                if total - freed <= self.budget_bytes:
                    break
                if path.name.partition(".")[0] not in pinned:
                    path.unlink(missing_ok=True)
                    freed += size
                    LOG.debug("freed %s, %d bytes", path.name, size)
            self._total_bytes = total - freed
        is_full = self._total_bytes > self.budget_bytes
        if is_full and not self._told_full:
            LOG.warning(
                "files in use take %d bytes, more than the store's budget of %d; going on",
                self._total_bytes,
                self.budget_bytes,
            )
        self._told_full = is_full
        return freed

    def _keep_to_budget(self) -> None:
        if self.budget_bytes is None:
            return
        if self._total_bytes is None:
            self._total_bytes = self.total_bytes()
        if self._total_bytes > self.budget_bytes:
            self.free_finished()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._thread_lock, exclusive(self.root / "lock"):
            yield

    def _pin(self, sha256: str) -> None:
        self._pins[sha256] += 1
        if self._pins[sha256] == 1:
            (self._own / "pins" / sha256).touch()

    def _objects(self) -> Iterator[tuple[int, int, Path]]:
        """Last use, size, path of every file."""
        for path in self.root.glob("objects/*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path

    def _object_path(self, entry: StoreEntry) -> Path:
        return self.root / "objects" / entry.sha256[:2] / f"{entry.sha256}{entry.suffix}"

    def _record_path(self, key: str) -> Path:
        return self.root / "index" / key[:2] / f"{key}.json"

    def _is_whole(self, entry: StoreEntry) -> bool:
        path = self._object_path(entry)
        return path.is_file() and path.stat().st_size == entry.num_bytes

    def _fetched(self, entry: StoreEntry) -> Fetched:
        path = entry.outside or str(self._object_path(entry))
        return Fetched(path, entry.sha256, entry.num_bytes, entry.offset_ms, entry.provenance)

    def _write_entry(self, entry: StoreEntry) -> None:
        path = self._record_path(entry.key)
        path.parent.mkdir(exist_ok=True)
        temporary = self._own / f"{uuid.uuid4().hex[:12]}.json"
        temporary.write_text(json.dumps({"version": RECORD_VERSION, "record": asdict(entry)}, sort_keys=True, indent=1))
        temporary.replace(path)
