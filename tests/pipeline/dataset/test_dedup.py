"""Fingerprints of made sounds and pictures, and what the search over many of them finds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.signal
from PIL import Image

from pipeline.dataset.dedup import DedupSettings, Duplicates, Fingerprint, find_duplicates
from pipeline.measure.fingerprint import (
    parse_picture,
    parse_sound,
    picture_distance,
    picture_hash,
    sound_distance,
    sound_hash,
)
from pipeline.schema import Reason

RATE = 16_000


def rain(seed: int, seconds: float = 10.0, rate: int = RATE) -> np.ndarray:
    """Noise with bursts: a sound with a life of its own in every band."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(seconds * rate)).astype(np.float32)
    level = np.repeat(rng.uniform(0.3, 1.0, round(seconds * 20)), rate // 20)
    return (0.1 * sound * level).astype(np.float32)


def scene(seed: int, shift: int = 0, size: tuple[int, int] = (180, 320)) -> list[np.ndarray]:
    """Eight frames of smooth shapes that drift."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.uniform(0, 255, (9, 16)).astype(np.uint8))
    field = np.asarray(coarse.resize((400, 220), Image.Resampling.BICUBIC))
    frames = [field[:180, 2 * (i + shift) : 2 * (i + shift) + 320] for i in range(8)]
    return [np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)) for frame in frames]


def sound_share(a: str, b: str, max_shift: int = 20) -> float:
    a_N, b_N = parse_sound(a), parse_sound(b)
    length = max(len(a_N), len(b_N))
    pair = [np.pad(words, (0, length - len(words)))[None] for words in (a_N, b_N)]
    return float(sound_distance(pair[0], pair[1], max_shift, 19)[0][0])


def picture_share(a: str, b: str) -> float:
    return float(picture_distance(parse_picture(a)[None], parse_picture(b)[None])[0])


def clip(name: str, picture: str, sound: str, quality: float = 0, *, ms: int = 10_000, at: int = 0) -> Fingerprint:
    return Fingerprint(f"{name}_{at:08d}_{at + ms:08d}", name, picture, sound, ms, (quality,))


def test_a_sound_hash_has_four_digits_for_each_tenth_of_a_second_after_the_first_windows():
    assert len(sound_hash(rain(1), RATE)) == 4 * 89
    assert sound_hash(rain(1, 1.1), RATE) == ""
    assert len(sound_hash(rain(1, 1.2), RATE)) == 4


def test_sound_hash_ignores_gain_and_bears_resampling_noise_and_a_shift_of_half_a_step():
    sound = rain(1, 12)
    whole = sound_hash(sound[:160_000], RATE)
    assert sound_share(whole, sound_hash(0.25 * sound[:160_000], RATE)) == 0.0
    resampled = scipy.signal.resample_poly(sound[:160_000], 441, 160).astype(np.float32)
    assert sound_share(whole, sound_hash(resampled, 44_100)) < 0.02
    noisy = sound[:160_000] + rain(2)[:160_000] * 0.1
    assert sound_share(whole, sound_hash(noisy.astype(np.float32), RATE)) < 0.10
    assert sound_share(whole, sound_hash(sound[800:160_800], RATE)) < 0.20
    assert sound_share(whole, sound_hash(sound[16_000:176_000], RATE)) < 0.02
    assert sound_share(whole, sound_hash(rain(2), RATE)) > 0.40


def test_the_shift_tells_how_much_later_the_sound_comes_in_the_second():
    sound = rain(1, 12)
    a = parse_sound(sound_hash(sound[16_000:176_000], RATE))[None]
    b = parse_sound(sound_hash(sound[:160_000], RATE))[None]
    share, shift = sound_distance(a, b, 20, 19)
    assert share[0] < 0.005  # a bit that lies on the line may fall otherwise: one of 1,264 is 0.0008
    assert shift[0] == 10
    assert np.isnan(sound_distance(a[:, :15], b[:, :15], 20, 19)[0][0])


@pytest.mark.parametrize("frequency", [0, 440, 1000])
def test_silence_and_steady_tones_say_nothing_and_match_nothing(frequency: int):
    tone = (0.3 * np.sin(2 * np.pi * frequency * np.arange(10 * RATE) / RATE)).astype(np.float32)
    text = sound_hash(tone, RATE)
    assert text == "0" * (4 * 89)
    assert np.isnan(sound_share(text, text))


def test_a_sound_hash_needs_one_channel_and_enough_bandwidth():
    with pytest.raises(ValueError, match=r"one channel, shape \(n,\); got \(2, 10\)"):
        sound_hash(np.zeros((2, 10), np.float32), RATE)
    with pytest.raises(ValueError, match="8000 Hz or more, got 4000 Hz"):
        sound_hash(np.zeros(10, np.float32), 4000)


def test_picture_hash_bears_scaling_and_noise_and_knows_other_pictures():
    frames = scene(1)
    text = picture_hash(frames)
    assert len(text) == 8 * 16
    assert picture_share(text, picture_hash(scene(1, size=(90, 160)))) < 0.05
    rng = np.random.default_rng(0)
    noisy = [np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8) for frame in frames]
    assert picture_share(text, picture_hash(noisy)) < 0.05
    assert picture_share(text, picture_hash(scene(1, shift=4))) < 0.10
    assert picture_share(text, picture_hash(scene(2))) > 0.25


def test_flat_pictures_match_nothing():
    black = picture_hash([np.zeros((180, 320), np.uint8)] * 8)
    assert black == "0" * 128
    assert np.isnan(picture_share(black, black))
    white = parse_picture("8000000000000000" * 8)  # what a hash of one colour looks like elsewhere
    assert not white.any()


def test_a_frame_must_be_luma():
    with pytest.raises(ValueError, match=r"luma, uint8, HxW; got float64 \(4, 4\)"):
        picture_hash([np.zeros((4, 4))])


@pytest.mark.parametrize("text", ["zz" * 8, "12"])
def test_text_that_is_no_hash_is_refused(text: str):
    with pytest.raises(ValueError, match="hexadecimal"):
        parse_picture(text)


PICTURES = {name: picture_hash(scene(seed)) for seed, name in enumerate(("beach", "forest", "river", "dunes"))}
SOUNDS = {name: sound_hash(rain(seed), RATE) for seed, name in enumerate(("beach", "forest", "river", "dunes"), 10)}


def test_the_worse_copy_is_rejected_and_both_share_a_group():
    copy = clip("copy", picture_hash(scene(0, size=(90, 160))), sound_hash(rain(10) * 0.5, RATE), quality=360)
    clips = [clip("beach", PICTURES["beach"], SOUNDS["beach"], quality=720), copy]
    clips += [clip(name, PICTURES[name], SOUNDS[name], quality=1080) for name in ("forest", "river")]
    found = find_duplicates(clips, DedupSettings())
    assert list(found.verdicts) == [copy.key]
    verdict = found.verdicts[copy.key]
    assert verdict.reason is Reason.DUPLICATE
    assert verdict.detail.startswith("like beach_00000000_00010000: picture differs in ")
    assert "(duplicate up to 18.0%), sound in 0.0% (up to 30.0%)" in verdict.detail
    assert found.groups == (("beach_00000000_00010000", copy.key),)


def test_equal_quality_keeps_the_smaller_key_whatever_the_order():
    clips = [clip(name, PICTURES["beach"], SOUNDS["beach"]) for name in ("c", "a", "b")]
    clips += [clip(name, PICTURES[name], SOUNDS[name]) for name in ("forest", "river", "dunes")]
    outcomes = []
    for seed in range(5):
        random.Random(seed).shuffle(clips)
        outcomes.append(find_duplicates(iter(clips), DedupSettings()))
    assert list(outcomes[0].verdicts) == ["b_00000000_00010000", "c_00000000_00010000"]
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_one_of_the_two_alike_relates_but_rejects_nothing():
    same_sound = [clip("a", PICTURES["beach"], SOUNDS["beach"]), clip("b", PICTURES["forest"], SOUNDS["beach"])]
    same_picture = [clip("c", PICTURES["river"], SOUNDS["forest"]), clip("d", PICTURES["river"], SOUNDS["river"])]
    found = find_duplicates([*same_sound, *same_picture], DedupSettings())
    assert found.verdicts == {}
    assert found.groups == (
        ("a_00000000_00010000", "b_00000000_00010000"),
        ("c_00000000_00010000", "d_00000000_00010000"),
    )
    by_sound = find_duplicates([*same_sound, *same_picture], DedupSettings(relate_by_picture=False))
    assert [group[0][0] for group in by_sound.groups] == ["a"]
    by_picture = find_duplicates([*same_sound, *same_picture], DedupSettings(relate_by_sound=False))
    assert [group[0][0] for group in by_picture.groups] == ["c"]


def test_black_pictures_and_silence_relate_nothing():
    black, silence = "0" * 128, "0" * 356
    clips = [clip(name, black, silence) for name in "abc"]
    clips += [clip("d", "", ""), clip("e", "", ""), clip("f", PICTURES["beach"], silence)]
    assert find_duplicates(clips, DedupSettings()) == Duplicates()


def test_a_copy_that_is_cut_elsewhere_is_found_and_does_not_pull_down_the_whole_video():
    sound, still = rain(20, 60), PICTURES["dunes"]
    one = [clip("one", still, sound_hash(sound[t * RATE :][: 10 * RATE], RATE), 1, at=t * 1000) for t in (0, 10, 20)]
    two = [clip("two", still, sound_hash(sound[t * RATE :][: 10 * RATE], RATE), 0, at=t * 1000) for t in (5, 15, 25)]
    found = find_duplicates([*one, *two], DedupSettings())
    assert set(found.verdicts) == {c.key for c in two}
    assert found.groups == (tuple(sorted(c.key for c in (*one, *two))),)
    tight = find_duplicates([*one, *two], DedupSettings(max_shift_seconds=3, relate_by_picture=False))
    assert tight == Duplicates()


def test_a_loop_within_one_source_is_rejected_and_a_static_view_is_not():
    loop = [clip("loop", PICTURES["beach"], SOUNDS["beach"], at=t) for t in (0, 10_000, 20_000)]
    static = [clip("static", PICTURES["river"], sound_hash(rain(30 + t), RATE), at=t * 10_000) for t in range(4)]
    found = find_duplicates([*loop, *static], DedupSettings())
    assert list(found.verdicts) == [loop[1].key, loop[2].key]


def test_a_short_piece_is_related_to_the_long_clip_but_not_rejected():
    sound = rain(40)
    long = clip("long", PICTURES["beach"], sound_hash(sound, RATE), quality=1)
    piece = clip("piece", PICTURES["beach"], sound_hash(sound[: 4 * RATE], RATE), ms=4000)
    found = find_duplicates([long, piece], DedupSettings())
    assert found.verdicts == {}
    assert found.groups == ((long.key, piece.key),)


def test_hundreds_of_copies_leave_one_though_each_meets_only_a_few_others():
    copies = [clip(f"copy{i:03d}", PICTURES["beach"], SOUNDS["beach"]) for i in range(300)]
    found = find_duplicates(copies, DedupSettings(max_neighbours=4))
    assert len(found.verdicts) == 299
    assert "copy000_00000000_00010000" not in found.verdicts
    assert len(found.groups) == 1
    assert len(found.groups[0]) == 300


def test_common_hashes_are_told_in_the_log(caplog: pytest.LogCaptureFixture):
    copies = [clip(f"copy{i:03d}", PICTURES["beach"], "") for i in range(40)]
    find_duplicates(copies, DedupSettings(max_neighbours=4))
    assert "was compared with the 4 nearest entries only" in caplog.text


def test_among_thousands_of_strangers_every_changed_copy_is_found_and_nothing_else():
    rng = np.random.default_rng(7)
    clips, expected = [], set()
    for i in range(3000):
        frames = rng.integers(0, 2**64, 8, dtype=np.uint64)
        words = rng.integers(0, 2**16, 89, dtype=np.uint16)
        clips.append(clip(f"s{i:04d}", frames.astype(">u8").tobytes().hex(), words.astype(">u2").tobytes().hex(), 1))
        if i % 30 == 0:
            wrong_frames = np.packbits(rng.random((8, 64)) < 0.04, axis=1).view(np.uint64).ravel()
            wrong_words = np.packbits(rng.random((89, 16)) < 0.12, axis=1).view(np.uint16).ravel()
            picture = (frames ^ wrong_frames).astype(">u8").tobytes().hex()
            sound = (words ^ wrong_words).astype(">u2").tobytes().hex()
            clips.append(clip(f"t{i:04d}", picture, sound))
            expected.add((f"s{i:04d}_00000000_00010000", f"t{i:04d}_00000000_00010000"))
    found = find_duplicates(clips, DedupSettings())
    assert set(found.groups) == expected
    assert set(found.verdicts) == {copy for _, copy in expected}


def test_off_means_off_and_a_key_comes_once():
    copies = [clip(name, PICTURES["beach"], SOUNDS["beach"]) for name in "ab"]
    off = DedupSettings(reject_duplicates=False, relate_by_picture=False, relate_by_sound=False)
    assert find_duplicates(copies, off) == Duplicates()
    kept = find_duplicates(copies, DedupSettings(reject_duplicates=False))
    assert (kept.verdicts, len(kept.groups)) == ({}, 1)
    with pytest.raises(ValueError, match="clip a_00000000_00010000 comes twice"):
        find_duplicates([copies[0], copies[0]], DedupSettings())
    assert find_duplicates([], DedupSettings()) == Duplicates()


@pytest.mark.parametrize("seconds", [10.0, 1.5], ids=["silent", "short"])
def test_one_stretch_of_one_file_under_two_ids_is_one_clip_even_if_nothing_can_be_heard(seconds: float):
    def listed(name: str, stretch: str) -> Fingerprint:
        return Fingerprint(f"{name}_00000000_00010000", name, PICTURES["beach"], sound, 10_000, (720.0,), stretch)

    sound = sound_hash(np.zeros(round(seconds * RATE), np.float32), RATE)
    found = find_duplicates([listed("b", "one"), listed("a", "one"), listed("c", "other")], DedupSettings())
    assert list(found.verdicts) == ["b_00000000_00010000"]
    assert found.verdicts["b_00000000_00010000"].detail == "like a_00000000_00010000: the same stretch of the same file"
    assert any({"a_00000000_00010000", "b_00000000_00010000"} <= set(group) for group in found.groups)
    assert (
        find_duplicates([listed("b", "one"), listed("a", "one")], DedupSettings(reject_duplicates=False)).verdicts == {}
    )
