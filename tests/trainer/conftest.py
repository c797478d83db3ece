"""What more than one test of the trainer needs: datasets, and one thread to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.datasets import Clip, build_dataset, cut_clips
from tests.trainer.guided import build_guided


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch computes on one thread, whatever the machine has; a recipe's ``run.num_threads`` is undone after the module.

    The networks here are too small to be shared out, and the order of sums, so the last bits, can follow the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return cut_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> Path:
    """43 samples in 5 shards of different sizes. Not to be written into."""
    folder = tmp_path_factory.mktemp("numbered")
    build_dataset(folder, clips, [10, 3, 12, 1, 17])
    return folder


@pytest.fixture(scope="session")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``build_guided`` makes. Not to be written into."""
    folder = tmp_path_factory.mktemp("guided")
    build_guided(folder)
    return folder
