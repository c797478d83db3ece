"""``python -m trainer.model.sample CHECKPOINT --seeds 0-15 --truncation 0.7 --out grid.png``: a grid of a generator's pictures."""

from __future__ import annotations

from pipeline.runtime.interrupts import end_quietly

if __name__ == "__main__":
    end_quietly()  # of Ctrl-C, also while what follows is imported

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.errors import GeneratorError, UserError
from trainer.model.load import load_generator
from trainer.model.pictures import grid, pictures, write_png

MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1


def seeds_of(text: str) -> list[int]:
    """``0-3,7`` -> 0, 1, 2, 3, 7. Raises GeneratorError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        if match is None:
            raise GeneratorError(f"--seeds: {part!r} is neither a number nor a range; write 0-15 or 1,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or len(seeds) + last - first >= MAX_SEEDS:
            raise GeneratorError(f"--seeds: {part!r} counts down, or there are more than {MAX_SEEDS:,} pictures")
        seeds += range(first, last + 1)
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m trainer.model.sample", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="path or URL of a generator")
    parser.add_argument("--sha256", help="of CHECKPOINT; a URL needs it")
    parser.add_argument("--seeds", default="0-15", help="0-15 or 1,5,8-10 (default: %(default)s)")
    parser.add_argument("--truncation", type=float, default=0.7, help="psi; 1 is none (default: %(default)s)")
    parser.add_argument("--label", type=int, help="class, for a generator that has classes")
    parser.add_argument("--columns", type=int, help="pictures in a row (default: about square)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if options.batch_size < 1 or (options.columns is not None and options.columns < 1):
            raise GeneratorError("--batch-size and --columns start at 1")
        seeds = seeds_of(options.seeds)
        generator = load_generator(options.checkpoint, options.sha256).to(device)
        drawn = pictures(
            generator, seeds, truncation=options.truncation, label=options.label, batch_size=options.batch_size
        )
        write_png(options.out, grid(drawn, options.columns))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"{options.out}: {len(seeds)} pictures of {generator.resolution} x {generator.resolution}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
