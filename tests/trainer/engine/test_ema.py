"""The average of a network's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.engine.ema import average_weight, move_average


def test_a_half_life_halves() -> None:
    weight = average_weight(8, 32, samples_seen=10**6, ramp_up=None)
    assert weight**4 == pytest.approx(0.5)  # four steps of 8 are 32 samples


def test_the_ramp_up_forgets_the_first_weights() -> None:
    assert average_weight(8, 10_000, samples_seen=0, ramp_up=0.05) == 0.0
    # 5 % of 800 samples are 40: 0.5^(8 / 40)
    assert average_weight(8, 10_000, samples_seen=800, ramp_up=0.05) == pytest.approx(0.5**0.2)
    assert average_weight(8, 10_000, samples_seen=10**7, ramp_up=0.05) == pytest.approx(0.5**0.0008)


def averaged(size: int, ramp_up: float | None) -> float:
    """A network of 1 from clip 6400 on, averaged from 0 in steps of ``size`` clips over 640 clips."""
    weight = 1.0
    for step in range(640 // size):
        weight *= average_weight(size, 1000, samples_seen=6400 + step * size, ramp_up=ramp_up)
    return 1 - weight


@pytest.mark.parametrize("size", [8, 32, 64, 640])
def test_another_batch_size_averages_as_many_clips(size: int) -> None:
    assert averaged(size, None) == pytest.approx(1 - 0.5**0.64)
    assert averaged(size, 0.05) == pytest.approx(averaged(8, 0.05), rel=0.03)  # the limit is that of the step's start


def test_a_half_life_of_nothing_keeps_nothing() -> None:
    assert average_weight(1, 0.0, samples_seen=10**6, ramp_up=0.1) == 0.0


def test_parameters_are_averaged_and_buffers_copied() -> None:
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([3.0, 5.0]))
        average.weight.copy_(torch.tensor([1.0, 1.0]))
        network.running_mean.fill_(7.0)
    move_average(average, network, 0.75)
    assert average.weight.tolist() == [1.5, 2.0]
    assert average.running_mean.tolist() == [7.0, 7.0]
    assert network.weight.tolist() == [3.0, 5.0]
