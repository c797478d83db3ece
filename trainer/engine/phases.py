"""The phases of a training step, as data. A phase is a loss, the optimizer of the parameters that learn from it, and how often it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import FitError
from trainer.engine.compiling import uncompiled
from trainer.engine.optimizing import gradients_of
from trainer.engine.ranks import add_over_ranks, gather_numbers

Part = TypeVar("Part")
"""A micro-batch in the form that the loss of a phase takes."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the loss of a phase returns."""

    loss: Tensor
    """(): the mean over the micro-batch."""
    measures: dict[str, float]
    """Means over the micro-batch."""


def _nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class Phase(Generic[Part]):
    """One optimizer step. The loss of a phase that runs every n-th step is multiplied by n."""

    name: str
    optimizer: torch.optim.Optimizer
    """Holds the parameters that learn in this phase, and no others."""
    every: int
    """Steps from one run of the phase to the next."""
    loss: Callable[[Part], Terms]
    measures: tuple[str, ...]
    """Names of the measures that ``loss`` returns."""
    is_main: bool = True
    """Whether the optimizer belongs to this phase. A regulariser uses the optimizer of its network's main phase; its loss is a penalty on
    gradients, and is computed uncompiled."""
    max_gradient_norm: float = math.inf
    """Longer gradients are scaled down to this norm."""
    before: Callable[[], None] = _nothing
    """Called before the first micro-batch; gradients are 0 then."""
    after: Callable[[], None] = _nothing
    """Called after the last micro-batch. It may add to the gradients."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimizer."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]


def learn(
    phase: Phase[Part],
    parts: Iterable[tuple[Part, float]],
    networks: Sequence[nn.Module],
    device: torch.device,
    where: Callable[[], str],
    step: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Makes one optimizer step over the micro-batches of all ranks, and returns the means of the measures.

    Each part comes with its share of the samples of all ranks. ``networks`` are all networks of the stage: parameters that do not learn
    in this phase get no gradients. Every rank must call it, also a rank without parts. Raises FitError, and makes no step, for a loss
    or gradient that is not finite; ``where`` returns the batch, for the message. ``step`` makes the optimizer's step, and returns whether
    the weights are finite: FitError if not. None: the optimizer makes it.
    """
    for network in networks:
        network.requires_grad_(False)
    parameters = phase.parameters
    for parameter in parameters:
        parameter.requires_grad_()
    phase.optimizer.zero_grad()
    measures: dict[str, float] = {}
    phase.before()
    for part, share in parts:
        with nullcontext() if phase.is_main else uncompiled():
            terms = phase.loss(part)
            (terms.loss * (share * phase.every)).backward()  # type: ignore[no-untyped-call]
        for name, value in terms.measures.items():
            measures[name] = measures.get(name, 0.0) + value * share
    phase.after()
    add_over_ranks(gradients_of(parameters))
    length = float(torch.nn.utils.clip_grad_norm_(parameters, phase.max_gradient_norm))
    sums = gather_numbers([measures.get(name, 0.0) for name in phase.measures], device).sum(0)
    measures = dict(zip(phase.measures, sums.tolist(), strict=True))
    if not all(math.isfinite(value) for value in [length, *measures.values()]):
        values = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        raise FitError(f"the loss of the phase {phase.name} is not finite ({values}, gradient {length:.4g}) {where()}")
    if step is None:
        phase.optimizer.step()
    elif not step():
        raise FitError(
            f"the step of the phase {phase.name} left weights that are not finite {where()}; try a lower learning rate"
        )
    return measures
