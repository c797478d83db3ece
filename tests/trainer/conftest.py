"""Datasets that more than one test of the trainer reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import Clip, build_dataset, cut_clips
from tests.trainer.guided import build_guided


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
