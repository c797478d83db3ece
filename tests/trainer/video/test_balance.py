"""Gradients of the losses at the styles: measured right, and balanced where that is asked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.video.stages import first_batch, stage_of
from trainer.video.balance import KEPT, LARGEST_FACTOR, Balance

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

CPU = torch.device("cpu")
NAMES = ("image", "video", "guide")
EQUAL = dict.fromkeys(NAMES, 1.0)


def losses_of(styles_BTLD: Tensor, steepness: dict[str, float]) -> dict[str, Tensor]:
    """Means over the clips of losses whose gradient at a clip's styles, 2 x 3 x 4 numbers, has this value everywhere."""
    return {name: slope * styles_BTLD.flatten(1).sum(1).mean() for name, slope in steepness.items()}


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (3, 1)])
def test_a_length_is_that_of_one_clips_gradient_however_clips_are_split(sizes: tuple[int, ...]) -> None:
    balance = Balance(EQUAL, is_on=True)
    steepness = {"guide": 1.0, "image": 50.0, "video": 0.1}
    for size in sizes:
        styles = torch.randn(size, 2, 3, 4, requires_grad=True)
        balance.measure(losses_of(styles, steepness), styles)
    measures = balance.update(CPU)
    assert measures == pytest.approx({f"{name}_gradient": slope * math.sqrt(24) for name, slope in steepness.items()})
    assert [balance.factor(name) for name in NAMES] == pytest.approx([1 / 50, 10.0, 1.0])


def test_the_lengths_are_running_means() -> None:
    balance = Balance({"guide": 1.0}, is_on=True)
    for slope in (1.0, 2.0):
        styles = torch.zeros(1, 2, 3, 4, requires_grad=True)
        balance.measure(losses_of(styles, {"guide": slope}), styles)
        balance.update(CPU)
    assert balance.lengths["guide"] == pytest.approx((KEPT + 2 * (1 - KEPT)) * math.sqrt(24))


def test_nothing_is_balanced_before_a_measurement_without_a_gradient_or_when_it_is_off() -> None:
    before, flat, off = Balance(EQUAL, is_on=True), Balance(EQUAL, is_on=True), Balance(EQUAL, is_on=False)
    for balance, steepness in (
        (flat, {"guide": 1.0, "image": 0.0, "video": 2.0}),
        (off, {"guide": 1.0, "image": 5.0, "video": 2.0}),
    ):
        styles = torch.zeros(1, 2, 3, 4, requires_grad=True)
        balance.measure(losses_of(styles, steepness), styles)
        balance.update(CPU)
    assert [before.factor(name) for name in NAMES] == [1.0, 1.0, 1.0]
    assert [flat.factor(name) for name in NAMES] == pytest.approx([1.0, 0.5, 1.0])
    assert [off.factor(name) for name in NAMES] == [1.0, 1.0, 1.0]


def test_a_loss_whose_gradient_vanishes_is_not_blown_up() -> None:
    balance = Balance(EQUAL, is_on=True)
    styles = torch.zeros(1, 2, 3, 4, requires_grad=True)
    balance.measure(losses_of(styles, {"guide": 1.0, "image": 1e-9, "video": 1.0}), styles)
    balance.update(CPU)
    assert balance.factor("image") == LARGEST_FACTOR


def test_without_the_guide_the_first_loss_is_the_reference() -> None:
    balance = Balance({"image": 1.0, "video": 2.0}, is_on=True)
    styles = torch.zeros(1, 2, 3, 4, requires_grad=True)
    losses = losses_of(styles, {"image": 3.0, "video": 1.5})
    balance.measure(losses, styles)
    balance.update(CPU)
    assert [balance.factor(name) for name in ("image", "video")] == pytest.approx([1.0, 2.0])
    assert float(balance.sum_of({"image": torch.tensor(5.0), "video": torch.tensor(7.0)})) == pytest.approx(
        5 + 2 * 2 * 7
    )


@pytest.mark.slow
def test_a_step_measures_its_losses_and_the_next_one_balances_them(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.measure_gradients_every=2")
    batch = first_batch(reader)
    first = stage.step(batch)
    balance = stage.contest.balance
    assert set(balance.lengths) == set(NAMES)
    assert {name: first[f"{name}_gradient"] for name in NAMES} == balance.lengths
    assert min(balance.lengths.values()) > 1e-6
    weights = stage.settings.loss_weights
    assert first["loss"] == pytest.approx(sum(weights[name] * first[f"{name}_loss"] for name in NAMES), rel=1e-5)
    lengths = dict(balance.lengths)
    second = stage.step(batch)
    assert balance.lengths == lengths, "this step measures nothing"
    balanced = sum(weights[name] * lengths["guide"] / lengths[name] * second[f"{name}_loss"] for name in NAMES)
    assert second["loss"] == pytest.approx(balanced, rel=1e-5)


@pytest.mark.slow
def test_another_weight_is_the_share_of_the_gradient_that_it_says(guided: Path, tmp_path: Path) -> None:
    """At the styles, the balanced image loss pulls half as hard as the guide when its weight is half."""
    stage, reader = stage_of(guided, tmp_path, "video.image_weight=0.5", "video.video_weight=0.25")
    stage.step(first_batch(reader))
    balance, weights = stage.contest.balance, stage.settings.loss_weights
    pulls = {name: weights[name] * balance.factor(name) * balance.lengths[name] for name in NAMES}
    assert pulls["image"] / pulls["guide"] == pytest.approx(0.5)
    assert pulls["video"] / pulls["guide"] == pytest.approx(0.25)
