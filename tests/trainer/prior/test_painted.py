"""The packaged generator of painted scenes: it gives back scenes that it has not seen, and draws such scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.synthetic.frames import painted_frames
from pipeline.synthetic.sounds import NATURE_KINDS
from trainer.model.generator import latents
from trainer.model.load import load_generator, read_generator_file
from trainer.prior.networks import PAINTED_FILE

UNSEEN = 9000
"""A seed that neither the file nor anything else has learned from."""


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """(K, 3, H, W), -1..1: a frame of a scene of each class."""
    painted = np.stack([next(iter(painted_frames(kind, UNSEEN, 1, 64))) for kind in NATURE_KINDS])
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_it_is_small_enough_to_be_packaged() -> None:
    assert PAINTED_FILE.stat().st_size < 10_000_000


def test_a_scene_that_it_never_saw_comes_back(frames: torch.Tensor) -> None:
    file = read_generator_file(PAINTED_FILE)
    with torch.no_grad():
        drawn = file.generator().synthesis(file.frame_codes(torch.device("cpu"))(frames), noise_mode="const")
    apart = (drawn[:, None] - frames[None]).abs().mean((2, 3, 4))  # of each drawn picture from each real one
    assert apart.argmin(1).tolist() == list(range(len(NATURE_KINDS)))
    others = (apart.sum() - apart.diagonal().sum()) / (apart.numel() - len(apart))
    assert float(apart.diagonal().mean()) < 0.35 * float(others)


def test_its_draws_are_various_scenes(frames: torch.Tensor) -> None:
    generator = load_generator(PAINTED_FILE)
    with torch.no_grad():
        drawn = generator(latents(list(range(48)), generator.z_dim))
    nearest = (drawn[:, None] - frames[None]).abs().mean((2, 3, 4)).argmin(1)
    assert len(set(nearest.tolist())) >= 6
