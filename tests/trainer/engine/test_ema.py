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
