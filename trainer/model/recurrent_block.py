"""The recurrent block: one step of the styles of a group of layers, from one segment of sound to the next.

After "Sound-Guided Semantic Video Generation" (ECCV 2022), section 3.2. Not in the paper: a block also pulls the styles towards the
inversion of the current segment, so that the sound reaches every frame.

Shape suffixes: B samples, F features, G layers of one group, D numbers of a style, N noise numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

START_PULL = 0.7
"""Initial value of ``pull``: the share of the way from the styles before to the inversion of the current segment."""


class RecurrentBlock(nn.Module):
    """One step of the styles of a group of layers: w^t = w^{t-1} + pull (ŵ_t - w^{t-1}) + residual.

    ``ŵ_t`` is the inversion of the current segment. ``pull``, 0..1, is learned, one number for each layer. The residual comes from a GRU
    (Cho et al., arXiv:1406.1078) whose input is the styles before, ``ŵ_t``, the sound's features and noise.
    """

    def __init__(self, num_layers: int, w_dim: int, num_features: int, hidden_width: int, noise_width: int) -> None:
        super().__init__()
        self.num_layers, self.w_dim = num_layers, w_dim
        self.cell = nn.GRUCell(num_features + 2 * w_dim + noise_width, hidden_width)
        self.residual = nn.Linear(hidden_width, num_layers * w_dim)
        nn.init.zeros_(self.residual.bias)
        with torch.no_grad():
            self.residual.weight.mul_(0.01)  # at first the styles nearly equal the inversions
        self.pull = nn.Parameter(torch.full((num_layers, 1), math.log(START_PULL / (1 - START_PULL))))

    def forward(
        self, before_BGD: Tensor, inverted_BGD: Tensor, features_BF: Tensor, noise_BN: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The styles (B, G, D) after the step, and the block's hidden state."""
        inputs = torch.cat([features_BF, before_BGD.mean(1), inverted_BGD.mean(1), noise_BN], 1)
        hidden = self.cell(inputs, hidden)
        residual_BGD = self.residual(hidden).view_as(before_BGD)
        return before_BGD + torch.sigmoid(self.pull) * (inverted_BGD - before_BGD) + residual_BGD, hidden
