"""What :mod:`pipeline.runtime.processor` keeps clear of. Without its limit the convolutions fail on processors with AMX, and only there."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import pipeline.runtime.processor  # noqa: F401

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
def test_what_computes_limits_the_instruction_set_first(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    code = f"import {module}, os; print(os.environ['ONEDNN_MAX_CPU_ISA'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AVX512_CORE_AMX"]
