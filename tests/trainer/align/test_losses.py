"""The contrastive losses, against numbers worked by hand: to 1e-5, for float32 rounds a sum of exponentials by some 1e-7."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.align.contrastive import (
    clamp_log_scale,
    cross_entropy_of_positives,
    initial_log_scale,
    sharing,
    symmetric_info_nce,
)

ONE = torch.tensor(1.0)


def test_the_temperature_starts_at_one_over_7_hundredths_and_stays_within_clips_limits() -> None:
    assert math.exp(initial_log_scale()) == pytest.approx(1 / 0.07)
    for start, wanted in ((6.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        log_scale = torch.nn.Parameter(torch.tensor(start))
        clamp_log_scale(log_scale)
        assert float(log_scale.detach()) == pytest.approx(wanted)


def test_one_positive_each_is_plain_info_nce() -> None:
    left = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # cosines with the right: 1 and 0.6, 0 and 0.8
    right = torch.tensor([[3.0, 0.0], [0.6, 0.8]])
    scale = 2.0
    forward = (math.log(math.exp(2) + math.exp(1.2)) - 2 + math.log(math.exp(0) + math.exp(1.6)) - 1.6) / 2
    backward = (math.log(math.exp(2) + math.exp(0)) - 2 + math.log(math.exp(1.2) + math.exp(1.6)) - 1.6) / 2
    found = symmetric_info_nce(left, right, torch.tensor(scale))
    assert float(found) == pytest.approx((forward + backward) / 2, abs=1e-5)


def test_several_positives_share_the_probability() -> None:
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    positives = torch.tensor([[True, True, False], [False, False, True]])
    first = -math.log(math.exp(2) / (2 * math.exp(2) + 1))
    assert float(cross_entropy_of_positives(logits, positives)) == pytest.approx((first + math.log(3)) / 2, abs=1e-5)


def test_positives_are_no_negatives_of_each_other() -> None:
    """Two sounds of one class that lie on their class's text: nothing is left to gain but to tell the two apart."""
    sounds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = sounds.clone()
    together = sharing([frozenset({"rain"}), frozenset({"rain", "wind"}), frozenset({"fire"})])
    with_positives = symmetric_info_nce(sounds, texts, torch.tensor(100.0), together)
    assert float(with_positives) == pytest.approx(2 / 3 * math.log(2), abs=1e-5)  # the least there can be
    gradient_at = sounds.clone().requires_grad_()
    symmetric_info_nce(gradient_at, texts, torch.tensor(10.0), together).backward()
    assert gradient_at.grad is not None
    assert float(gradient_at.grad[0].norm()) == pytest.approx(0.0, abs=1e-3)


def test_who_shares_a_group() -> None:
    groups = [frozenset("a"), frozenset("ab"), frozenset("b"), frozenset()]
    assert sharing(groups).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_a_batch_without_rows_costs_nothing_and_can_be_learned_from() -> None:
    rows = torch.zeros(0, 4, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    loss = symmetric_info_nce(rows, torch.zeros(0, 4), scale)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert scale.grad is not None and float(scale.grad) == 0.0
    assert float(symmetric_info_nce(torch.ones(1, 4), torch.ones(1, 4), ONE)) == 0.0  # nothing to tell it from


def test_the_scale_learns() -> None:
    """Where every sound lies on its own picture, a higher scale lowers the loss."""
    scale = torch.tensor(2.0, requires_grad=True)
    symmetric_info_nce(torch.eye(3), torch.eye(3), scale).backward()
    expected = -2 * math.exp(-2) / (1 + 2 * math.exp(-2))  # d/ds log(1 + 2 exp(-s))
    assert scale.grad is not None and float(scale.grad) == pytest.approx(expected, abs=1e-5)
