"""The fast path: it is causal, hears what happens within a segment, and a long sound is heard as at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.encoders.mel import MelConfig
from tests.trainer.sounding import CONFIG, GENERATOR, tone
from trainer.invert.inversion_loss import mean_squares, motion_loss, movement
from trainer.model.fast_path import NUM_BANDS, FastPath, bands_at
from trainer.model.generator import build_generator
from trainer.model.sound_video import SoundVideoModel
from trainer.rendering.sound_file import sound_of_array
from trainer.rendering.sound_to_video import GenerateSettings, encode_sound, generate, motion_at

RATE_HZ = CONFIG.mel.sample_rate_hz
FPS = 10.0


def model_with_motion(**changes: object) -> SoundVideoModel:
    torch.manual_seed(1)
    config = CONFIG.model_copy(update={"motion_fps": FPS, "motion_width": 8, **changes})
    model = SoundVideoModel(config, build_generator(GENERATOR)).eval().requires_grad_(False)
    if model.motion is not None:
        torch.nn.init.normal_(model.motion.residual.weight, 0, 1.0)
    return model


def test_bands_are_those_of_their_moment() -> None:
    mels = torch.zeros(1, 128, 40)
    mels[:, :, 20:] = 0.5
    mels[:, 64:] = 0
    bands = bands_at(mels, 4)
    assert bands.shape == (1, 4, NUM_BANDS)
    assert bands[0, :, 0].tolist() == [0, 0, 0.5, 0.5]
    assert not bands[0, :, -1].any()


def test_what_comes_later_changes_nothing_before() -> None:
    torch.manual_seed(0)
    path = FastPath(6, 8, torch.full((3, 4), 0.5))
    mels, features = torch.rand(2, 128, 80), torch.rand(2, 4, 6)
    states, _ = path.follow(mels, features, 8)
    changed, later = mels.clone(), features.clone()
    changed[:, :, 50:] = 0
    later[:, 3] = 0  # of the last two moments
    others, _ = path.follow(changed, later, 8)
    torch.testing.assert_close(others[:, :5], states[:, :5])
    assert bool(((others - states)[:, 5:].abs().amax((0, 2)) > 1e-4).all())
    assert path.residuals(states).shape == (2, 8, 3, 4)


def test_a_sound_in_parts_goes_on_from_the_state_before() -> None:
    torch.manual_seed(0)
    path = FastPath(6, 8, torch.full((3, 4), 0.5))
    mels, features = torch.rand(1, 128, 80), torch.rand(1, 4, 6)
    whole, _ = path.follow(mels, features, 8)
    first, state = path.follow(mels[:, :, :40], features[:, :2], 4)
    second, _ = path.follow(mels[:, :, 40:], features[:, 2:], 4, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_it_learns_what_follows_the_loudness() -> None:
    torch.manual_seed(0)
    path, direction = FastPath(6, 16, torch.full((3, 4), 0.5)), torch.randn(3, 4)
    optimizer = torch.optim.Adam(path.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        times = torch.arange(160) / 10 + 10 * torch.rand(8, 1)
        loudness = 0.5 + 0.3 * (times * (1 + torch.rand(8, 1))).sin()
        mels = loudness[:, None] + 0.05 * torch.randn(8, 128, 160)
        codes = bands_at(mels, 16).mean(2)[:, :, None, None] * direction
        states, _ = path.follow(mels, torch.rand(8, 4, 6), 16)
        unit = float(mean_squares(movement(codes)).mean())
        loss = motion_loss(path.residuals(states), codes, torch.ones(8), unit)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.15


def test_every_moment_of_a_long_sound_has_a_state() -> None:
    model = model_with_motion()
    sound = np.concatenate([tone(200.0 * 2**octave, 1.3, seed=octave) for octave in range(6)])  # 7.8 s: two chunks
    encoded = encode_sound(model, sound_of_array(sound, RATE_HZ))
    assert encoded.motion_RW.shape == (78, 8)
    at = [0.0, 0.05, 0.1, 5.0, 100.0]
    moved = motion_at(model, encoded.motion_RW, at)
    assert isinstance(moved, torch.Tensor) and model.motion is not None
    own = model.motion.residuals(encoded.motion_RW)
    torch.testing.assert_close(moved[0], own[0])  # before the middle of the first moment
    torch.testing.assert_close(moved[1], own[0])
    torch.testing.assert_close(moved[2], (own[0] + own[1]) / 2)
    torch.testing.assert_close(moved[3], (own[49] + own[50]) / 2)
    torch.testing.assert_close(moved[4], own[-1])


def test_a_click_within_a_segment_is_seen_at_its_time() -> None:
    """Half a second is one segment; the pictures differ from the click on, and not before it."""
    model = model_with_motion(mel=MelConfig(reference="full_scale", top_db=100.0))
    sound = np.zeros(round(2 * RATE_HZ), np.float32)
    clicked = sound.copy()
    clicked[round(1.32 * RATE_HZ) : round(1.34 * RATE_HZ)] = 0.9
    own = encode_sound(model, sound_of_array(clicked, RATE_HZ))
    quiet = encode_sound(model, sound_of_array(sound, RATE_HZ))
    assert own.features_SF.shape == quiet.features_SF.shape
    apart_R = (own.motion_RW - quiet.motion_RW).abs().amax(1)
    first = int((apart_R > 1e-3).nonzero()[0])
    assert first in (10, 13)  # of the click's segment, or of the click
    assert float(apart_R[13:].max()) > float(apart_R[:13].max())


@pytest.mark.parametrize("fps", [0.0, FPS])
def test_a_video_has_as_many_frames_with_and_without_it(fps: float) -> None:
    model = model_with_motion(motion_fps=fps)
    frames = list(generate(model, tone(300, 1.0), RATE_HZ, GenerateSettings(fps=25.0)))
    assert len(frames) == 25
    assert (model.motion is None) == (fps == 0)
    moves = [float(np.abs(one.astype(int) - other).mean()) for one, other in pairwise(frames)]
    assert (max(moves) > 0.2) == bool(fps)
