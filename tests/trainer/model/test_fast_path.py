"""The fast path: it is causal, hears what happens within a segment, and a long sound is heard as at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.encoders.mel import MelConfig
from tests.trainer.sounding import CONFIG, GENERATOR, tone
from trainer.model.fast_path import NUM_BANDS, FastPath, bands_at, principal_directions
from trainer.model.generator import build_generator
from trainer.model.sound_video import SoundVideoModel
from trainer.rendering.sound_file import sound_of_array
from trainer.rendering.sound_to_video import GenerateSettings, encode_sound, generate, motion_at
from trainer.video.motion import motion_loss, movement

RATE_HZ = CONFIG.mel.sample_rate_hz
FPS = 10.0


def model_with_motion(**changes: object) -> SoundVideoModel:
    torch.manual_seed(1)
    config = CONFIG.model_copy(update={"motion_fps": FPS, "motion_width": 8, **changes})
    model = SoundVideoModel(config, build_generator(GENERATOR)).eval().requires_grad_(False)
    if model.motion is not None:
        torch.nn.init.normal_(model.motion.mean.weight, 0, 1.0)
        torch.nn.init.normal_(model.motion.directions_KLD, 0, 0.3)
    return model


def new_path(width: int = 8) -> FastPath:
    torch.manual_seed(0)
    path = FastPath(6, width, 2, 3, 4)
    torch.nn.init.normal_(path.directions_KLD)
    return path


def test_bands_are_those_of_their_moment() -> None:
    mels = torch.zeros(1, 128, 40)
    mels[:, :, 20:] = 0.5
    mels[:, 64:] = 0
    bands = bands_at(mels, 4)
    assert bands.shape == (1, 4, NUM_BANDS)
    assert bands[0, :, 0].tolist() == [0, 0, 0.5, 0.5]
    assert not bands[0, :, -1].any()


def test_what_comes_later_changes_nothing_before() -> None:
    path = new_path()
    mels, features = torch.rand(2, 128, 80), torch.rand(2, 4, 6)
    states, _ = path.follow(mels, features, 8)
    changed, later = mels.clone(), features.clone()
    changed[:, :, 50:] = 0
    later[:, 3] = 0  # of the last two moments
    others, _ = path.follow(changed, later, 8)
    torch.testing.assert_close(others[:, :5], states[:, :5])
    assert bool(((others - states)[:, 5:].abs().amax((0, 2)) > 1e-4).all())
    assert path.added(path.moves(states).mean).shape == (2, 8, 3, 4)


def test_a_sound_in_parts_goes_on_from_the_state_before() -> None:
    path = new_path()
    mels, features = torch.rand(1, 128, 80), torch.rand(1, 4, 6)
    whole, _ = path.follow(mels, features, 8)
    first, state = path.follow(mels[:, :, :40], features[:, :2], 4)
    second, _ = path.follow(mels[:, :, 40:], features[:, 2:], 4, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_it_learns_what_follows_the_loudness_and_what_is_chance() -> None:
    """Movement along one direction is the loudness; along the other it is chance, three times as wide where it is loud."""
    torch.manual_seed(0)
    path = FastPath(6, 16, 2, 1, 2)
    path.directions_KLD.copy_(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    optimizer = torch.optim.Adam(path.parameters(), 1e-2)
    losses = []
    for _ in range(300):
        times = torch.arange(160) / 10 + 10 * torch.rand(8, 1)
        loudness = 0.5 + 0.3 * (times * (1 + torch.rand(8, 1))).sin()
        mels = loudness[:, None] + 0.05 * torch.randn(8, 128, 160)
        loud = bands_at(mels, 16).mean(2)
        chance = torch.randn(8, 16) * torch.where(loud > 0.5, 0.9, 0.3)
        codes = torch.stack([4 * loud, chance], 2)[:, :, None]
        states, _ = path.follow(mels, torch.rand(8, 4, 6), 16)
        gap, unlikely = motion_loss(path.moves(states), path.kept_share, path.along(movement(codes)), torch.ones(8))
        optimizer.zero_grad()
        (gap + unlikely).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(gap.item())
    assert sum(losses[-10:]) / 10 < 0.5 * sum(losses[:10]) / 10
    spread = path.moves(states).spread[:, 1:, 1].detach()
    ratio = float(spread[loud[:, 1:] > 0.6].mean() / spread[loud[:, 1:] < 0.4].mean())
    assert ratio > 1.5
    assert float(path.kept_share[1].detach()) < 0.3  # such chance is forgotten at once


def test_moves_along_directions_give_the_movement_back() -> None:
    path, wanted = new_path(), torch.randn(5, 2)
    torch.testing.assert_close(FastPath(6, 8, 2, 3, 4).along(torch.ones(1, 3, 4)), torch.zeros(1, 2))
    apart, _ = torch.linalg.qr(path.directions_KLD.flatten(1).T)
    path.directions_KLD.copy_(0.5 * apart.T.view(2, 3, 4))
    torch.testing.assert_close(path.along(path.added(wanted)), wanted)


def test_principal_directions_are_as_long_as_the_spread_along_them() -> None:
    torch.manual_seed(0)
    one, other = torch.eye(6)[1].view(2, 3), -torch.eye(6)[4].view(2, 3)
    movements = 3 * torch.randn(4000, 1, 1) * one + torch.randn(4000, 1, 1) * other
    found = principal_directions(movements, 3)
    torch.testing.assert_close(found[0], 3 * one, rtol=0.05, atol=0.1)
    torch.testing.assert_close(found[1], -other, rtol=0.05, atol=0.1)
    assert float(found[2].abs().max()) < 1e-3
    assert not principal_directions(movements[:1], 3)[1:].any()  # one picture has one direction at most


def test_chance_has_the_spread_and_the_memory_that_the_sound_gives() -> None:
    path = new_path()
    torch.nn.init.zeros_(path.spread.weight)
    torch.nn.init.zeros_(path.mean.weight)
    torch.nn.init.constant_(path.kept, 2.0)
    states = torch.rand(20_000, 8)
    played, kept, spread = path.played(states, 3), path.kept_share.detach(), path.moves(states).spread[0].detach()
    torch.testing.assert_close(played.std(0), spread / (1 - kept.square()).sqrt(), rtol=0.1, atol=0)
    after = (played[1:] * played[:-1]).mean(0) / played.square().mean(0)
    torch.testing.assert_close(after, kept, rtol=0.05, atol=0)
    torch.testing.assert_close(path.played(states[:50], 3), played[:50])
    assert not torch.equal(path.played(states[:50], 4), played[:50])


def test_every_moment_of_a_long_sound_has_a_move() -> None:
    model = model_with_motion()
    sound = np.concatenate([tone(200.0 * 2**octave, 1.3, seed=octave) for octave in range(6)])  # 7.8 s: two chunks
    encoded = encode_sound(model, sound_of_array(sound, RATE_HZ))
    assert encoded.motion_RW.shape == (78, 8) and model.motion is not None
    moves = model.motion.played(encoded.motion_RW, 0)
    moved = motion_at(model, moves, [0.0, 0.05, 0.1, 5.0, 100.0])
    assert isinstance(moved, torch.Tensor)
    own = model.motion.added(moves)
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


def test_it_is_turned_off_and_up() -> None:
    model = model_with_motion()
    videos = [
        np.stack(list(generate(model, tone(300, 1.0), RATE_HZ, GenerateSettings(fps=25.0, motion=motion)))).astype(int)
        for motion in (0.0, 1.0, 2.0)
    ]
    still, once, twice = (float(np.abs(np.diff(video, axis=0)).mean()) for video in videos)
    assert still < 0.5 * once < once < twice


@pytest.mark.parametrize("fps", [0.0, FPS])
def test_a_video_has_as_many_frames_with_and_without_it(fps: float) -> None:
    model = model_with_motion(motion_fps=fps)
    frames = list(generate(model, tone(300, 1.0), RATE_HZ, GenerateSettings(fps=25.0)))
    assert len(frames) == 25
    assert (model.motion is None) == (fps == 0)
    moves = [float(np.abs(one.astype(int) - other).mean()) for one, other in pairwise(frames)]
    assert (max(moves) > 0.2) == bool(fps)
