"""The recurrent block with and without its pull, and one block that has the parameters of three."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.sounding import CONFIG, GENERATOR
from trainer.model.generator import build_generator
from trainer.model.recurrent_block import RecurrentBlock, num_parameters, width_of_one_block
from trainer.model.sound_video import SoundVideoModel

LAYERS, W_DIM, FEATURES, HIDDEN, NOISE = 3, 8, 5, 6, 2


def made(*, has_pull: bool) -> RecurrentBlock:
    torch.manual_seed(0)
    return RecurrentBlock(LAYERS, W_DIM, FEATURES, HIDDEN, NOISE, has_pull=has_pull)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, None]:
    """Styles before, inversion, features, noise, no hidden state."""
    torch.manual_seed(1)
    styles = torch.randn(2, batch, LAYERS, W_DIM)
    return styles[0], styles[1], torch.randn(batch, FEATURES), torch.randn(batch, NOISE), None


def model_with(**changes: object) -> SoundVideoModel:
    torch.manual_seed(0)
    return SoundVideoModel(CONFIG.model_copy(update=changes), build_generator(GENERATOR)).eval().requires_grad_(False)


@torch.no_grad()
def test_without_its_pull_a_block_adds_its_residual_alone() -> None:
    block = made(has_pull=False)
    assert [name for name, _ in block.named_parameters() if "pull" in name] == []
    before, inverted, features, noise, hidden = inputs()
    after, hidden_after = block(before, inverted, features, noise, hidden)
    wanted = block.residual(hidden_after).view(2, LAYERS, W_DIM)
    assert torch.equal(after, before + wanted)
    torch.nn.init.zeros_(block.residual.weight)
    stays, _ = block(before, inverted, features, noise, hidden)
    assert torch.equal(stays, before)


@torch.no_grad()
def test_a_pull_of_nearly_nothing_is_no_pull() -> None:
    pulled, free = made(has_pull=True), made(has_pull=False)
    assert pulled.pull is not None
    pulled.pull.fill_(-50.0)
    assert torch.allclose(pulled(*inputs())[0], free(*inputs())[0], atol=1e-6)
    pulled.pull.fill_(0.0)
    before, inverted, *_ = inputs()
    moved = pulled(*inputs())[0] - free(*inputs())[0]
    assert torch.allclose(moved, (inverted - before) / 2, atol=1e-6)


@pytest.mark.parametrize("step", [1, 2])
def test_without_the_pull_sound_comes_through_the_memory_alone(step: int) -> None:
    model = model_with(pull=False)
    start = model.start(torch.randn(2, GENERATOR.z_dim))
    features = torch.randn(2, 3, model.inversion.num_features)
    noise = torch.randn(2, 3, model.num_noise)
    other = features.clone()
    other[:, step] += 1
    apart_S = (model.carry(features, start, noise) - model.carry(other, start, noise)).abs().amax((0, 2, 3))
    assert (apart_S > 0).tolist() == [index >= step for index in range(3)]
    for block in model.blocks:
        assert isinstance(block, RecurrentBlock)
        torch.nn.init.zeros_(block.residual.weight)
    walked = model.carry(features, start, noise)
    assert torch.equal(walked, walked[:, :1].expand_as(walked))


@pytest.mark.parametrize("has_pull", [True, False])
def test_the_number_of_parameters_is_that_of_the_block(has_pull: bool) -> None:
    counted = sum(one.numel() for one in made(has_pull=has_pull).parameters())
    assert num_parameters(LAYERS, W_DIM, FEATURES, HIDDEN, NOISE, has_pull=has_pull) == counted


@pytest.mark.parametrize(
    ("group_sizes", "w_dim", "features", "hidden", "noise"),
    [([4, 4, 6], 512, 512, 512, 32), ([4, 4, 8], 512, 512, 256, 32), ([4, 4, 10], 512, 512, 1024, 0)],
)
def test_no_other_width_is_nearer_to_three_blocks(
    group_sizes: list[int], w_dim: int, features: int, hidden: int, noise: int
) -> None:
    wanted = sum(num_parameters(size, w_dim, features, hidden, noise) for size in group_sizes)
    counts = {width: num_parameters(sum(group_sizes), w_dim, features, width, noise) for width in range(1, 4 * hidden)}
    nearest = min(counts, key=lambda width: abs(counts[width] - wanted))
    assert width_of_one_block(group_sizes, w_dim, features, hidden, noise) == nearest
    assert counts[nearest] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("pull", [True, False])
def test_one_block_of_equal_size_is_wider_than_one_of_the_same_width(pull: bool) -> None:
    three, equal, one = (model_with(blocks=blocks, pull=pull) for blocks in ("three", "one_equal", "one"))
    assert len(equal.blocks) == len(one.blocks) == 1
    sizes = {name: sum(each.numel() for each in model.blocks.parameters()) for name, model in
             {"three": three, "equal": equal, "one": one}.items()}  # fmt: skip
    assert sizes["one"] < 0.6 * sizes["three"]
    assert sizes["equal"] == pytest.approx(sizes["three"], rel=0.03)  # at 16 units of width one unit is 3 %
