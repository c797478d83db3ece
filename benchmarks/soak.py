"""Checks that memory, open files, processes and temporary files do not grow: ``python -m benchmarks.soak [--sources 500] [--epochs 3]``.

Builds a dataset from the sources, one after another, and then reads it for the epochs. Prints the resource use of all processes during
the first and the last hundred sources, and in each epoch. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.events import Event, SourceEvent
from pipeline.synthetic.video import write_video
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

HEIGHT, WIDTH, FPS, SECONDS = 96, 160, 25, 2
GROWTH, GROWTH_MB = 1.1, 24.0
"""Memory counts as flat if it is at most GROWTH times its first value plus GROWTH_MB at the end."""
MORE_FILES = 16
"""How many more files may be open at the end. A batch on its way between two processes holds some; a leak of one a source exceeds it."""

RECIPE = """
name = "soak"
output = "{folder}/soak"
sources = ["{folder}/list.jsonl"]
probe = {{ min_short_side_px = 64 }}
clips = {{ length_seconds = 2.0, min_seconds = 1.5 }}
dedup = {{ reject_duplicates = false, relate_by_picture = false, relate_by_sound = false }}
cut = {{ renditions = [{{ name = "48", short_side_px = 48 }}], preset = "ultrafast" }}
split = {{ train = 1.0, validation = 0.0, test = 0.0 }}
execution = {{ workers = 1, downloads = 1, batch_size = 100000 }}
"""


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """The resources of a process and all its descendants."""

    memory_mb: float
    """Their own pages, and their part of shared pages (PSS)."""
    open_files: int
    processes: int
    temporary_files: int


def resource_use(temporary: Sequence[Path]) -> ResourceUse:
    """The present resource use of this process and its descendants. ``temporary``: folders whose files count as temporary."""
    memory_bytes = open_files = num_processes = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended meanwhile
            memory_bytes += process.memory_full_info().pss
            open_files += process.num_fds()
            num_processes += 1
    num_files = sum(1 for folder in temporary for path in folder.rglob("*") if path.is_file())
    return ResourceUse(memory_bytes / 2**20, open_files, num_processes, num_files)


def write_test_sources(folder: Path, num_sources: int) -> None:
    """Writes copies of one video, each with a number in its file so that the contents differ, and their source list."""
    (folder / "videos").mkdir()
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(48_000 * SECONDS).astype(np.float32) * 0.1
    write_video(folder / "video.mp4", _frames(rng), sound.clip(-1, 1), fps=FPS)
    content = (folder / "video.mp4").read_bytes()
    with (folder / "list.jsonl").open("w") as source_list:
        for number in range(num_sources):
            path = folder / "videos" / f"{number:05d}.mp4"
            path.write_bytes(content + struct.pack(">I4sQ", 16, b"free", number))
            source_list.write(json.dumps({"id": f"s{number:05d}", "path": str(path)}) + "\n")


def _frames(rng: np.random.Generator) -> Iterator[npt.NDArray[np.uint8]]:
    """A coarse pattern that moves sideways, with a little noise."""
    pattern = np.kron(rng.integers(40, 216, (6, 10, 3)), np.ones((HEIGHT // 6, WIDTH // 10, 1), np.int64))
    for number in range(FPS * SECONDS):
        noisy = np.roll(pattern, number, axis=1) + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
        yield noisy.clip(0, 255).astype(np.uint8)


def build_and_watch(folder: Path) -> list[ResourceUse]:
    """Builds the dataset. Returns the resource use at the end of each source."""
    (folder / "soak.toml").write_text(RECIPE.format(folder=folder))
    running = Build(load_recipe(folder / "soak.toml"))
    samples: list[ResourceUse] = []
    temporary = [folder / "tmp", folder / "soak" / "state" / "tmp", folder / "soak" / "state" / "downloads" / "tmp"]

    def measure(event: Event) -> None:
        if isinstance(event, SourceEvent):
            samples.append(resource_use(temporary))

    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, measure)
        running.finish(measure)
    finally:
        running.close()
    return samples


def read(folder: Path, epochs: int) -> list[list[ResourceUse]]:
    """Reads the dataset. Returns, for each epoch, the resource use at each of its batches."""
    settings = ReaderSettings(batch_size=16, num_workers=2, num_frames=2, picture_px=48, window_seconds=1.0)
    reader = Reader([DatasetMix(location=str(folder / "soak"))], settings, split="train", seed=0)
    try:
        samples: list[list[ResourceUse]] = []
        for _ in range(epochs):
            samples.append([resource_use([folder / "tmp"]) for _ in reader])
    finally:
        reader.close()
    return samples


def medians_of(samples: Sequence[ResourceUse]) -> list[float]:
    """The median of each field."""
    return [statistics.median(values) for values in zip(*map(astuple, samples), strict=True)]


def is_flat(first: Sequence[float], last: Sequence[float]) -> bool:
    """Whether no resource grew from the first medians to the last ones, within the tolerances above."""
    memory, open_files, *counts = zip(first, last, strict=True)
    is_memory_flat = memory[1] <= memory[0] * GROWTH + GROWTH_MB
    return (
        is_memory_flat
        and open_files[1] <= open_files[0] + MORE_FILES
        and all(after <= before for before, after in counts)
    )


def show(name: str, samples: Sequence[ResourceUse]) -> list[float]:
    """Prints the medians in a row, and returns them."""
    medians = medians_of(samples)
    print(f"{name:<22}" + "".join(f"{value:>17.1f}" for value in medians), flush=True)
    return medians


def soak(folder: Path, num_sources: int, epochs: int) -> int:
    """Builds and reads a dataset in ``folder``, and prints the resource use. Returns 0 if it is flat, else 1."""
    write_test_sources(folder, num_sources)
    print(" " * 22 + "".join(f"{field.name:>17}" for field in fields(ResourceUse)))
    started = time.monotonic()
    samples = build_and_watch(folder)
    part = min(100, len(samples) // 3)
    first, last = show(f"sources 1 to {part}", samples[:part]), show(f"the last {part}", samples[-part:])
    is_build_flat = is_flat(first, last)
    print(
        f"{len(samples)} sources, {time.monotonic() - started:.0f} s: {'flat' if is_build_flat else 'NOT FLAT'}",
        flush=True,
    )
    gc.collect()
    by_epoch = [show(f"epoch {number}", epoch) for number, epoch in enumerate(read(folder, epochs))]
    is_reader_flat = is_flat(by_epoch[0], by_epoch[-1])
    print(f"{len(by_epoch)} epochs: {'flat' if is_reader_flat else 'NOT FLAT'}")
    return 0 if is_build_flat and is_reader_flat else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 nothing grew, 1 something grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--sources", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside is not None:
        return soak(options.inside, options.sources, options.epochs)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        (Path(name) / "tmp").mkdir()
        # in a process of its own, whose temporary files are all in the folder and are no longer in use when it is deleted
        words = ["--sources", str(options.sources), "--epochs", str(options.epochs), "--inside", name]
        environment = {**os.environ, "TMPDIR": str(Path(name) / "tmp")}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.soak", *words], env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
