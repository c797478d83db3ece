"""What is counted of a network, held against closed forms; and what an estimate counts for a stage, against its real steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.guided import prepared
from tests.trainer.invert import stages as of_invert
from tests.trainer.sounding import GENERATOR
from tests.trainer.video import stages as of_video
from trainer.counting import Accelerator, Calls, count_pass
from trainer.estimate import Estimate, StageCost
from trainer.invert.stage import Invert
from trainer.streaming.reader import Reader
from trainer.video.stage import Video

NUM_IN, NUM_OUT, KERNEL, SIDE = 3, 5, 3, 8


@pytest.fixture
def convolution() -> nn.Conv2d:
    with torch.device("meta"):
        return nn.Conv2d(NUM_IN, NUM_OUT, KERNEL, padding=1, bias=False)


def test_a_convolution(convolution: nn.Conv2d) -> None:
    pictures = {num: torch.zeros(num, NUM_IN, SIDE, SIDE, device="meta") for num in (4, 8)}
    one = count_pass(convolution, lambda num: convolution(pictures[num]))
    (kernel,) = one.kernels
    num_weights = NUM_OUT * NUM_IN * KERNEL**2
    assert one.operations == 2 * num_weights * SIDE**2
    assert not kernel.is_half
    assert kernel.item_bytes == 4 * (NUM_IN + NUM_OUT) * SIDE**2
    assert kernel.batch_bytes == 4 * num_weights
    assert one.saved_bytes == 4 * NUM_IN * SIDE**2  # its input, for the gradient of the weights
    half = count_pass(convolution, lambda num: convolution(pictures[num]), autocast=True)
    assert (half.operations, half.saved_bytes) == (one.operations, one.saved_bytes / 2)
    assert half.kernels[0].is_half and half.kernels[0].item_bytes == kernel.item_bytes / 2


def test_a_kernel_takes_as_long_as_its_arithmetic_or_its_memory(convolution: nn.Conv2d) -> None:
    pictures = {num: torch.zeros(num, NUM_IN, SIDE, SIDE, device="meta") for num in (4, 8)}
    one = count_pass(convolution, lambda num: convolution(pictures[num]))
    (kernel,) = one.kernels
    slow_memory = Accelerator(1e12, 1e12, 1.0, utilisation=0.5)
    assert slow_memory.seconds(one, 10) == (10 * kernel.item_bytes + kernel.batch_bytes) / 0.5
    slow_arithmetic = Accelerator(1e12, 1.0, 1e12, utilisation=0.25)
    assert slow_arithmetic.seconds(one, 10) == 10 * one.operations / 0.25


def test_a_view_moves_nothing() -> None:
    with torch.device("meta"):
        network = nn.Flatten()
    assert count_pass(network, lambda num: network(torch.empty(num, 2, 3, device="meta"))).operations == 0
    with Calls() as calls:
        torch.zeros(2, 3).flatten().view(6)
    assert [call.moved_bytes for call in calls.calls] == [24]


@pytest.mark.slow
@pytest.mark.parametrize("hears", ["true", "false"])
def test_steps_of_video_make_the_operations_that_are_estimated(guided: Path, tmp_path: Path, hears: str) -> None:
    changes = (of_video.THREE, f"video.hears={hears}", "video.measure_gradients_every=1000")
    stage, reader = of_video.stage_of(guided, tmp_path / "run", *changes)
    stage.num_steps = 2  # steps 2 and 3: R1 is due in one, a measurement of gradients in none
    assert estimated(guided, tmp_path, "video", *changes) == pytest.approx(counted(stage, reader, 2), rel=0.15)


@pytest.mark.slow
def test_steps_of_invert_make_the_operations_that_are_estimated(guided: Path, tmp_path: Path) -> None:
    stage, reader = of_invert.stage_of(guided, tmp_path / "run")
    num_steps = 2 * stage.model.config.num_frames  # in which windows are heard as often as segments
    assert estimated(guided, tmp_path, "invert") == pytest.approx(counted(stage, reader, num_steps), rel=0.15)


def counted(stage: Invert | Video, reader: Reader, num_steps: int) -> float:
    """The operations of a mean step."""
    batch = of_video.first_batch(reader)
    with Calls() as calls:
        for _ in range(num_steps):
            stage.step(batch)
    return sum(call.operations for call in calls.calls) / num_steps


def estimated(folder: Path, out: Path, stage: str, *changes: str) -> float:
    """The operations of a step. Small parts are left out: losses, mapping network, recurrent blocks, texts."""
    recipe, _ = prepared(folder, out / "estimated", *changes)
    cost = Estimate(recipe, GENERATOR).of(stage)
    assert isinstance(cost, StageCost)
    batch_size: int = getattr(recipe, stage).batch_size
    return cost.operations_per_sample * batch_size
