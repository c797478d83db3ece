"""Bugs of oneDNN that the project avoids: one by the limit of :mod:`pipeline.runtime.processor`, one by the length of mels."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import pipeline.runtime.processor  # noqa: F401
from trainer.model.sound_video import SoundInversion

POISONED_BYTES = 1 << 20


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("channels", [64, 192])
def test_a_half_precision_map_one_wide_reads_nothing_but_its_input(
    channels: int, size: int, memory_format: torch.memory_format
) -> None:
    """(24, C, 8, 2) to (24, 96, 4, 1), stride 2, beside freed memory full of NaN."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(24, channels, 8, 2, generator=generator).contiguous(memory_format=memory_format)
    weight = torch.randn(96, channels, size, size, generator=generator) / (channels * size * size) ** 0.5
    wanted = functional.conv2d(maps.bfloat16().float(), weight.bfloat16().float(), None, 2, size // 2)
    assert wanted.shape == (24, 96, 4, 1)
    for _ in range(20):
        poison = [torch.full((POISONED_BYTES >> power,), torch.nan, dtype=torch.bfloat16) for power in range(10)]
        del poison
        found = functional.conv2d(maps.bfloat16(), weight.bfloat16(), None, 2, size // 2)
        assert (
            found.float() - wanted
        ).abs().max() < 0.05  # bf16 keeps 8 bits: 2 ** -8 of values up to 4 or so, and rounding


@pytest.mark.parametrize(
    "module", ["flows.environment", "pipeline.encoders.small.towers", "trainer.model.sample", "trainer.stages"]
)
@pytest.mark.slow
def test_what_computes_limits_the_instruction_set_first(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    code = f"import {module}, os; print(os.environ['ONEDNN_MAX_CPU_ISA'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AVX512_CORE_AMX"]


def test_a_half_precision_map_two_wide_gives_its_weights_a_gradient() -> None:
    """(2, 64, 2, 2) to (2, 64, 1, 1), stride 2. With maps one wide the gradient is NaN on processors with AVX-512 and without bf16."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 64, 2, 2, generator=generator)
    weight = torch.randn(64, 64, 3, 3, generator=generator) / 24
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = weight.bfloat16().to(dtype).requires_grad_()
        maps_of_dtype = maps.bfloat16().to(dtype)
        poison = [torch.full((1 << power,), torch.nan) for power in range(4, 21) for _ in range(2)]
        del poison
        functional.conv2d(maps_of_dtype, leaf, None, 2, 1).float().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.float())
    assert (gradients[1] - gradients[0]).abs().max() < 0.05  # as above


def test_from_the_shortest_input_on_no_map_is_one_wide() -> None:
    encoder = SoundInversion("resnet18", [4, 4], 16).eval()
    widths: list[int] = []
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: widths.extend([inputs[0].shape[3], output.shape[3]]))
    encoder(torch.rand(1, 128, 1), torch.zeros(1, 0))
    assert min(widths) == 2
