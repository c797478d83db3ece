"""Small models of sound and video with random weights, sounds whose pitch is known, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainer.model.generator import GeneratorConfig, build_generator
from trainer.model.sound_video import SoundVideoConfig, SoundVideoModel
from trainer.model.sound_video_file import SoundVideoHeader, save_model

GENERATOR = GeneratorConfig(kind="stylegan2", resolution=16, z_dim=16, w_dim=16, mapping_layers=2, widths=(16, 16, 8))
CONFIG = SoundVideoConfig(backbone="test_resnet", num_frames=3, window_seconds=1.5, hidden_width=16, noise_width=4)


def random_model(seed: int = 0) -> SoundVideoModel:
    """Its sound is louder in its styles than a new model's, so that pictures of different sounds differ in every pixel's value."""
    torch.manual_seed(seed)
    model = SoundVideoModel(CONFIG, build_generator(GENERATOR)).eval().requires_grad_(False)
    for head in model.inversion.heads:
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, 0, 0.5)
    return model


def saved_run(folder: Path, stage: str = "video", encoder_ids: tuple[str, ...] = ()) -> Path:
    """The folder of a run that holds such a model."""
    header = SoundVideoHeader.model_validate(
        {"stage": stage, "model": CONFIG, "generator": GENERATOR, "encoder_ids": encoder_ids, "samples_seen": 7}
    )
    (folder / stage).mkdir(parents=True)
    save_model(folder / stage / "best.safetensors", header, random_model())
    return folder


def tone(hz: float, seconds: float, rate_hz: int = 44_100, seed: int = 0) -> np.ndarray:
    """(samples,) float32: a sine in faint noise."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).normal(0, 1e-4, len(times))
    return (0.3 * np.sin(2 * np.pi * hz * times) + noise).astype(np.float32)
