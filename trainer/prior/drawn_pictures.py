"""Pictures of the prior stage: grids of generated and real pictures, and the features that fidelity compares.

Shape suffixes: N pictures, C = 3 colours, H W rows and columns, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.engine.ranks import gather_rows, num_ranks
from trainer.engine.run import Run
from trainer.model.generator import Generator
from trainer.model.pictures import grid, pictures, to_uint8, write_png
from trainer.prior.fidelity import Fidelity
from trainer.prior.pictures import PictureFolder
from trainer.streaming.reader import Reader

STAGE = "prior"
FIRST_MEASURED_SEED = 1_000_000
"""First seed of the pictures that are measured; the grid shows the seeds 0, 1, ..."""
DRAWN_AT_ONCE = 16
PAIRS_IN_A_ROW = 8


def write_grid(generator: Generator, num_seeds: int, truncation: float, samples_seen: int, run: Run) -> None:
    """Writes a grid of the pictures of the seeds 0, 1, ... to ``samples/SEEN.png`` in the stage's folder, and to TensorBoard."""
    folder = run.stage_folder(STAGE) / "samples"
    folder.mkdir(exist_ok=True)
    drawn = pictures(generator, range(num_seeds), truncation=truncation, batch_size=DRAWN_AT_ONCE)
    joined = grid(drawn)
    write_png(folder / f"{samples_seen:010d}.png", joined)
    run.stats.picture(STAGE, "samples", samples_seen, joined)


def write_pairs(reals_NCHW: Tensor, drawn_NCHW: Tensor, samples_seen: int, run: Run) -> None:
    """Writes real pictures, -1..1, each above its reconstruction, to ``samples/SEEN-reconstructed.png``, and to TensorBoard."""
    folder = run.stage_folder(STAGE) / "samples"
    folder.mkdir(exist_ok=True)
    columns = min(len(reals_NCHW), PAIRS_IN_A_ROW)
    rows = [
        part
        for start in range(0, len(reals_NCHW), columns)
        for part in (reals_NCHW[start : start + columns], drawn_NCHW[start : start + columns])
    ]
    joined = grid(to_uint8(torch.cat(rows)).cpu(), columns)
    write_png(folder / f"{samples_seen:010d}-reconstructed.png", joined)
    run.stats.picture(STAGE, "reconstructed", samples_seen, joined)


def real_features(
    source: Reader | PictureFolder, fidelity: Fidelity, num_pictures: int, num_shown: int, run: Run
) -> Tensor:
    """Features (N, F) of the first ``num_pictures`` real pictures. The first ``num_shown`` are written to ``samples/real.png``.

    Every rank must call it. ``source`` is read once and closed.
    """
    features: list[Tensor] = []
    shown: list[Tensor] = []
    count = 0
    try:
        for batch in source:
            frames_NCHW = batch.frames_BTCHW.flatten(0, 1)
            if sum(map(len, shown)) < num_shown:
                shown.append(frames_NCHW)
            rows_NF, _ = gather_rows(fidelity.features(frames_NCHW))
            features.append(rows_NF)
            count += len(rows_NF)
            if count >= num_pictures:
                break
    finally:
        source.close()
    if run.fabric.is_global_zero and any(len(one) for one in shown):
        folder = run.stage_folder(STAGE) / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / "real.png", grid(torch.cat(shown)[:num_shown].permute(0, 2, 3, 1).contiguous()))
    return torch.cat(features)[:num_pictures]


def fake_features(generator: Generator, fidelity: Fidelity, count: int, run: Run) -> Tensor:
    """Features (N, F) of ``count`` generated pictures, always of the same seeds. Each rank draws its share; every rank must call it."""
    seeds = range(FIRST_MEASURED_SEED, FIRST_MEASURED_SEED + count)
    own = list(seeds[run.fabric.global_rank :: num_ranks()])
    rows = [torch.zeros(0, fidelity.num_features, device=fidelity.device)]
    for start in range(0, len(own), DRAWN_AT_ONCE):
        drawn = pictures(generator, own[start : start + DRAWN_AT_ONCE], batch_size=DRAWN_AT_ONCE)
        rows.append(fidelity.features(drawn.permute(0, 3, 1, 2)))
    return gather_rows(torch.cat(rows))[0]
