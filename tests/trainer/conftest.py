"""What more than one test of the trainer needs: datasets, and one thread to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.datasets import Clip, build_dataset, cut_clips
from tests.trainer.guided import build_guided
from tests.trainer.sounding import GENERATOR
from trainer.model.features import FeatureSettings
from trainer.model.frame_encoder import FrameCodes, FrameEncoderConfig
from trainer.model.generator import build_generator
from trainer.model.load import save_generator


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


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Changes of the recipe: a generator with an encoder of frames, both with random weights."""
    path = tmp_path_factory.mktemp("codes") / "generator.safetensors"
    torch.manual_seed(5)
    config = GENERATOR.model_copy(update={"code_width": 16}).with_codes()
    encoder = FrameEncoderConfig(width=16, features=FeatureSettings(picture_px=32))
    codes = FrameCodes(encoder, config.num_ws, config.w_dim, torch.device("cpu"))
    generator = build_generator(config)
    frames = torch.rand(16, 3, 16, 16) * 2 - 1
    generator.mapping.learn_average(codes(frames), 0.0)
    save_generator(path, config, generator, encoder_config=encoder, encoder=codes.encoder)
    codes_of = "invert.codes={draws = 3, alone_share = 0.5}"
    return (f"invert.generator='{path}'", codes_of, "invert.latent_width=4", "invert.truncation=0")
