"""Builds that lose power at any moment: ``python -m tests.faults.power --rounds 50 --seed 1``.

A build is recorded: every name that it makes, replaces or removes, and every wait for the disk. Each round takes a prefix of that
and makes a folder as a file system may leave it when the power fails there. What was waited for is on the disk. Of anything else,
each name may be there or not, and each file whole, cut short, empty, or zeros. Then the same command must end with the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.verify import verify
from pipeline.events import ignore
from tests.faults.kill import RECIPE, contents, write_videos


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to a name. ``content`` None: a folder; ``is_there`` False: the name was removed."""

    path: Path
    is_there: bool
    content: bytes | None = None
    is_whole: bool = True
    """Whether the content was on the disk before it got this name."""
    changed_ns: int = 0
    """When the content was written."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a name stands for after the power failed. ``content`` None: a folder."""

    content: bytes | None
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Synced:
    """The names in a folder were on the disk, as far as the first ``num_steps`` had changed them."""

    folder: Path
    num_steps: int


@dataclass(slots=True)
class Recording:
    """What happened below a folder, in order."""

    root: Path
    steps: list[Step | Synced] = field(default_factory=list)
    """What was there before, too: on the disk."""
    num_before: int = 0
    """Steps of that."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _whole: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Inode -> size and time of change of a file that is on the disk."""

    def note_what_is_there(self) -> None:
        folders = [self.root] if self.root.exists() else []
        for path in sorted(self.root.rglob("*")):
            content = None if path.is_dir() else path.read_bytes()
            self.steps.append(Step(path, is_there=True, content=content, changed_ns=path.stat().st_mtime_ns))
            folders += [path] if path.is_dir() else []
        self.steps += [Synced(folder, len(self.steps)) for folder in folders]
        self.num_before = len(self.steps)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Records what this process does while the block runs."""
        names = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync")
        originals = {name: getattr(os, name) for name in names}
        for name in ("replace", "rename"):
            setattr(os, name, self._renaming(originals[name]))
        for name in ("unlink", "remove", "rmdir"):
            setattr(os, name, self._removing(originals[name]))
        os.mkdir, os.fsync = self._making(originals["mkdir"]), self._syncing(originals["fsync"])
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _note(self, step: Step | Synced) -> None:
        path = step.folder if isinstance(step, Synced) else step.path
        if path == self.root or self.root in path.parents:
            self.steps.append(step)

    def _renaming(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, **others: Any) -> None:
            with self._lock:
                status = Path(source).stat()
                content = Path(source).read_bytes()
                original(source, target, **others)
                is_whole = self._whole.get(status.st_ino) == (status.st_size, status.st_mtime_ns)
                self._note(Step(Path(target).absolute(), True, content, is_whole, status.st_mtime_ns))

        return rename

    def _removing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            with self._lock:
                whole = _path_of(dir_fd) / path if dir_fd is not None else Path(path).absolute()
                original(path, dir_fd=dir_fd)
                self._note(Step(whole, is_there=False))

        return remove

    def _making(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            with self._lock:
                original(path, mode, dir_fd=dir_fd)
                self._note(Step(Path(path).absolute(), is_there=True))

        return mkdir

    def _syncing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fsync(descriptor: int) -> None:
            status, num_steps = os.fstat(descriptor), len(self.steps)
            original(descriptor)
            with self._lock:
                if stat.S_ISDIR(status.st_mode):
                    self._note(Synced(_path_of(descriptor), num_steps))
                else:
                    self._whole[status.st_ino] = (status.st_size, status.st_mtime_ns)

        return fsync

    def after_power_loss(self, num_steps: int, rng: random.Random) -> dict[Path, Left]:
        """The names that may be there, relative to the root, when the power fails after so many steps.

        Steps that nobody waited for took place or not, each name for itself, up to some step of its own.
        """
        steps = self.steps[:num_steps]
        on_disk: dict[Path, int] = {}
        for step in steps:
            if isinstance(step, Synced):
                on_disk[step.folder] = max(on_disk.get(step.folder, 0), step.num_steps)
        of_name: dict[Path, list[tuple[int, Step]]] = {}
        for number, step in enumerate(steps):
            if isinstance(step, Step):
                of_name.setdefault(step.path, []).append((number, step))
        left: dict[Path, Left] = {}
        for path, its_steps in of_name.items():
            num_certain = sum(number < on_disk.get(path.parent, 0) for number, _ in its_steps)
            num_done = rng.randint(num_certain, len(its_steps))
            last = its_steps[num_done - 1][1] if num_done else None
            if last is not None and last.is_there:
                left[path.relative_to(self.root)] = Left(_as_left(last, rng), last.changed_ns)
        return {path: what for path, what in left.items() if _is_reachable(path, left)}


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _as_left(step: Step, rng: random.Random) -> bytes | None:
    if step.content is None or step.is_whole:
        return step.content
    half = len(step.content) // 2
    return rng.choice(
        (step.content, b"", step.content[:half], bytes(len(step.content)), step.content[:half] + bytes(half))
    )


def _is_reachable(path: Path, left: Mapping[Path, Left]) -> bool:
    return all(folder in left for folder in path.parents if folder != Path())


def materialise(left: Mapping[Path, Left], root: Path) -> None:
    """Makes the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for path, what in sorted(left.items()):
        if what.content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(what.content)
            os.utime(root / path, ns=(what.changed_ns, what.changed_ns))


def run(output: Path, sources: Path, changes: Sequence[str] = (), *, encoders: bool = False) -> None:
    """The build in this process."""
    output.parent.mkdir(parents=True, exist_ok=True)
    recipe = output.with_suffix(".toml")
    recipe.write_text(RECIPE.format(output=output, sources=sources) + ("[encoders]\n" if encoders else ""))
    running = Build(load_recipe(recipe, changes))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A build that was recorded, and what it came to."""

    recording: Recording
    sources: Path
    changes: tuple[str, ...]
    expected: dict[str, bytes]
    encoders: bool

    def lose_power(self, number: int, folder: Path) -> list[str]:
        """A round: what is wrong after it. Equal numbers, equal rounds."""
        rng = random.Random(number)
        num_steps = rng.randint(self.recording.num_before, len(self.recording.steps))
        output = folder / "killed"
        materialise(self.recording.after_power_loss(num_steps, rng), output)
        run(output, self.sources, self.changes, encoders=self.encoders)
        found = contents(output)
        names = sorted(self.expected.keys() | found.keys())
        problems = [f"differs: {name}" for name in names if self.expected.get(name) != found.get(name)]
        return problems + [str(difference) for difference in verify(str(output))]


def record(
    folder: Path, changes: Sequence[str] = (), *, before: Path | None = None, sources: Path, encoders: bool = False
) -> Recorded:
    """Builds in ``folder``, from nothing or from a copy of ``before``."""
    output = folder / "killed"
    if before is not None:
        shutil.copytree(before, output)  # with the times of its files
    recording = Recording(output)
    recording.note_what_is_there()
    with recording.running():
        run(output, sources, changes, encoders=encoders)
    return Recorded(recording, sources, tuple(changes), contents(output), encoders)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all rounds ended as they should. 1: not so; what was wrong is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="number of the first round")
    parser.add_argument("--encoders", action="store_true", help="embed the clips, too")
    options = parser.parse_args(arguments)
    num_problems = 0
    with tempfile.TemporaryDirectory(prefix="power-") as temporary:
        folder = Path(temporary)
        sources = write_videos(folder / "videos")
        first = record(folder / "first", sources=sources, encoders=options.encoders)
        second = record(
            folder / "second",
            ["shards.max_samples=2", "judge.max_black_share=0.9"],
            before=folder / "first" / "killed",
            sources=sources,
            encoders=options.encoders,
        )
        for number in range(options.seed, options.seed + options.rounds):
            for name, recorded in (("first", first), ("again", second)):
                problems = recorded.lose_power(number, folder / f"{name}-{number}")
                num_problems += len(problems)
                print(f"round {number}, {name}: {problems or 'as it should'}", flush=True)  # noqa: T201
                shutil.rmtree(folder / f"{name}-{number}")
    return 1 if num_problems else 0


if __name__ == "__main__":
    sys.exit(main())
