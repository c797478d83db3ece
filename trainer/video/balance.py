"""Gradients of the losses at the styles: measured, logged, and used to balance the losses.

Weights that suit one resolution, discriminator or guide do not suit another, since the losses' gradients differ by orders of magnitude.
A balanced loss is multiplied by |∂ reference / ∂ŵ| : |∂ loss / ∂ŵ|, so that its weight says how strongly it moves the styles, compared with
the reference. The idea is that of the adaptive weight of "Taming Transformers" (arXiv:2012.09841, equation 7).

Shape suffixes: B clips, T frames, L layers that take a style each, D numbers of a style.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.engine.ranks import gather_numbers

KEPT = 0.7
"""Share of the running mean that stays when a new measurement comes."""
LARGEST_FACTOR = 1e4
"""A loss whose gradient has nearly vanished is not multiplied by more, as in that paper's code."""


class Balance:
    """Running means of the lengths of the losses' gradients at the styles of a clip."""

    def __init__(self, weights: Mapping[str, float], *, is_on: bool) -> None:
        """``weights``: of the losses, by name. The guide's is the reference, else the first. ``is_on``: whether losses are balanced, or
        only measured."""
        self.weights, self.is_on = weights, is_on
        self.reference = "guide" if "guide" in weights else next(iter(weights))
        self.lengths: dict[str, float] = {}
        """Running means; empty before the first measurement."""
        self.is_due = False
        """Whether this step measures."""
        self.clear()

    def factor(self, name: str) -> float:
        """What the loss is multiplied with, besides its weight. It is the same for all micro-batches and ranks of a step."""
        reference, own = self.lengths.get(self.reference, 0.0), self.lengths.get(name, 0.0)
        return min(reference / own, LARGEST_FACTOR) if self.is_on and min(reference, own) > 0 else 1.0

    def sum_of(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, balanced."""
        first, *others = [weight * self.factor(name) * losses[name] for name, weight in self.weights.items()]
        return sum(others, first)

    def measure(self, losses: Mapping[str, Tensor], styles_BTLD: Tensor) -> None:
        """Adds a micro-batch of the step. The losses are means over its clips; their graphs stay."""
        num_clips = len(styles_BTLD)
        for name in self.weights:
            (gradient_BTLD,) = torch.autograd.grad(losses[name], styles_BTLD, retain_graph=True)
            self._squares[name] += float((gradient_BTLD.detach() * num_clips).square().sum())  # of each clip's own loss
        self._num_clips += num_clips

    def update(self, device: torch.device) -> dict[str, float]:
        """Ends a step that measures. Returns ``lengths`` as measures. Every rank must call it."""
        sums = gather_numbers([*self._squares.values(), float(self._num_clips)], device).sum(0).tolist()
        for name, square in zip(self.weights, sums[:-1], strict=True):
            measured = (square / max(1.0, sums[-1])) ** 0.5
            before = self.lengths.get(name, measured)
            self.lengths[name] = KEPT * before + (1 - KEPT) * measured
        self.clear()
        return {f"{name}_gradient": length for name, length in self.lengths.items()}

    def clear(self) -> None:
        """Forgets what was measured in a step that was not ended."""
        self._squares, self._num_clips = dict.fromkeys(self.weights, 0.0), 0
