"""One step of a phase: who learns, how parts are weighed, and what happens to a loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import FitError
from trainer.engine.phases import Phase, Terms, learn

CPU = torch.device("cpu")


class Pair:
    """A network that learns, and one behind it that the loss passes through."""

    def __init__(self, *, rate: float = 0.1, every: int = 1, longest: float = math.inf, factor: float = 1.0) -> None:
        torch.manual_seed(0)
        self.learns, self.behind = nn.Linear(3, 2), nn.Linear(2, 1)
        self.factor = factor
        optimizer = torch.optim.SGD(self.learns.parameters(), lr=rate)
        self.phase: Phase[Tensor] = Phase(
            "first", optimizer, every, self.loss, ("size", "unseen"), max_gradient_norm=longest
        )

    def loss(self, rows: Tensor) -> Terms:
        size = self.behind(self.learns(rows)).square().mean()
        return Terms(size * self.factor, {"size": float(size.detach())})

    def learn(self, *parts: tuple[Tensor, float], where: Callable[[], str] = lambda: "here") -> dict[str, float]:
        return learn(self.phase, parts, [self.learns, self.behind], CPU, where)

    def weights(self) -> list[Tensor]:
        return [one.detach().clone() for one in (*self.learns.parameters(), *self.behind.parameters())]

    def gradient(self) -> Tensor:
        return torch.cat([one.grad.flatten() for one in self.learns.parameters() if one.grad is not None])


def rows(number: int) -> Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(number))


def test_only_the_networks_of_the_phase_get_gradients_and_move() -> None:
    pair = Pair()
    before = pair.weights()
    wanted = pair.loss(rows(4)).measures["size"]
    measures = pair.learn((rows(4), 1.0))
    assert measures == {"size": pytest.approx(wanted), "unseen": 0.0}
    assert [torch.equal(*both) for both in zip(before, pair.weights(), strict=True)] == [False, False, True, True]
    assert [one.grad for one in pair.behind.parameters()] == [None, None]
    assert [one.requires_grad for one in pair.behind.parameters()] == [False, False]
    moved = torch.cat([(old - new).flatten() for old, new in zip(before[:2], pair.weights()[:2], strict=True)])
    assert torch.allclose(moved, 0.1 * pair.gradient(), atol=1e-6)  # a difference of weights near 1


def test_gradients_of_the_step_before_are_forgotten() -> None:
    pair, fresh = Pair(rate=1e-30), Pair(rate=1e-30)
    pair.learn((rows(4), 1.0))
    pair.learn((rows(4), 1.0))
    fresh.learn((rows(4), 1.0))
    assert torch.equal(pair.gradient(), fresh.gradient())


def test_parts_by_their_shares_are_the_same_step_as_all_at_once() -> None:
    whole, parts = Pair(), Pair()
    some = rows(8)
    first = whole.learn((some, 1.0))
    second = parts.learn((some[:5], 5 / 8), (some[5:], 3 / 8))
    # float32, summed in another order: some 1e-7 of numbers near 1; the shares are off by eighths where they are wrong
    assert second == pytest.approx(first, rel=1e-5)
    assert torch.allclose(whole.gradient(), parts.gradient(), rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(*both, atol=1e-6) for both in zip(whole.weights(), parts.weights(), strict=True))


def test_a_phase_that_is_run_now_and_then_weighs_so_much_more() -> None:
    each, fourth = Pair(), Pair(every=4)
    assert each.learn((rows(4), 1.0)) == fourth.learn((rows(4), 1.0))  # what is told stays the mean
    assert torch.allclose(fourth.gradient(), 4 * each.gradient())


def test_long_gradients_are_shortened() -> None:
    free, bound = Pair(), Pair(longest=0.01)
    free.learn((rows(4), 1.0))
    bound.learn((rows(4), 1.0))
    assert float(bound.gradient().norm()) == pytest.approx(0.01, rel=1e-3)
    direction = free.gradient() / free.gradient().norm()
    assert torch.allclose(bound.gradient(), 0.01 * direction, rtol=1e-3, atol=1e-6)


def test_a_rank_without_parts_takes_the_step_of_no_gradient() -> None:
    pair = Pair()
    before = pair.weights()
    assert pair.learn() == {"size": 0.0, "unseen": 0.0}
    assert all(torch.equal(*both) for both in zip(before, pair.weights(), strict=True))


@pytest.mark.parametrize(
    ("factor", "part", "message"),
    [
        (
            math.inf,
            rows(4),
            r"the loss of the phase first is not finite \(size .*, gradient (nan|inf)\) in the third batch",
        ),
        (1.0, torch.full((4, 3), math.nan), r"the loss of the phase first is not finite \(size nan, unseen 0"),
    ],
)
def test_what_is_not_finite_moves_nothing(factor: float, part: Tensor, message: str) -> None:
    pair = Pair(factor=factor)
    before = pair.weights()
    with pytest.raises(FitError, match=message):
        pair.learn((part, 1.0), where=lambda: "in the third batch")
    assert all(torch.equal(*both) for both in zip(before, pair.weights(), strict=True))
