"""The device and the arithmetic that a run chooses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainer.engine.run import RunSettings, make_fabric


@pytest.fixture
def as_before() -> Iterator[None]:
    """What another package has set in this process (TransNetV2's does) is put back."""
    num_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(was_deterministic)


@pytest.mark.usefixtures("as_before")
def test_threads_and_determinism_are_set() -> None:
    make_fabric(RunSettings(device="cpu", num_threads=3))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (3, False)
    make_fabric(RunSettings(device="cpu", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
