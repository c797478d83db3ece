"""Runs the real build on mutated media: ``python -m tests.faults.mutate --cases 2000 --seed 1 [--keep FOLDER]``.

Every case must have one entry in the ledger, without a bug as its error, and no temporary file may remain. Equal seeds give equal files.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.bugs import BUG
from tests.faults.corpus import write_seeds
from tests.faults.media_build import outcomes, recipe_for, run_build

EXTREME_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
HEADER_BYTES = 4096
"""Most mutations change the first or the last so many bytes, where headers are."""


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The content of a file after one to six random changes. ``other``: the content of another file, from which parts are copied."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        size = len(changed)
        if size < 16:
            break
        region = rng.choice((0, max(size - HEADER_BYTES, 0), None))
        at = rng.randrange(size - 8) if region is None else min(region + rng.randrange(HEADER_BYTES), size - 8)
        span = min(rng.choice((1, 4, 16, 188, 2000)), size - at)
        match rng.randrange(9):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2 | 3:
                changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREME_VALUES))
            case 4:
                del changed[at : at + span]
            case 5:
                changed[at:at] = changed[at : at + span] * rng.randint(1, 20)
            case 6:
                changed[at : at + span] = rng.randbytes(span)
            case 7:
                begin = rng.randrange(len(other))
                changed[at : at + span] = other[begin : begin + span]
            case _:
                if rng.random() < 0.3:
                    del changed[rng.randrange(size) :]
                else:
                    changed[at : at + span] = bytes([rng.choice((0, 0xFF))]) * span
    return bytes(changed)


def write_cases(seeds: Sequence[Path], folder: Path, seed: int, first: int, num_cases: int) -> list[Path]:
    """Writes ``num_cases`` cases from number ``first`` on. A case depends only on the seed and its own number."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [path.read_bytes() for path in seeds]
    paths = []
    for number in range(first, first + num_cases):
        rng = random.Random(f"{seed}-{number}")
        index = rng.randrange(len(seeds))
        path = folder / f"{number:06d}{seeds[index].suffix}"
        path.write_bytes(mutated(contents[index], rng.choice(contents), rng))
        paths.append(path)
    return paths


def bad_outcomes(outcomes_by_file: dict[str, list[str]]) -> dict[str, str]:
    """File name -> what is wrong, for files with another number of entries than one, or with a bug as their outcome."""
    wrong = {name: f"{len(entries)} entries" for name, entries in outcomes_by_file.items() if len(entries) != 1}
    return wrong | {name: entries[0] for name, entries in outcomes_by_file.items() if entries[:1] == [BUG]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 every case ended correctly, 1 the wrong cases are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutate")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files and the build (default: a temporary one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mutate-") as temporary:
        folder: Path = options.keep or Path(temporary)
        (folder / "seeds").mkdir(parents=True, exist_ok=True)
        seeds = write_seeds(folder / "seeds")
        files = write_cases(seeds, folder / "cases", options.seed, options.first, options.cases)
        started = time.monotonic()
        run_build(
            recipe_for(
                files, folder / "build", ["execution.process_memory_bytes=1073741824", 'execution.bugs="record"']
            )
        )
        elapsed_seconds = time.monotonic() - started
        outcomes_by_file = outcomes(files, folder / "build" / "hostile")
        left_over = [path.name for path in (folder / "build" / "hostile" / "state" / "tmp").iterdir()]
    counts = Counter(entry for entries in outcomes_by_file.values() for entry in entries)
    wrong = bad_outcomes(outcomes_by_file)
    print(  # noqa: T201
        f"{len(files)} files, seed {options.seed}, {elapsed_seconds:.0f} s ({elapsed_seconds / len(files):.2f} s each)"
    )
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))  # noqa: T201
    for name, problem in wrong.items():
        print(f"{name}: {problem}")  # noqa: T201
    if left_over:
        print(f"left behind: {left_over}")  # noqa: T201
    return 1 if wrong or left_over else 0


if __name__ == "__main__":
    sys.exit(main())
