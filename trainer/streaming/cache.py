"""Copies of remote shards on a local disk, up to a limit in bytes: what was not used for longest goes first.

    FOLDER/hearscape-shards/
      CACHEDIR.TAG                  says that the folder is this program's
      <sha256>.tar                  a shard, whole and checked; named by its content, so that equal shards share one copy
      <sha256>.<token>.part         one that is being fetched, at its full length from the start: it counts
      locks/                        flock: one process fetches, the others wait for it

Nothing else is ever deleted, in that folder or any other. Processes share it; it must lie on a disk of this machine.
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
"""The first line is the one that programs look for which pass over caches (bford.info/cachedir)."""
OURS = re.compile(r"[0-9a-f]{64}\.(tar|[0-9a-f]{32}\.part)")
FETCHED_BYTES = 16 << 20
"""Of one request: a fault costs no more than that."""
NUM_LOCKS = 256

Fetch = Callable[[int, int], bytes]
"""Bytes ``[start, end)`` of a shard; raises ShardError."""


class ShardCache:
    """One folder, one limit. Cheap to make; each process may have its own."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder / FOLDER, max_bytes
        self._refused: set[str] = set()

    def prepare(self) -> None:
        """Makes the folder. Raises DataError where that cannot be done, or where another's files lie in its place."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / TAG).exists():
                others = any(entry.name not in ("locks", TAG) for entry in self.folder.iterdir())
                if others and not (self.folder / TAG).exists():  # it may be in the making, by another process
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
        """The shard's copy, fetched if it is not there. None where none can be had: the shard is larger than there is room, or
        its bytes are not those of the manifest. Raises what ``fetch`` raises.
        """
        if record.sha256 in self._refused:
            return None
        found = self._found(record)
        if found is not None:
            return found
        if record.num_bytes > self.max_bytes:
            self._refuse(record, f"it is larger than the cache ({record.num_bytes} of {self.max_bytes} bytes)")
            return None
        with self._locked(f"{int(record.sha256[:8], 16) % NUM_LOCKS:03d}"):
            return self._found(record) or self._fetched(record, fetch)

    def _found(self, record: ShardRecord) -> IO[bytes] | None:
        path = self.folder / f"{record.sha256}.tar"
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != record.num_bytes:
            file.close()
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # let go by another process: it can be read all the same
            os.utime(path)
        return file

    def _fetched(self, record: ShardRecord, fetch: Fetch) -> IO[bytes] | None:
        part = self.folder / f"{record.sha256}.{uuid.uuid4().hex}.part"
        try:
            with contextlib.ExitStack() as stack:
                with self._locked("room"):  # unlocked parts are taken for a killed process's: none may be seen
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
            return self._found(record)
        except OSError as error:
            self._refuse(record, f"the copy cannot be written ({error.strerror})")
            return None
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int, part: Path) -> bool:
        """Lets go of what was not used for longest, and of what killed processes left. Holds the lock ``room``."""
        sizes: dict[str, int] = {}  # by content: one that is renamed meanwhile is met under both of its names
        copies = []
        for entry in self.folder.iterdir():
            if entry == part or not OURS.fullmatch(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process's fetch has ended meanwhile
                facts = entry.lstat()
                if not stat.S_ISREG(facts.st_mode) or (entry.suffix == ".part" and _let_go(entry)):
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
        LOG.warning("%s is not cached, it is read sample by sample: %s", record.path, why)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / "locks" / f"{name}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _let_go(part: Path) -> bool:
    """Deletes what a killed process had begun to fetch; False where it is still at work."""
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        part.unlink(missing_ok=True)
        return True
