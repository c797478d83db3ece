"""Optimizers, gradients, and the learning rate as a function of the samples seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def adamw(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019). Weight decay applies to matrices and kernels, not to biases, norms and scalars."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def learning_rate_share(samples_seen: int, num_samples: int, warmup_share: float) -> float:
    """Share of the full learning rate, 0..1: rises linearly over the warm-up, then falls along half a cosine to 0 at ``num_samples``.

    ``warmup_share`` is a share of ``num_samples``. The first step's share is above 0: it is that of one sample.
    """
    warmup = warmup_share * num_samples
    if samples_seen < warmup:
        return (samples_seen + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * min(1.0, (samples_seen - warmup) / (num_samples - warmup)))) / 2


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradient of every parameter. A missing gradient is set to zeros, so that all ranks exchange messages of one size."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients
