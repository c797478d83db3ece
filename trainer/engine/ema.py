"""The average of a network's weights over training, which is what generates."""

from __future__ import annotations

import torch
from torch import nn


def average_weight(num_new: int, half_life: float, samples_seen: int, ramp_up: float | None) -> float:
    """Weight of the old average when ``num_new`` samples were learned from: 0.5 ^ (num_new / half-life), 0..1.

    The half-life, in samples, is at most ``ramp_up`` of the samples seen before (None: the whole of it from the start), so
    that the first weights are soon forgotten (StyleGAN2-ADA, arXiv:2006.06676, appendix C, and its published settings).
    """
    if ramp_up is not None:
        half_life = min(half_life, samples_seen * ramp_up)
    return float(0.5 ** (num_new / max(half_life, 1e-8)))


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, weight: float) -> None:
    """average = weight · average + (1 - weight) · network for parameters; buffers, averages themselves, are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.copy_(value.lerp(mean, weight))
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
