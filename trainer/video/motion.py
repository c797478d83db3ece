"""How the fast path learns: from the codes of neighbouring real frames.

Shape suffixes: B clips, J neighbouring frames, K directions, L layers that take a style each, D numbers of a style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.engine.run import Run
from trainer.invert.shared import clip_reader
from trainer.model.fast_path import Moves, principal_directions
from trainer.model.frame_encoder import FrameCodes

if TYPE_CHECKING:
    from trainer.video.settings import VideoRecipe


def movement(codes_BJLD: Tensor) -> Tensor:
    """(B, J, L, D): how the codes of neighbouring frames differ from their mean over these."""
    return codes_BJLD - codes_BJLD.mean(1, keepdim=True)


def motion_loss(moves_BJK: Moves, kept_K: Tensor, real_BJK: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """(), (): how far the mean moves are from real ones, and how badly the chance movement explains the rest.

    The first is a mean square, 1 for a picture at rest. The second is the negative logarithm of the likelihood of the innovations
    e_t = g_t - kept g_(t-1) of the gaps g, normal with the spread s of that moment: log s + e² / (2 s²). A gap has its mean over
    the frames taken off: where the picture stands is no movement. Clips count where ``counts_B`` is true.
    """
    gaps_BJK = real_BJK - moves_BJK.mean
    gaps_BJK = gaps_BJK - gaps_BJK.mean(1, keepdim=True)
    left_BJK, spread_BJK = gaps_BJK.detach(), moves_BJK.spread[:, 1:]
    innovations_BJK = left_BJK[:, 1:] - kept_K * left_BJK[:, :-1]
    unlikely_BJK = spread_BJK.log() + 0.5 * (innovations_BJK / spread_BJK).square()
    return (gaps_BJK.square().mean((1, 2)) * counts_B).mean(), (unlikely_BJK.mean((1, 2)) * counts_B).mean()


def measured_directions(recipe: VideoRecipe, run: Run, frame_codes: FrameCodes, side_px: int) -> Tensor:
    """(K, L, D), on the CPU: the principal directions of the movement of at most ``motion.measured_clips`` training clips.

    Every rank reads the same clips. Raises DataError.
    """
    motion = recipe.video.motion
    assert motion is not None
    reader = clip_reader(recipe, run, "train", recipe.video.batch_size, side_px, bursts=True, whole=True)
    movements: list[Tensor] = []
    try:
        for batch in reader:
            assert batch.bursts_BKCHW is not None
            for burst_JCHW in batch.bursts_BKCHW[: motion.measured_clips - len(movements)]:
                codes_JLD = frame_codes(burst_JCHW.to(run.fabric.device).float() / 127.5 - 1)
                movements.append(movement(codes_JLD[None])[0].cpu())
            if len(movements) >= motion.measured_clips:
                break
    finally:
        reader.close()
    return principal_directions(torch.cat(movements), motion.directions)
