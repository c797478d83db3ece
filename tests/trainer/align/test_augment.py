"""The augmented view: what is drawn, and what it does to a sound and its mel."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from trainer.align.augment import AugmentChoices, AugmentSettings, augmented_sounds, draw, mask_mels

PLAIN = AugmentChoices(crop=(1.0, 0.0), below_db=None, mel_masks=(), time_masks=())


def test_a_draw_depends_on_its_identity_alone_and_keeps_to_the_settings() -> None:
    settings = AugmentSettings(mix_probability=0.5, mix_below_db=(6, 20))
    draws = [draw(settings, 0, 64, "set", f"key{i}") for i in range(400)]
    assert draws == [draw(settings, 0, 64, "set", f"key{i}") for i in range(400)]
    assert draws[:5] != [draw(settings, 1, 64, "set", f"key{i}") for i in range(5)]
    assert len({one.crop for one in draws}) == 400
    assert all(0.5 <= one.crop[0] <= 1 for one in draws)
    levels = [one.below_db for one in draws if one.below_db is not None]
    assert 160 < len(levels) < 240
    assert min(levels) >= 6 and max(levels) <= 20
    widths = [width for one in draws for width, _ in one.mel_masks]
    assert len(widths) == 800 and max(widths) <= 0.15
    assert 0.06 < sum(widths) / len(widths) < 0.09
    assert max(width for one in draws for width, _ in one.time_masks) > 0.28


def test_a_crop_goes_to_the_start_and_leaves_silence() -> None:
    sounds = torch.arange(1.0, 21.0).repeat(1, 1)
    cropped = augmented_sounds(
        sounds, [10], [AugmentChoices((0.5, 1.0), None, (), ())]
    )  # the last half of ten samples of sound
    assert cropped.tolist() == [[6.0, 7.0, 8.0, 9.0, 10.0, *[0.0] * 15]]
    assert sounds[0, 0] == 1.0


def test_neighbours_are_mixed_so_many_decibels_below() -> None:
    sounds = torch.zeros(3, 1000)
    sounds[0] = 0.5
    sounds[1, ::2] = 8.0
    sounds[2] = 0.1
    mixed = augmented_sounds(sounds, [1000, 1000, 1000], [AugmentChoices((1.0, 0.0), 20.0, (), ()), PLAIN, PLAIN])
    added = mixed[0] - sounds[0]
    assert float(added.square().mean().sqrt()) == pytest.approx(0.05, rel=1e-4)  # 20 dB below an RMS of 0.5
    assert bool((added[1::2] == 0).all())
    assert torch.equal(mixed[1:], sounds[1:])
    alone = augmented_sounds(sounds, [1000] * 3, [PLAIN, PLAIN, AugmentChoices((1.0, 0.0), 6.0, (), ())])
    assert torch.equal(alone[2], sounds[2])  # the last of an odd batch has no neighbour


def test_a_silent_neighbour_adds_nothing() -> None:
    sounds = torch.zeros(2, 100)
    sounds[0] = 0.5
    mixed = augmented_sounds(
        sounds, [100, 100], [AugmentChoices((1.0, 0.0), 6.0, (), ()), AugmentChoices((1.0, 0.0), 6.0, (), ())]
    )
    assert torch.equal(mixed[0], sounds[0])
    assert torch.equal(mixed[1], sounds[1])


def test_a_gain_changes_the_level_of_the_whole() -> None:
    sounds = torch.ones(2, 100)
    louder = AugmentChoices((0.5, 0.0), None, (), (), gain_db=6.0)
    changed = augmented_sounds(sounds, [100, 100], [louder, PLAIN])
    assert float(changed[0, :50].mean()) == pytest.approx(10 ** (6 / 20))
    assert not changed[0, 50:].any()
    assert torch.equal(changed[1], sounds[1])
    gains_db = [draw(AugmentSettings(max_gain_db=6.0), seed).gain_db for seed in range(200)]
    assert -6 <= min(gains_db) < -4 and 4 < max(gains_db) <= 6
    assert draw(AugmentSettings(max_gain_db=0.0), 0).gain_db == 0


def test_masks_cover_their_share_from_edge_to_edge() -> None:
    mels = torch.ones(2, 100, 50)
    first = AugmentChoices((1.0, 0.0), None, mel_masks=((0.1, 0.0), (0.15, 0.9999)), time_masks=((0.3, 0.5),))
    mask_mels(mels, [first, PLAIN])
    silent_bands = (mels[0] == 0).all(1).nonzero().flatten().tolist()
    assert silent_bands == [*range(10), *range(85, 100)]
    assert (mels[0] == 0).all(0).nonzero().flatten().tolist() == list(range(18, 33))
    assert bool((mels[1] == 1).all())


def test_levels_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must be \(least, most\)"):
        AugmentSettings(mix_below_db=(20, 6))
