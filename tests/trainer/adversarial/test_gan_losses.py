"""The adversarial losses against numbers worked by hand and against differences."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.adversarial.losses import discriminator_loss, generator_loss, lazy_adam_settings, path_lengths, r1_penalty


def test_the_logistic_losses_are_those_of_the_paper() -> None:
    # softplus(0) = ln 2; softplus(ln 3) = ln 4; softplus(-ln 3) = ln(4/3)
    fake = torch.tensor([[0.0], [math.log(3)]])
    real = torch.tensor([[math.log(3)], [math.log(3)]])
    assert float(generator_loss(fake)) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-5)
    wanted = math.log(4 / 3) + (math.log(2) + math.log(4)) / 2
    assert float(discriminator_loss(real, fake)) == pytest.approx(wanted, abs=1e-5)


def test_the_generator_still_has_a_gradient_where_it_is_beaten() -> None:
    logit = torch.tensor([[-20.0]], requires_grad=True)
    generator_loss(logit).backward()
    assert logit.grad is not None
    assert float(logit.grad) == pytest.approx(-1.0, abs=1e-6)


def test_r1_of_a_known_function() -> None:
    # D(x) = x1² + 3 x2: the gradient is (2 x1, 3), its square at (1, 5) is 4 + 9 and at (2, 0) is 16 + 9
    x = torch.tensor([[1.0, 5.0], [2.0, 0.0]], requires_grad=True)
    assert float(r1_penalty(x[:, :1] ** 2 + 3 * x[:, 1:], x).detach()) == pytest.approx((13 + 25) / 2)


def test_r1_and_its_gradient_agree_with_differences() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(16, 1)
    )
    network = network.double()
    pictures = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def squared_slope() -> float:
        """The gradient over the pixels, one difference at a time."""
        total, step = 0.0, 1e-5
        with torch.no_grad():
            for index in range(pictures[0].numel()):
                moved = torch.zeros(pictures[0].numel(), dtype=torch.float64)
                moved[index] = step
                way = moved.view(pictures[0].shape)
                slope = (network(pictures + way) - network(pictures - way)) / (2 * step)
                total += float(slope.square().mean())
        return total

    penalty = r1_penalty(network(inputs := pictures.clone().requires_grad_()), inputs)
    assert float(penalty.detach()) == pytest.approx(squared_slope(), rel=1e-6)
    penalty.backward()
    weight = network[0].weight
    found = float(weight.grad[0, 0, 0, 0])
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1e-4
        above = squared_slope()
        weight[0, 0, 0, 0] -= 2e-4
        below = squared_slope()
    assert found == pytest.approx((above - below) / 2e-4, rel=1e-4)


def test_path_lengths_of_a_known_function() -> None:
    # pictures of 2 x 2 whose every pixel is w1 + 2 w2 with noise 1: J^T y = (4, 8) / sqrt(4) = (2, 4), squared 20
    ws_BLD = torch.tensor([[[0.3, -1.0]]], requires_grad=True)
    pictures = (ws_BLD[:, 0, 0] + 2 * ws_BLD[:, 0, 1])[:, None, None, None].expand(1, 1, 2, 2)
    assert path_lengths(pictures, ws_BLD, torch.ones(1, 1, 2, 2)).tolist() == pytest.approx([math.sqrt(20)])


def test_path_lengths_average_the_squares_of_the_layers() -> None:
    # one layer moves the only pixel by 3, the other by 4: sqrt((9 + 16) / 2)
    ws_BLD = torch.zeros(2, 2, 1, requires_grad=True)
    pictures = (3 * ws_BLD[:, 0] + 4 * ws_BLD[:, 1])[:, :, None, None]
    assert path_lengths(pictures, ws_BLD, torch.ones(2, 1, 1, 1)).tolist() == pytest.approx([math.sqrt(12.5)] * 2)


def test_the_rate_and_betas_of_a_lazy_regulariser() -> None:
    # every 16 steps one more: c = 16 / 17
    rate, betas = lazy_adam_settings(0.002, (0.0, 0.99), 16)
    assert rate == pytest.approx(0.002 * 16 / 17)
    assert betas == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert lazy_adam_settings(0.002, (0.0, 0.99), None) == (0.002, (0.0, 0.99))
