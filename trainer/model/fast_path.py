"""The fast path: what a sound does from frame to frame. It adds to the slow styles, which change from segment to segment.

Not in the paper, whose frames are seconds apart. A picture moves in a few directions of W+. At each moment the path says how far it goes
in each of them, and how much is left to chance: waves roll and flames flicker at no time that a sound tells, but more when it is loud.
Chance is a first-order autoregressive process, whose innovations have the spread that the sound gives.

Within a segment the path is causal: a frame depends on what was heard up to its end, and on the features of its segment, which say of what
the sound is.

Shape suffixes: B sounds, S segments, F features, M mel bands, T mel frames, R moments of the fast path, W numbers of its state,
K directions, N pictures, L layers that take a style each, D numbers of a style.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor, nn
from torch.nn import functional

from pipeline.schema import stable_hash

NUM_BANDS = 16
"""Bands to which a mel is averaged."""
NUM_HEARD = NUM_BANDS + 2
"""Numbers that are heard at a moment: the bands, the loudness and the onset."""
SCENE_WIDTH = 32
"""Numbers to which the features of a segment are brought: they say of what the sound is."""
MOST_KEPT = 0.98
"""Largest share of a chance movement that is left at the next moment: it dies away."""
LEAST_SPREAD = 1e-3
"""Least spread of the innovations."""


class PathState(NamedTuple):
    """What a part of a sound leaves for the next one."""

    state: Tensor
    """(1, B, W): the last state."""
    bands_B1N: Tensor
    """The bands of the last moment."""


class Moves(NamedTuple):
    """How far pictures go in each direction, in standard deviations of how real ones do."""

    mean: Tensor
    """(..., K): what the sound says."""
    spread: Tensor
    """(..., K): standard deviation of the innovations of what it leaves to chance."""


class FastPath(nn.Module):
    """A recurrent network over the moments of a sound, whose state gives the moves.

    At each moment it hears the bands of the mel, the loudness, which is their mean, and the onset: how much they have risen since the
    moment before.
    """

    directions_KLD: Tensor
    """Each as long as the standard deviation of real movement along it. Zeros: nothing moves."""

    def __init__(self, num_features: int, width: int, num_directions: int, num_ws: int, w_dim: int) -> None:
        super().__init__()
        self.register_buffer("directions_KLD", torch.zeros(num_directions, num_ws, w_dim))
        self.scene = nn.Linear(num_features, SCENE_WIDTH)
        self.cell = nn.GRU(NUM_HEARD + SCENE_WIDTH, width, batch_first=True)
        # without a bias, which no loss would see: where a picture stands is no move
        self.mean = nn.Linear(width, num_directions, bias=False)
        self.spread = nn.Linear(width, num_directions)
        self.kept = nn.Parameter(torch.ones(num_directions))
        nn.init.constant_(self.spread.bias, -1.0)
        with torch.no_grad():
            self.mean.weight.mul_(0.01)  # at first the sound says nothing

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

    def moves(self, states: Tensor) -> Moves:
        """The moves at states (..., W)."""
        return Moves(self.mean(states), functional.softplus(self.spread(states)) + LEAST_SPREAD)

    @property
    def kept_share(self) -> Tensor:
        """(K,): the share of a chance movement that is left at the next moment."""
        return MOST_KEPT * torch.sigmoid(self.kept)

    def along(self, movement: Tensor) -> Tensor:
        """(..., K): how far movements (..., L, D) of codes go in each direction, in standard deviations."""
        rows = self.directions_KLD.flatten(1)
        return movement.flatten(-2) @ (rows / rows.square().sum(1, keepdim=True).clamp_min(1e-12)).T

    def added(self, coefficients: Tensor) -> Tensor:
        """(..., L, D): what is added to the styles, for moves (..., K)."""
        added: Tensor = torch.tensordot(coefficients, self.directions_KLD.to(coefficients.dtype), 1)
        return added

    @torch.no_grad()
    def played(self, states_RW: Tensor, seed: int) -> Tensor:
        """(R, K): the moves at successive moments, with the chance of a seed. The first rows are the same for any number of moments."""
        means_RK, spreads_RK = self.moves(states_RW)
        chance = np.random.default_rng(int(stable_hash("chance of a movement", seed, length=15), 16))
        innovations_RK = spreads_RK.cpu().double().numpy() * chance.standard_normal(spreads_RK.shape)
        kept_K = self.kept_share.cpu().double().numpy()
        columns = [lfilter([1.0], [1.0, -kept], innovations_RK[:, number]) for number, kept in enumerate(kept_K)]
        return means_RK + torch.from_numpy(np.stack(columns, 1)).to(means_RK)


def bands_at(mels_BMT: Tensor, num_moments: int) -> Tensor:
    """(B, R, ``NUM_BANDS``): the mean of each band in each of ``num_moments`` equal parts of mels."""
    return functional.adaptive_avg_pool2d(mels_BMT, (NUM_BANDS, num_moments)).transpose(1, 2)


def principal_directions(movements_NLD: Tensor, num_directions: int) -> Tensor:
    """(K, L, D): the principal directions of movements, each as long as their standard deviation along it; zeros where there are no more.

    The sign of a direction makes its largest number positive.
    """
    rows = movements_NLD.flatten(1)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    count = min(num_directions, len(sizes))
    largest = directions[:count].gather(1, directions[:count].abs().argmax(1, keepdim=True))
    scaled = directions[:count] * largest.sign() * sizes[:count, None] / max(1, len(rows)) ** 0.5
    return functional.pad(scaled, (0, 0, 0, num_directions - count)).view(num_directions, *movements_NLD.shape[1:])
