"""``python -m trainer.model.sample CHECKPOINT --seeds 0-15 --truncation 0.7 --out grid.png``: pictures of a generator."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import GeneratorError, UserError
from trainer.model.generator import Generator, latents
from trainer.model.load import load_generator

MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1


def seeds_of(text: str) -> list[int]:
    """``0-3,7`` -> 0, 1, 2, 3, 7. Raises GeneratorError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        if match is None:
            raise GeneratorError(f"--seeds: {part!r} is neither a number nor a range; write 0-15 or 1,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or len(found) + last - first >= MAX_SEEDS:
            raise GeneratorError(f"--seeds: {part!r} counts down, or there are more than {MAX_SEEDS:,} pictures")
        found += range(first, last + 1)
    return found


@torch.no_grad()
def pictures(
    generator: Generator,
    seeds: Sequence[int],
    *,
    truncation: float = 1.0,
    label: int | None = None,
    batch_size: int = 8,
) -> Tensor:
    """(len(seeds), H, W, colours) uint8, on the CPU: -1 is 0 and 1 is 255. ``label`` is a class, where there are any."""
    device = generator.w_avg.device
    if generator.c_dim and (label is None or not 0 <= label < generator.c_dim):
        raise GeneratorError(f"this generator has classes: give --label, 0 to {generator.c_dim - 1}")
    rows = []
    for first in range(0, len(seeds), batch_size):
        z_BZ = latents(list(seeds[first : first + batch_size]), generator.z_dim).to(device)
        c_BC = None
        if generator.c_dim and label is not None:
            c_BC = torch.eye(generator.c_dim, device=device)[[label] * len(z_BZ)]
        rows.append(to_bytes(generator(z_BZ, c_BC, truncation_psi=truncation)).cpu())
    return torch.cat(rows)


def to_bytes(pictures_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) about -1..1 -> (B, H, W, C) uint8."""
    return (pictures_BCHW.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def grid(pictures_BHWC: Tensor, num_columns: int | None = None) -> NDArray[np.uint8]:
    """(rows * H, columns * W, C): pictures in reading order, the rest black. ``num_columns`` None: about square."""
    count, height, width, colours = pictures_BHWC.shape
    columns = num_columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = np.zeros((rows * columns, height, width, colours), dtype=np.uint8)
    filled[:count] = pictures_BHWC.numpy()
    return filled.reshape(rows, columns, height, width, colours).swapaxes(1, 2).reshape(rows * height, -1, colours)


def write_png(path: Path, picture_HWC: NDArray[np.uint8]) -> None:
    """Write ``path`` through a temporary name. Raises GeneratorError where that cannot be."""
    order = [2, 1, 0] if picture_HWC.shape[2] == 3 else [0]  # OpenCV writes blue first; other colours are not for eyes
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture_HWC[:, :, order]))
    if not done:
        raise GeneratorError(f"a picture of {picture_HWC.shape} cannot be written as PNG; take fewer seeds")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        raise GeneratorError(f"{path} cannot be written: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when there is nothing to show."""
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
