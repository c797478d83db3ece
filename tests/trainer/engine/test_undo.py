"""A step that fails leaves weights, optimizers and statistics as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.engine.undo import Undo


def network_with_adam(seed: int, num_steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(num_steps):
        give_gradients(network)
        optimizer.step()
    return network, optimizer


def give_gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)


def everything(network: nn.Module, optimizer: torch.optim.Optimizer, statistic: Tensor) -> dict[str, Any]:
    return copy.deepcopy({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "statistic": statistic})


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [0, 3])
def test_what_was_stepped_is_put_back(num_steps: int) -> None:
    """After no step an optimizer has no state; the step gives it one, which is gone again afterwards."""
    network, optimizer = network_with_adam(0, num_steps)
    statistic = torch.tensor([1.0, 2.0])
    before = everything(network, optimizer, statistic)
    undo = Undo([statistic])
    statistic.add_(5)
    for _ in range(2):  # the main phase, and a regulariser with the same optimizer
        give_gradients(network)
        undo.step(optimizer, is_last=False)
    assert not torch.equal(network.weight, before["network"]["weight"])
    undo.restore()
    after = everything(network, optimizer, statistic)
    assert_equal(after["network"], before["network"])
    assert_equal(after["optimizer"]["state"], before["optimizer"]["state"])
    assert torch.equal(after["statistic"], before["statistic"])


def test_an_undone_step_that_is_made_again_is_the_same_step() -> None:
    network, optimizer = network_with_adam(0, 2)
    undo = Undo([])
    give_gradients(network)
    undo.step(optimizer, is_last=False)
    stepped = everything(network, optimizer, torch.zeros(1))
    undo.restore()
    give_gradients(network)
    optimizer.step()
    assert_equal(everything(network, optimizer, torch.zeros(1))["network"], stepped["network"])


def test_the_last_optimizer_is_not_copied_and_what_fails_in_its_step_is_not_undone() -> None:
    network, optimizer = network_with_adam(0, 1)
    undo = Undo([])
    give_gradients(network)
    undo.step(optimizer, is_last=True)
    assert undo.is_possible
    stepped = everything(network, optimizer, torch.zeros(1))
    undo.restore()
    assert_equal(everything(network, optimizer, torch.zeros(1))["network"], stepped["network"])

    class Full(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise torch.OutOfMemoryError("full")

    for is_last in (False, True):
        undo = Undo([])
        with pytest.raises(torch.OutOfMemoryError):
            undo.step(Full(network.parameters(), lr=1.0), is_last=is_last)
        assert undo.is_possible is not is_last
