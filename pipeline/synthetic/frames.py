"""``python -m pipeline.synthetic.frames FOLDER``: paints frames of scenes of many seeds, as PNG files named CLASS-SEED-NUMBER.png.

The packaged generator learns from them. The sources of the demo have seeds below 100, and the packaged pair those from 1000 to 1011.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2

from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import NATURE_KINDS
from pipeline.synthetic.textures import Image

SECONDS = 10.0
"""Length of a scene."""


def painted_frames(kind: str, seed: int, num_frames: int, side_px: int) -> Iterator[Image]:
    """Frames of a scene, evenly over its length: (side, side, 3) uint8 RGB, the middle of a 16:9 picture."""
    times = [SECONDS * (index + 0.5) / num_frames for index in range(num_frames)]
    width = 2 * round(side_px * 8 / 9)
    left = (width - side_px) // 2
    for frame in scene_frames(kind, seed, times, width=width, height=side_px, seconds=SECONDS):
        yield frame[:, left : left + side_px]


def _paint(folder: Path, kind: str, seed: int, num_frames: int, side_px: int) -> None:
    cv2.setNumThreads(1)
    for number, frame in enumerate(painted_frames(kind, seed, num_frames, side_px)):
        cv2.imwrite(str(folder / f"{kind}-{seed}-{number}.png"), frame[:, :, ::-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and paints the frames."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthetic.frames", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go; those of the same names are replaced")
    parser.add_argument(
        "--first-seed", type=int, default=2000, metavar="N", help="seed of the first scenes (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="scenes of each class (%(default)s)")
    parser.add_argument("--frames", type=int, default=5, metavar="N", help="frames of each scene (%(default)s)")
    parser.add_argument("--side", type=int, default=128, metavar="PX", help="side of the frames (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers) as pool:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        painting = [
            pool.submit(_paint, options.folder, kind, seed, options.frames, options.side)
            for seed in seeds
            for kind in NATURE_KINDS
        ]
        for one in painting:
            one.result()
    print(f"{len(painting) * options.frames:,} frames of {len(painting):,} scenes in {options.folder}")  # noqa: T201


if __name__ == "__main__":
    main()
