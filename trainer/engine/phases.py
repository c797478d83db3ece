"""What is learned in a step, as data: each phase has a loss, an optimizer of what learns from it, and how often it is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import FitError
from trainer.engine.optimizing import gradients_of
from trainer.engine.ranks import add_over_ranks, gather_numbers

Part = TypeVar("Part")
"""A micro-batch, as the phase's loss takes it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a phase's loss gives."""

    loss: Tensor
    """A scalar: the mean over the micro-batch."""
    measures: dict[str, float]
    """Means over the micro-batch."""


@dataclass(frozen=True, slots=True)
class Phase(Generic[Part]):
    """One optimizer step. The loss of a phase that is run every so many steps is multiplied by their number."""

    name: str
    optimizer: torch.optim.Optimizer
    """Moves what learns, and nothing else."""
    every: int
    loss: Callable[[Part], Terms]
    measures: tuple[str, ...]
    """Names of what ``loss`` tells."""
    is_main: bool = True
    """Whether the optimizer is its own; a regulariser has that of its networks' main phase."""
    max_gradient_norm: float = math.inf
    """Longer gradients are shortened to this."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]


def learn(
    phase: Phase[Part],
    parts: Iterable[tuple[Part, float]],
    networks: Sequence[nn.Module],
    device: torch.device,
    where: Callable[[], str],
) -> dict[str, float]:
    """One optimizer step over the micro-batches of all ranks; the measures' means.

    Each part comes with its share of all samples of all ranks. ``networks`` are all there are: what does not learn in
    this phase gets no gradients. Every rank must call it, also one without parts. Raises FitError, and makes no step, for a
    loss or gradient that is not finite; ``where`` says, for the message, in which batch.
    """
    for network in networks:
        network.requires_grad_(False)
    parameters = phase.parameters
    for parameter in parameters:
        parameter.requires_grad_()
    phase.optimizer.zero_grad()
    measures: dict[str, float] = {}
    for part, share in parts:
        terms = phase.loss(part)
        (terms.loss * (share * phase.every)).backward()  # type: ignore[no-untyped-call]
        for name, value in terms.measures.items():
            measures[name] = measures.get(name, 0.0) + value * share
    add_over_ranks(gradients_of(parameters))
    length = float(torch.nn.utils.clip_grad_norm_(parameters, phase.max_gradient_norm))
    sums = gather_numbers([measures.get(name, 0.0) for name in phase.measures], device).sum(0)
    measures = dict(zip(phase.measures, sums.tolist(), strict=True))
    if not all(math.isfinite(value) for value in [length, *measures.values()]):
        said = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        raise FitError(f"the loss of the phase {phase.name} is not finite ({said}, gradient {length:.4g}) {where()}")
    phase.optimizer.step()
    return measures
