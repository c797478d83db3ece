"""The learning rate's course, and what decays."""

from __future__ import annotations

import pytest
import torch

from trainer.engine.optimizing import adamw, learning_rate_share


def test_the_learning_rate_rises_and_then_falls_to_nothing() -> None:
    shares = [learning_rate_share(seen, 1000, 0.1) for seen in (0, 49, 100, 325, 550, 1000, 2000)]
    assert shares == pytest.approx([1 / 101, 50 / 101, 1.0, 0.8535534, 0.5, 0.0, 0.0], abs=1e-6)
    assert learning_rate_share(0, 1000, 0.0) == 1.0


def test_only_what_multiplies_decays() -> None:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    optimizer = adamw(list(layer.parameters()), learning_rate=0.1, weight_decay=0.5)
    layer(torch.zeros(1, 2)).mul(0).sum().backward()
    optimizer.step()
    assert torch.allclose(layer.weight, torch.full((2, 2), 0.95))
    assert torch.equal(layer.bias, torch.ones(2))
