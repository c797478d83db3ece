"""Where previews lie in the state, and how much room they may take.

    previews/ab/<key>.frames.npz, <key>.flac     of one measured video: see :mod:`pipeline.measure.previews`
    previews/in-use/<process>/<key>              while a source is on its way; a new build clears what a killed one left
    previews/lock                                held for moments, where the state is on this machine

Without a limit nothing is ever deleted, and none of the marks are made.
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
"""Share of the budget that is free after a clearing, so that not every source looks through the whole folder."""


class PreviewFiles:
    """The previews of a build. Safe for threads, and for several processes on one state.

    ``budget_bytes``: above it, those of sources that finished longest ago are deleted, never those in use. None: no limit.
    ``keep=False``: those of a source are deleted when it has finished. Where the state is on another machine, "finished" is when
    they were written, and two processes that clear at the same moment may take a file from a third that is about to use it, which
    then finds it gone.
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
        """Forgets what was in use: for the one process that begins a build, before any other is at work."""
        state.remove(IN_USE)

    def have(self, key: str) -> bool:
        return all(self._state.exists(_name(key, suffix)) for suffix in SUFFIXES)

    def add(self, key: str, frames: Path, sound: Path) -> Sums:
        """Takes the files over; returns the sums by which :meth:`copy_to` knows them again."""
        num_bytes = frames.stat().st_size + sound.stat().st_size
        sums = {suffix: sha256_of(path) for path, suffix in zip((frames, sound), SUFFIXES, strict=True)}
        self._state.move_in({_name(key, suffix): path for path, suffix in zip((frames, sound), SUFFIXES, strict=True)})
        with self._lock:
            if self._total_bytes is not None:
                self._total_bytes += num_bytes
        return sums

    def copy_to(self, key: str, folder: Path, sums: Sums | None) -> tuple[Path, Path]:
        """Frames and sound as files in ``folder``.

        Raises PreviewError ``previews_gone``, or ``previews_damaged`` where a file's sum is not the one in ``sums``
        (None: nobody knows).
        """
        frames, sound = folder / "previews.npz", folder / "previews.flac"
        for path, suffix in zip((frames, sound), SUFFIXES, strict=True):
            try:
                content = self._state.read_bytes(_name(key, suffix))
            except FileNotFoundError as error:
                raise PreviewError(
                    GONE, f"{self._state}/{_name(key, suffix)} was deleted while it was wanted"
                ) from error
            if sums is not None and hashlib.sha256(content).hexdigest() != sums[suffix]:
                raise PreviewError(DAMAGED, f"{self._state}/{_name(key, suffix)} is not what was written")
            path.write_bytes(content)
        return frames, sound

    @contextlib.contextmanager
    def in_use(self, key: str) -> Iterator[None]:
        """Nobody deletes the previews of ``key`` meanwhile. Its source has finished when the block ends without an error."""
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
