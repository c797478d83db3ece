"""The exponential moving average of a network's weights over training. The averaged network is the one that generates."""

from __future__ import annotations

import torch
from torch import nn


def average_weight(num_new: int, half_life: float, samples_seen: int, ramp_up: float | None) -> float:
    """Weight of the old average after a step on ``num_new`` samples: 0.5 ^ (num_new / half-life), 0..1.

    ``half_life`` is in samples. It is limited to ``ramp_up * samples_seen``, so that the first weights are soon forgotten
    (StyleGAN2-ADA, arXiv:2006.06676, appendix C, and its published settings). ``ramp_up`` None: no limit.
    """
    if ramp_up is not None:
        half_life = min(half_life, samples_seen * ramp_up)
    return float(0.5 ** (num_new / max(half_life, 1e-8)))


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, weight: float) -> None:
    """Sets the parameters to weight · average + (1 - weight) · network. Buffers are running averages already: they are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.copy_(value.lerp(mean, weight))
    for target, buffer in zip(average.buffers(), network.buffers(), strict=True):
        target.copy_(buffer)
