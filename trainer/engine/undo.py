"""Undoes a step that failed. No more is copied than a step can have changed before it fails."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Undo:
    """The weights, optimizers and statistics that a step changes, as they were before it."""

    def __init__(self, statistics: Iterable[Tensor]) -> None:
        """``statistics``: what forward passes change; it is copied at once. Weights are copied by ``step``, when it is their turn."""
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in statistics]
        self._optimizers: dict[torch.optim.Optimizer, dict[str, Any]] = {}
        self.is_possible = True
        """False while the last optimizer makes its step: nothing else can fail after it, so its weights are not copied."""

    def step(self, optimizer: torch.optim.Optimizer, *, is_last: bool) -> bool:
        """Makes the optimizer's step. ``is_last``: no other step follows.

        Returns whether the weights are finite after it. After the last step it does not look: that could not be undone.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if not is_last and optimizer not in self._optimizers:
            self._optimizers[optimizer] = copy.deepcopy(optimizer.state_dict())
            self._tensors += [(weight, weight.detach().clone()) for weight in weights]
        self.is_possible = not is_last
        optimizer.step()
        self.is_possible = True
        return is_last or bool(torch.nn.utils.get_total_norm([weight.detach() for weight in weights]).isfinite())

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for tensor, before in self._tensors:
            tensor.copy_(before)
        for optimizer, state in self._optimizers.items():
            optimizer.load_state_dict(state)
