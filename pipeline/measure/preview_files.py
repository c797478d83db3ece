"""The files of previews in ``state``, and their budget of disk space.

    previews/ab/<key>.frames.npz, <key>.flac     previews of one measured video: see :mod:`pipeline.measure.previews`
    previews/in-use/<process>/<key>              a mark while a source is processed; a new build removes those of killed processes
    previews/lock                                held for short times, if the state is on this machine

Without a limit no preview is ever deleted, and no marks are made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import PreviewError
from pipeline.runtime.folder import Folder
from pipeline.runtime.hashing import sha256_of

LOG = logging.getLogger(__name__)

Sums = Mapping[str, str]
"""SHA-256 of the files of one video, by suffix."""

NAME = "previews"
IN_USE = f"{NAME}/in-use"
SUFFIXES = (".frames.npz", ".flac")
GONE, DAMAGED = "previews_gone", "previews_damaged"
ROOM_LEFT = 0.1
"""Share of the budget that is free after deleting, so that the folder is not listed again for every source."""


class PreviewFiles:
    """The previews of a build. Safe for threads, and for several processes on one state.

    ``budget_bytes``: above it, previews of the sources that finished longest ago are deleted, never those in use. None: no limit.
    ``keep=False``: the previews of a source are deleted when it has finished.

    If the state is on another machine, there is no lock: the time of writing counts as the time of finishing, and a process may
    delete a file that another one is about to use. That one raises PreviewError then.
    """

    def __init__(self, state: Folder, budget_bytes: int | None = None, *, keep: bool = True) -> None:
        self._state, self._budget_bytes, self._keep = state, budget_bytes, keep
        self._process = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._pins: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._total_bytes: int | None = None
        self._told_full = False

    @property
    def _limited(self) -> bool:
        return self._budget_bytes is not None or not self._keep

    @staticmethod
    def clear_marks(state: Folder) -> None:
        """Removes all marks. Only for the process that starts a build, before other processes work."""
        state.remove(IN_USE)

    def have(self, key: str) -> bool:
        return all(self._state.exists(_name(key, suffix)) for suffix in SUFFIXES)

    def add(self, key: str, frames: Path, sound: Path) -> Sums:
        """Moves the files into the state; returns their sums, with which :meth:`copy_to` checks them."""
        num_bytes = frames.stat().st_size + sound.stat().st_size
        sums = {suffix: sha256_of(path) for path, suffix in zip((frames, sound), SUFFIXES, strict=True)}
        self._state.move_in({_name(key, suffix): path for path, suffix in zip((frames, sound), SUFFIXES, strict=True)})
        with self._lock:
            if self._total_bytes is not None:
                self._total_bytes += num_bytes
        return sums

    def copy_to(self, key: str, folder: Path, sums: Sums | None) -> tuple[Path, Path]:
        """Copies frames and sound into ``folder``; returns their paths.

        Raises PreviewError ``previews_gone`` if they were deleted, or ``previews_damaged`` if a file's sum is not that in ``sums``
        (None: not known).
        """
        frames, sound = folder / "previews.npz", folder / "previews.flac"
        for path, suffix in zip((frames, sound), SUFFIXES, strict=True):
            try:
                content = self._state.read_bytes(_name(key, suffix))
            except FileNotFoundError as error:
                raise PreviewError(
                    GONE, f"{self._state}/{_name(key, suffix)} was deleted while its source was processed"
                ) from error
            if sums is not None and hashlib.sha256(content).hexdigest() != sums[suffix]:
                raise PreviewError(DAMAGED, f"{self._state}/{_name(key, suffix)} is not what was written")
            path.write_bytes(content)
        return frames, sound

    @contextlib.contextmanager
    def in_use(self, key: str) -> Iterator[None]:
        """Keeps the previews of ``key`` from being deleted. If the block ends without an error, its source counts as finished."""
        if not self._limited:
            yield
            return
        with self._exclusive():
            self._pins[key] += 1
            self._state.write_bytes(f"{IN_USE}/{self._process}/{key}", b"", lasting=False)
        finished = False
        try:
            yield
            finished = True
        finally:
            self._unpin(key, finished=finished)

    def _unpin(self, key: str, *, finished: bool) -> None:
        with self._exclusive():
            self._pins[key] -= 1
            if self._pins[key] == 0:
                del self._pins[key]
                self._state.remove(f"{IN_USE}/{self._process}/{key}")
            if finished and not self._keep and key not in self._in_use():
                self._delete(key)
            elif finished:
                for suffix in SUFFIXES:
                    self._state.touch(_name(key, suffix))
                self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        budget = self._budget_bytes
        if budget is None or (self._total_bytes is not None and self._total_bytes <= budget):
            return
        sizes: Counter[str] = Counter()
        finished: dict[str, float] = {}
        for name, size, seconds in self._state.files(NAME):
            if name.endswith(SUFFIXES):
                sizes[_key(name)] += size
                finished[_key(name)] = max(seconds, finished.get(_key(name), 0.0))
        total = sizes.total()
        if total > budget:
            in_use = self._in_use()
            for key in sorted(finished, key=lambda key: (finished[key], key)):
                if total <= budget * (1 - ROOM_LEFT):
                    break
                if key not in in_use:
                    self._delete(key)
                    total -= sizes[key]
        self._total_bytes = total
        if total > budget and not self._told_full:
            LOG.warning("previews in use take %d bytes, more than their budget of %d; going on", total, budget)
        self._told_full = total > budget

    def _delete(self, key: str) -> None:
        for suffix in SUFFIXES:
            self._state.remove(_name(key, suffix))

    def _in_use(self) -> set[str]:
        return {name.rpartition("/")[2] for name in self._state.walk(IN_USE)} | set(self._pins)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock, contextlib.ExitStack() as stack:
            if self._state.local_path is not None:
                path = self._state.local_path / NAME / "lock"
                path.parent.mkdir(parents=True, exist_ok=True)
                fcntl.flock(stack.enter_context(path.open("ab")), fcntl.LOCK_EX)
            yield


def _name(key: str, suffix: str) -> str:
    return f"{NAME}/{key[:2]}/{key}{suffix}"


def _key(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
