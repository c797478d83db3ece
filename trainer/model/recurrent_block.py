"""The recurrent block: one step of the styles of a group of layers, from one segment of sound to the next.

After "Sound-Guided Semantic Video Generation" (ECCV 2022), section 3.2. Not in the paper: the pull of the styles towards the inversion
of the current segment, so that the sound reaches every frame. It can be left out.

Shape suffixes: B samples, F features, G layers of one group, D numbers of a style, N noise numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Blocks = Literal["three", "one", "one_equal"]
"""The layouts of recurrent blocks; ``SoundVideoConfig.blocks`` explains them."""
START_PULL = 0.7
"""Initial value of ``pull``: the share of the way from the styles before to the inversion of the current segment."""


class RecurrentBlock(nn.Module):
    """One step of the styles of a group of layers: w^t = w^{t-1} + pull (ŵ_t - w^{t-1}) + residual.

    ``ŵ_t`` is the inversion of the current segment. ``pull``, 0..1, is learned, one number for each layer. The residual comes from a GRU
    (Cho et al., arXiv:1406.1078) whose input is the styles before, ``ŵ_t``, the sound's features and noise.
    """

    def __init__(
        self,
        num_layers: int,
        w_dim: int,
        num_features: int,
        hidden_width: int,
        noise_width: int,
        *,
        has_pull: bool = True,
    ) -> None:
        """``has_pull`` False: w^t = w^{t-1} + residual, and no parameter ``pull``."""
        super().__init__()
        self.num_layers, self.w_dim = num_layers, w_dim
        self.cell = nn.GRUCell(num_features + 2 * w_dim + noise_width, hidden_width)
        self.residual = nn.Linear(hidden_width, num_layers * w_dim)
        nn.init.zeros_(self.residual.bias)
        with torch.no_grad():
            self.residual.weight.mul_(0.01)  # at first the styles nearly equal the inversions
        start = torch.full((num_layers, 1), math.log(START_PULL / (1 - START_PULL)))
        self.pull = nn.Parameter(start) if has_pull else None

    def forward(
        self, before_BGD: Tensor, inverted_BGD: Tensor, features_BF: Tensor, noise_BN: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The styles (B, G, D) after the step, and the block's hidden state."""
        inputs = torch.cat([features_BF, before_BGD.mean(1), inverted_BGD.mean(1), noise_BN], 1)
        hidden = self.cell(inputs, hidden)
        residual_BGD = self.residual(hidden).view_as(before_BGD)
        if self.pull is None:
            return before_BGD + residual_BGD, hidden
        return before_BGD + torch.sigmoid(self.pull) * (inverted_BGD - before_BGD) + residual_BGD, hidden


def num_parameters(
    num_layers: int, w_dim: int, num_features: int, hidden_width: int, noise_width: int, *, has_pull: bool = True
) -> int:
    """Number of parameters of a block with these sizes."""
    inputs, outputs = num_features + 2 * w_dim + noise_width, num_layers * w_dim
    cell = 3 * hidden_width * (inputs + hidden_width + 2)
    return cell + (hidden_width + 1) * outputs + num_layers * has_pull


def width_of_one_block(
    group_sizes: Sequence[int], w_dim: int, num_features: int, hidden_width: int, noise_width: int
) -> int:
    """Hidden width of one block for all layers that has as many parameters as a block of ``hidden_width`` for each group.

    Of two widths the one with the smaller difference. One unit of width is about 0.1 % of a block of the paper's size.
    """
    wanted = sum(num_parameters(size, w_dim, num_features, hidden_width, noise_width) for size in group_sizes)
    # 3 h² + b h + c = 0 for the width h: the parameters of one block, less those that are wanted
    inputs, outputs = num_features + 2 * w_dim + noise_width, sum(group_sizes) * w_dim
    b, c = 3 * (inputs + 2) + outputs, outputs + sum(group_sizes) - wanted  # the pulls are as many in both
    lower = max(1, math.floor((math.sqrt(b * b - 12 * c) - b) / 6))

    def difference(width: int) -> int:
        return abs(num_parameters(sum(group_sizes), w_dim, num_features, width, noise_width) - wanted)

    return min((lower, lower + 1), key=difference)
