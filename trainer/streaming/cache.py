"""Copies of remote shards on a local disk, up to a limit in bytes. The least recently used copy is deleted first.

    FOLDER/hearscape-shards/
      CACHEDIR.TAG                  marks the folder as this cache
      <sha256>.tar                  a complete, checked shard; named by its content, so that equal shards share one copy
      <sha256>.<token>.part         a shard that is being fetched; it has its full length from the start and counts towards the limit
      locks/                        flock: one process fetches a shard, the others wait for it

Only files with these names are deleted. Several processes can share the folder. It must be on a local disk, because flock is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import DataError

LOG = logging.getLogger(__name__)

FOLDER = "hearscape-shards"
TAG = "CACHEDIR.TAG"
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds copies of Hearscape's shards. It may be deleted.\n"
"""Backup programs skip a folder whose tag starts with this first line (bford.info/cachedir)."""
OURS = re.compile(r"[0-9a-f]{64}\.(tar|[0-9a-f]{32}\.part)")
FETCHED_BYTES = 16 << 20
"""Size of one request. After a network fault only one request is repeated."""
NUM_LOCKS = 256

Fetch = Callable[[int, int], bytes]
"""Bytes ``[start, end)`` of a shard; raises ShardError."""


class ShardCache:
    """A cache folder with its limit in bytes. Each process makes its own object for the same folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder / FOLDER, max_bytes
        self._refused: set[str] = set()

    def prepare(self) -> None:
        """Makes the folder. Raises DataError when that is not possible, or when the folder holds files of something else."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / TAG).exists():
                others = any(entry.name not in ("locks", TAG) for entry in self.folder.iterdir())
                if others and not (self.folder / TAG).exists():  # another process may have made the cache just now
                    raise DataError(
                        f"cache_dir: {self.folder} holds files that are not this cache's; choose another folder"
                    )
                (self.folder / "locks").mkdir(exist_ok=True)
                (self.folder / TAG).write_text(SIGNATURE)
        except OSError as error:
            raise DataError(
                f"cache_dir: {self.folder} cannot be made: {error.strerror}; choose another folder"
            ) from error

    def open(self, record: ShardRecord, fetch: Fetch) -> IO[bytes] | None:
        """The open copy of a shard; it is fetched if the cache does not hold it.

        Returns None if the shard cannot be cached: it does not fit, the copy cannot be written, or its bytes differ from the manifest's
        SHA-256. Raises what ``fetch`` raises.
        """
        if record.sha256 in self._refused:
            return None
        cached = self._cached(record)
        if cached is not None:
            return cached
        if record.num_bytes > self.max_bytes:
            self._refuse(record, f"it is larger than the cache ({record.num_bytes} of {self.max_bytes} bytes)")
            return None
        with self._locked(f"{int(record.sha256[:8], 16) % NUM_LOCKS:03d}"):
            return self._cached(record) or self._fetched(record, fetch)

    def _cached(self, record: ShardRecord) -> IO[bytes] | None:
        path = self.folder / f"{record.sha256}.tar"
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != record.num_bytes:
            file.close()
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(
            FileNotFoundError
        ):  # another process has just deleted it; the open file can still be read
            os.utime(path)
        return file

    def _fetched(self, record: ShardRecord, fetch: Fetch) -> IO[bytes] | None:
        part = self.folder / f"{record.sha256}.{uuid.uuid4().hex}.part"
        try:
            with contextlib.ExitStack() as stack:
                # _make_room deletes parts without a lock, so this part is made and locked while no other process runs it
                with self._locked("room"):
                    file = stack.enter_context(part.open("xb"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not self._make_room(record.num_bytes, part):
                        return None
                    file.truncate(record.num_bytes)
                digest = hashlib.sha256()
                for start in range(0, record.num_bytes, FETCHED_BYTES):
                    data = fetch(start, min(start + FETCHED_BYTES, record.num_bytes))
                    digest.update(data)
                    file.write(data)
                if file.tell() != record.num_bytes or digest.hexdigest() != record.sha256:
                    self._refuse(record, "its bytes are not those that the manifest names")
                    return None
                file.flush()
                part.replace(self.folder / f"{record.sha256}.tar")
            return self._cached(record)
        except OSError as error:
            self._refuse(record, f"the copy cannot be written ({error.strerror})")
            return None
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int, part: Path) -> bool:
        """Deletes the parts of killed processes, and the least recently used copies, until ``num_bytes`` fit.

        Returns whether they fit. The caller holds the lock ``room``.
        """
        sizes: dict[
            str, int
        ] = {}  # by content: a part that is renamed during the listing may be listed under both names
        copies = []
        for entry in self.folder.iterdir():
            if entry == part or not OURS.fullmatch(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process has renamed or deleted it
                facts = entry.lstat()
                if not stat.S_ISREG(facts.st_mode) or (entry.suffix == ".part" and _delete_abandoned(entry)):
                    continue
                sizes[entry.name[:64]] = facts.st_size
                if entry.suffix == ".tar":
                    copies.append((facts.st_mtime_ns, facts.st_size, entry))
        used = sum(sizes.values())
        for _, size, entry in sorted(copies):
            if used + num_bytes <= self.max_bytes:
                break
            entry.unlink(missing_ok=True)
            used -= size
        return used + num_bytes <= self.max_bytes

    def _refuse(self, record: ShardRecord, why: str) -> None:
        self._refused.add(record.sha256)
        LOG.warning("%s is not cached; its samples are read one by one from the server: %s", record.path, why)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / "locks" / f"{name}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _delete_abandoned(part: Path) -> bool:
    """Deletes the part of a process that was killed. Returns False for a part that is still being fetched: its lock is held."""
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        part.unlink(missing_ok=True)
        return True
