"""Pictures of a generator: as arrays of bytes, as a grid, and as PNG files.

Shape suffixes: B pictures, C colours, H W rows and columns, Z width of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import GeneratorError
from trainer.model.generator import Generator, latents


@torch.no_grad()
def pictures(
    generator: Generator,
    seeds: Sequence[int],
    *,
    truncation: float = 1.0,
    label: int | None = None,
    batch_size: int = 8,
) -> Tensor:
    """The pictures of the seeds: (len(seeds), H, W, colours), uint8, on the CPU. ``label`` is the class, for a generator with classes.

    Raises GeneratorError if a generator with classes gets no label, or one that it does not have.
    """
    device = generator.w_avg.device
    if generator.c_dim and (label is None or not 0 <= label < generator.c_dim):
        raise GeneratorError(f"this generator has classes: give --label, 0 to {generator.c_dim - 1}")
    rows = []
    for first in range(0, len(seeds), batch_size):
        z_BZ = latents(list(seeds[first : first + batch_size]), generator.z_dim).to(device)
        c_BC = None
        if generator.c_dim and label is not None:
            c_BC = torch.eye(generator.c_dim, device=device)[[label] * len(z_BZ)]
        rows.append(to_uint8(generator(z_BZ, c_BC, truncation_psi=truncation)).cpu())
    return torch.cat(rows)


def to_uint8(pictures_BCHW: Tensor) -> Tensor:
    """(B, C, H, W), about -1..1 -> (B, H, W, C), uint8. -1 becomes 0, 1 becomes 255; values outside are clamped."""
    return (pictures_BCHW.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def grid(pictures_BHWC: Tensor, num_columns: int | None = None) -> NDArray[np.uint8]:
    """(rows * H, columns * W, C): the pictures in reading order; unused cells are black. ``num_columns`` None: about square."""
    count, height, width, colours = pictures_BHWC.shape
    columns = num_columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = np.zeros((rows * columns, height, width, colours), dtype=np.uint8)
    filled[:count] = pictures_BHWC.numpy()
    return filled.reshape(rows, columns, height, width, colours).swapaxes(1, 2).reshape(rows * height, -1, colours)


def write_png(path: Path, picture_HWC: NDArray[np.uint8]) -> None:
    """Writes ``path`` through a temporary name. Raises GeneratorError if that fails."""
    order = (
        [2, 1, 0] if picture_HWC.shape[2] == 3 else [0]
    )  # OpenCV expects BGR; of any other number of colours only the first is shown
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture_HWC[:, :, order]))
    if not done:
        raise GeneratorError(f"a picture of {picture_HWC.shape} cannot be written as PNG; take fewer seeds")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        raise GeneratorError(f"{path} cannot be written: {error}") from error
