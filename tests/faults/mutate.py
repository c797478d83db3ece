"""Mutated media through the real build: ``python -m tests.faults.mutate --cases 2000 --seed 1 [--keep FOLDER]``.

Every case must end as one entry of the ledger, no error may be without a name, and nothing may be left behind. Equal seeds
give equal files.
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

VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
HEAD_BYTES = 4096


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The file after one to six changes, more of them near its ends, where headers lie."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        size = len(changed)
        if size < 16:
            break
        near = rng.choice((0, max(size - HEAD_BYTES, 0), None))
        at = rng.randrange(size - 8) if near is None else min(near + rng.randrange(HEAD_BYTES), size - 8)
        span = min(rng.choice((1, 4, 16, 188, 2000)), size - at)
        match rng.randrange(9):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2 | 3:
                changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(VALUES))
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
    """Cases ``first`` and on: each depends on the seed and its own number alone."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [path.read_bytes() for path in seeds]
    paths = []
    for number in range(first, first + num_cases):
        rng = random.Random(f"{seed}-{number}")
        chosen = rng.randrange(len(seeds))
        path = folder / f"{number:06d}{seeds[chosen].suffix}"
        path.write_bytes(mutated(contents[chosen], rng.choice(contents), rng))
        paths.append(path)
    return paths


def bad_outcomes(found: dict[str, list[str]]) -> dict[str, str]:
    """Files whose end is not one entry with an error of its own name, and what is wrong."""
    wrong = {name: f"{len(entries)} entries" for name, entries in found.items() if len(entries) != 1}
    return wrong | {name: entries[0] for name, entries in found.items() if entries[:1] == [BUG]}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every case ended as it should. 1: not so; the cases are listed and kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutate")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files and the build; none: a temporary one")
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
        elapsed = time.monotonic() - started
        found = outcomes(files, folder / "build" / "hostile")
        left = [path.name for path in (folder / "build" / "hostile" / "state" / "tmp").iterdir()]
    counts = Counter(entry for entries in found.values() for entry in entries)
    wrong = bad_outcomes(found)
    print(f"{len(files)} files, seed {options.seed}, {elapsed:.0f} s ({elapsed / len(files):.2f} s each)")  # noqa: T201
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))  # noqa: T201
    for name, what in wrong.items():
        print(f"{name}: {what}")  # noqa: T201
    if left:
        print(f"left behind: {left}")  # noqa: T201
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
