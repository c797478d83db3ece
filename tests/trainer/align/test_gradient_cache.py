"""Gradient caching: the gradient of a batch in parts is that of the whole batch."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from trainer.align.contrastive import symmetric_info_nce
from trainer.align.gradient_cache import backward_through


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def loss_of(rows: Tensor) -> Tensor:
    return symmetric_info_nce(rows[: len(rows) // 2], rows[len(rows) // 2 :], torch.tensor(10.0))


def cached(network: nn.Module, inputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    network.zero_grad()
    loss = backward_through(network, network, torch.split(inputs, size), loss_of, torch.zeros(0, 8))
    return loss, gradients(network)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_gradients_are_those_of_the_whole_batch(size: int) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_convnext", num_classes=8).double()  # LayerNorm: every sample alone
    inputs = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    whole = loss_of(network(inputs))
    whole.backward()
    wanted = gradients(network)
    loss, found = cached(network, inputs, size)
    assert float(loss) == pytest.approx(float(whole.detach()), abs=1e-12)
    assert float((found - wanted).abs().max()) < 1e-9 * float(wanted.abs().max())


class Noisy(nn.Module):
    """Drops half of its input, and remembers what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 8))
        self.given: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.layers(rows)
        self.given.append(outputs.detach())
        return outputs


def test_both_passes_draw_the_same_and_the_stream_goes_on() -> None:
    torch.manual_seed(0)
    network = Noisy()
    same = torch.split(torch.ones(6, 6), 2)
    backward_through(network, network, same, loss_of, torch.zeros(0, 8))
    first, second = network.given[:3], network.given[3:]
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    backward_through(network, network, same, loss_of, torch.zeros(0, 8))
    assert not torch.equal(network.given[6], first[0])


def test_batch_norm_takes_each_micro_batch_by_itself_and_counts_it_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8)).double()
    inputs = 3 + torch.randn(8, 6, dtype=torch.float64)
    loss_of(torch.cat([network(part) for part in torch.split(inputs, 4)])).backward()
    wanted, counted = gradients(network), {name: buffer.clone() for name, buffer in network.named_buffers()}
    for name, buffer in network.named_buffers():
        buffer.copy_(torch.ones_like(buffer) if "var" in name else torch.zeros_like(buffer))
    _, found = cached(network, inputs, 4)
    assert float((found - wanted).abs().max()) < 1e-12
    assert all(torch.equal(buffer, counted[name]) for name, buffer in network.named_buffers())
    assert int(counted["0.num_batches_tracked"]) == 2


def test_a_loss_that_is_not_finite_leaves_the_gradients_alone() -> None:
    network = nn.Linear(6, 8)
    loss = backward_through(network, network, [torch.full((4, 6), torch.nan)], loss_of, torch.zeros(0, 8))
    assert bool(loss.isnan())
    assert network.weight.grad is None
