"""The fast path: what a sound does from frame to frame. It adds to the slow styles, which change from segment to segment.

Not in the paper, whose frames are seconds apart. Within a segment it is causal: a frame depends on what was heard up to its end, and on
the features of its segment, which say of what the sound is.

Shape suffixes: B sounds, S segments, F features, M mel bands, T mel frames, R moments of the fast path, W numbers of its state, L layers
that take a style each, D numbers of a style.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_BANDS = 16
"""Bands to which a mel is averaged."""
NUM_HEARD = NUM_BANDS + 2
"""Numbers that are heard at a moment: the bands, the loudness and the onset."""
SCENE_WIDTH = 32
"""Numbers to which the features of a segment are brought: they say of what the sound is."""


class PathState(NamedTuple):
    """What a part of a sound leaves for the next one."""

    state: Tensor
    """(1, B, W): the last state."""
    bands_B1N: Tensor
    """The bands of the last moment."""


class FastPath(nn.Module):
    """A recurrent network over the moments of a sound, whose state gives what is added to the styles.

    At each moment it hears the bands of the mel, the loudness, which is their mean, and the onset: how much they have risen since the
    moment before.
    """

    spread_LD: Tensor

    def __init__(self, num_features: int, width: int, spread_LD: Tensor) -> None:
        """``spread_LD``: the standard deviation of each number of a code, the unit of what is added."""
        super().__init__()
        self.num_ws, self.w_dim = spread_LD.shape
        self.register_buffer("spread_LD", spread_LD.clone())
        self.scene = nn.Linear(num_features, SCENE_WIDTH)
        self.cell = nn.GRU(NUM_HEARD + SCENE_WIDTH, width, batch_first=True)
        self.residual = nn.Linear(width, self.num_ws * self.w_dim)
        nn.init.zeros_(self.residual.bias)
        with torch.no_grad():
            self.residual.weight.mul_(0.01)  # at first nothing moves

    def follow(
        self, mels_BMT: Tensor, features_BSF: Tensor, num_moments: int, before: PathState | None = None
    ) -> tuple[Tensor, PathState]:
        """(B, R, W): the state at each moment of sounds, whose segments have these features; and what a following part goes on from.

        ``before``: what an earlier part left. None: nothing was heard before.
        """
        bands_BRN = bands_at(mels_BMT, num_moments)
        rise_BRN = bands_BRN.diff(dim=1, prepend=bands_BRN[:, :1] if before is None else before.bands_B1N).clamp_min(0)
        inputs_BRH = torch.cat([bands_BRN, bands_BRN.mean(2, keepdim=True), rise_BRN.mean(2, keepdim=True)], 2)
        scene_BSE = torch.tanh(self.scene(features_BSF))
        segments_R = torch.arange(num_moments, device=scene_BSE.device) * scene_BSE.shape[1] // num_moments
        inputs = torch.cat([inputs_BRH.to(scene_BSE.dtype), scene_BSE[:, segments_R]], 2)
        states_BRW, last = self.cell(inputs, None if before is None else before.state)
        return states_BRW, PathState(last, bands_BRN[:, -1:])

    def residuals(self, states: Tensor) -> Tensor:
        """(..., L, D): what is added to the styles, for states (..., W)."""
        added: Tensor = self.residual(states)
        return added.view(*states.shape[:-1], self.num_ws, self.w_dim) * self.spread_LD


def bands_at(mels_BMT: Tensor, num_moments: int) -> Tensor:
    """(B, R, ``NUM_BANDS``): the mean of each band in each of ``num_moments`` equal parts of mels."""
    return functional.adaptive_avg_pool2d(mels_BMT, (NUM_BANDS, num_moments)).transpose(1, 2)
