"""Simulates power losses during builds: ``python -m tests.faults.power --rounds 50 --seed 1``.

A build is recorded: every name that it makes, replaces or removes, and every fsync. Each round takes the first part of the recording, and
makes a folder as a file system may leave it when the power fails at that point. What was synced is on the disk. Any other name may be
there or not, and any other file may be complete, truncated, empty or filled with zeros. Then the same command must give the same bytes.
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
    """One change of a name: it was made, replaced or removed."""

    path: Path
    exists: bool
    """False: the name was removed."""
    content: bytes | None = None
    """None: a folder."""
    is_synced: bool = True
    """Whether the content was on the disk before it got this name."""
    changed_ns: int = 0
    """Time of the last change of the content."""


@dataclass(frozen=True, slots=True)
class Remainder:
    """What a name refers to after the power loss."""

    content: bytes | None
    """None: a folder."""
    changed_ns: int


@dataclass(frozen=True, slots=True)
class FolderSync:
    """A folder was synced: of its names, the changes among the first ``num_steps`` steps are on the disk."""

    folder: Path
    num_steps: int


@dataclass(slots=True)
class Recording:
    """All changes below a folder, in order."""

    root: Path
    steps: list[Step | FolderSync] = field(default_factory=list)
    """The first ones describe what existed before, and that it was synced."""
    num_before: int = 0
    """Number of steps that describe what existed before."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _synced: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Inode -> size and time of change of a file when it was synced."""

    def note_existing(self) -> None:
        """Records everything that exists below the root as synced."""
        folders = [self.root] if self.root.exists() else []
        for path in sorted(self.root.rglob("*")):
            content = None if path.is_dir() else path.read_bytes()
            self.steps.append(Step(path, exists=True, content=content, changed_ns=path.stat().st_mtime_ns))
            folders += [path] if path.is_dir() else []
        self.steps += [FolderSync(folder, len(self.steps)) for folder in folders]
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

    def _note(self, step: Step | FolderSync) -> None:
        path = step.folder if isinstance(step, FolderSync) else step.path
        if path == self.root or self.root in path.parents:
            self.steps.append(step)

    def _renaming(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, **others: Any) -> None:
            with self._lock:
                status = Path(source).stat()
                content = Path(source).read_bytes()
                original(source, target, **others)
                is_synced = self._synced.get(status.st_ino) == (status.st_size, status.st_mtime_ns)
                self._note(Step(Path(target).absolute(), True, content, is_synced, status.st_mtime_ns))

        return rename

    def _removing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            with self._lock:
                full_path = _path_of(dir_fd) / path if dir_fd is not None else Path(path).absolute()
                original(path, dir_fd=dir_fd)
                self._note(Step(full_path, exists=False))

        return remove

    def _making(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            with self._lock:
                original(path, mode, dir_fd=dir_fd)
                self._note(Step(Path(path).absolute(), exists=True))

        return mkdir

    def _syncing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fsync(descriptor: int) -> None:
            status, num_steps = os.fstat(descriptor), len(self.steps)
            original(descriptor)
            with self._lock:
                if stat.S_ISDIR(status.st_mode):
                    self._note(FolderSync(_path_of(descriptor), num_steps))
                else:
                    self._synced[status.st_ino] = (status.st_size, status.st_mtime_ns)

        return fsync

    def after_power_loss(self, num_steps: int, rng: random.Random) -> dict[Path, Remainder]:
        """A possible state when the power fails after ``num_steps``: path relative to the root -> what is there.

        For each name independently, all synced steps and a random number of the later ones have taken place.
        """
        steps = self.steps[:num_steps]
        num_synced: dict[Path, int] = {}
        for step in steps:
            if isinstance(step, FolderSync):
                num_synced[step.folder] = max(num_synced.get(step.folder, 0), step.num_steps)
        steps_of_path: dict[Path, list[tuple[int, Step]]] = {}
        for number, step in enumerate(steps):
            if isinstance(step, Step):
                steps_of_path.setdefault(step.path, []).append((number, step))
        remainders: dict[Path, Remainder] = {}
        for path, path_steps in steps_of_path.items():
            num_certain = sum(number < num_synced.get(path.parent, 0) for number, _ in path_steps)
            num_done = rng.randint(num_certain, len(path_steps))
            last = path_steps[num_done - 1][1] if num_done else None
            if last is not None and last.exists:
                remainders[path.relative_to(self.root)] = Remainder(_content_after(last, rng), last.changed_ns)
        return {path: remainder for path, remainder in remainders.items() if _has_parents(path, remainders)}


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _content_after(step: Step, rng: random.Random) -> bytes | None:
    """The content after the power loss: unchanged if it was synced, else complete, empty, truncated, or with zeros."""
    if step.content is None or step.is_synced:
        return step.content
    half = len(step.content) // 2
    return rng.choice(
        (step.content, b"", step.content[:half], bytes(len(step.content)), step.content[:half] + bytes(half))
    )


def _has_parents(path: Path, remainders: Mapping[Path, Remainder]) -> bool:
    return all(folder in remainders for folder in path.parents if folder != Path())


def materialise(remainders: Mapping[Path, Remainder], root: Path) -> None:
    """Writes files and folders to ``root``, with the times of the files."""
    root.mkdir(parents=True, exist_ok=True)
    for path, remainder in sorted(remainders.items()):
        if remainder.content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(remainder.content)
            os.utime(root / path, ns=(remainder.changed_ns, remainder.changed_ns))


def run(output: Path, sources: Path, changes: Sequence[str] = (), *, encoders: bool = False) -> None:
    """Runs the build in this process."""
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
class RecordedBuild:
    """A recorded build, and the files of its dataset."""

    recording: Recording
    sources: Path
    changes: tuple[str, ...]
    expected: dict[str, bytes]
    encoders: bool

    def lose_power(self, number: int, folder: Path) -> list[str]:
        """Runs round ``number`` in ``folder``: power loss at a random step, then the same build. Returns the problems."""
        rng = random.Random(number)
        num_steps = rng.randint(self.recording.num_before, len(self.recording.steps))
        output = folder / "killed"
        materialise(self.recording.after_power_loss(num_steps, rng), output)
        run(output, self.sources, self.changes, encoders=self.encoders)
        actual = contents(output)
        names = sorted(self.expected.keys() | actual.keys())
        problems = [f"differs: {name}" for name in names if self.expected.get(name) != actual.get(name)]
        return problems + [str(difference) for difference in verify(str(output))]


def record(
    folder: Path, changes: Sequence[str] = (), *, before: Path | None = None, sources: Path, encoders: bool = False
) -> RecordedBuild:
    """Records a build in ``folder``: in an empty output, or in a copy of the output ``before``."""
    output = folder / "killed"
    if before is not None:
        shutil.copytree(before, output)  # with the times of its files
    recording = Recording(output)
    recording.note_existing()
    with recording.running():
        run(output, sources, changes, encoders=encoders)
    return RecordedBuild(recording, sources, tuple(changes), contents(output), encoders)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all rounds ended correctly, 1 the problems are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="number of the first round")
    parser.add_argument("--encoders", action="store_true", help="also embed the clips")
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
                print(f"round {number}, {name}: {problems or 'no problems'}", flush=True)  # noqa: T201
                shutil.rmtree(folder / f"{name}-{number}")
    return 1 if num_problems else 0


if __name__ == "__main__":
    sys.exit(main())
