"""The proof that sound matters, with models that follow the sound by construction, or do not, and a judge whose space is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair
from pipeline.errors import DataError, EncoderError
from tests import paired
from tests.trainer.sounding import CONFIG, GENERATOR, random_model, tone
from trainer.model.generator import build_generator
from trainer.model.sound_video import SoundVideoModel, Start
from trainer.proof.bootstrap import Bootstrap
from trainer.proof.sound_proof import (
    EvaluateSettings,
    HeldOutClip,
    comparable,
    held_out_clips,
    prove,
)
from trainer.proof.videos import draw_videos, spliced
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

LOWEST_HZ, OCTAVES = 200.0, 5.0
PITCHES = {"low": 0.6, "mid": 2.0, "high": 3.4}
"""Octaves above ``LOWEST_HZ``; a pitch is an angle, and that is where sound and picture lie in the judge's space."""


def direction(octaves: float) -> tuple[float, float]:
    angle = 2 * math.pi * octaves / OCTAVES
    return math.cos(angle), math.sin(angle)


class ColourJudge:
    """Both halves of a judge: a picture lies where its mean red and green point to, a sound where its pitch does.

    Silence lies on an axis of its own.
    """

    encoder_id, width = "colours-and-pitches", 3

    def embed_groups(self, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for frames in groups:
            means = frames.reshape(len(frames), -1, 3).mean(1) / 127.5 - 1
            rows = np.concatenate([means[:, :2], np.zeros((len(means), 1))], axis=1)
            found.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        return found

    def embed_sounds(self, sounds: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        rows = []
        for sound in sounds:
            spectrum = np.abs(np.fft.rfft(sound))
            hz = spectrum.argmax() * sample_rate_hz / len(sound)
            rows.append((*direction(math.log2(hz / LOWEST_HZ)), 0.0) if spectrum.any() else (0.0, 0.0, 1.0))
        return np.array(rows, np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            named = [name for name in PITCHES if text.endswith(name)]
            if not named:
                raise EncoderError(f"no colour has the name {text!r}")
            rows.append((*direction(PITCHES[named[0]]), 0.0))
        return np.array(rows, np.float32)


class Painter(SoundVideoModel):
    """Paints the pitch that ``choose`` takes of those of the segments, as a colour, with a little of the latent in it."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__(CONFIG, build_generator(GENERATOR))
        self._choose = choose
        bank = self.front_end.filters
        bins_hz = torch.arange(bank.shape[1]) * CONFIG.mel.sample_rate_hz / CONFIG.mel.fft_size
        self._centres_hz = (bank * bins_hz).sum(1) / bank.sum(1)

    def walk(self, segments_BSMT: Tensor, start: Start, noise_BSN: Tensor) -> Tensor:
        base_BLD = start.base_BLD
        octaves_BS = (self._centres_hz[segments_BSMT.mean(3).argmax(2)] / LOWEST_HZ).log2()
        angles_BS = self._choose(octaves_BS) * 2 * math.pi / OCTAVES + 0.05 * base_BLD[:, :1, 0].clamp(-1, 1)
        styles = torch.zeros(*angles_BS.shape, *base_BLD.shape[1:])
        styles[..., 0, 0], styles[..., 0, 1] = angles_BS.cos(), angles_BS.sin()
        return styles

    def draw(self, styles_BLD: Tensor) -> Tensor:
        return 0.9 * styles_BLD[:, 0, :3, None, None].expand(-1, -1, 16, 16)


def judge() -> EncoderPair:
    both = ColourJudge()
    return EncoderPair(both, both, both.encoder_id)  # type: ignore[arg-type]


def clips(per_class: int = 4, seconds: float = 3.0) -> list[HeldOutClip]:
    """``per_class`` clips of each class, each of its own source and pitch; real frames that show it."""
    made = []
    for label, octaves in PITCHES.items():
        for number in range(per_class):
            own = octaves + 0.3 * (number - (per_class - 1) / 2) / max(1, per_class - 1)
            colour = [round(127.5 * (1 + 0.9 * part)) for part in (*direction(own), 0.0)]
            frames = np.tile(np.array(colour, np.uint8), (3, 16, 16, 1))
            sound = tone(LOWEST_HZ * 2**own, seconds, seed=number)
            made.append(HeldOutClip(f"{label}{number}", f"{label}-{number}", (label,), sound, frames))
    return made


def follows(octaves_BS: Tensor) -> Tensor:
    return octaves_BS


def keeps_the_first(octaves_BS: Tensor) -> Tensor:
    return octaves_BS[:, :1].expand_as(octaves_BS)


def ignores(octaves_BS: Tensor) -> Tensor:
    return torch.full_like(octaves_BS, PITCHES["mid"])


def test_a_model_that_follows_the_sound_is_told() -> None:
    found = prove(Painter(follows), clips(), judge())
    assert found["num_clips"] == found["num_sources"] == 12
    assert found["num_classes"] == 3
    assert found["agreement_right"] > 0.98
    assert found["agreement_wrong"] < 0.3
    assert found["right_minus_wrong"] == pytest.approx(found["agreement_right"] - found["agreement_wrong"])
    assert found["right_minus_wrong_low"] > 0.5
    assert found["right_minus_wrong_low"] < found["right_minus_wrong"] < found["right_minus_wrong_high"]
    assert found["retrieval_class"] == found["class_accuracy"] == 1.0
    assert found["retrieval_class_low"] == found["class_accuracy_low"] == pytest.approx(12 / (12 + 1.959964**2))
    assert found["retrieval_class_chance"] == found["class_chance"] == pytest.approx(1 / 3)
    assert found["retrieval_at_1"] > 2 * found["retrieval_chance"] == pytest.approx(2 / 12)
    assert found["retrieval_at_5"] == 1.0
    assert found["change_first_half_low"] > 0.5
    assert found["change_second_half_low"] > 0.5
    assert found["change_in_time_low"] > 0.5
    assert found["half_distance_changed_low"] > 0.5
    assert found["half_distance_unchanged"] < 0.01
    assert found["real_agreement_right"] > 0.99
    assert found["real_right_minus_wrong_low"] > 0.5
    assert found["real_class_accuracy"] == 1.0
    assert all(math.isfinite(value) for value in found.values())


def test_a_model_that_ignores_the_sound_is_told() -> None:
    found = prove(Painter(ignores), clips(), judge())
    assert found["right_minus_wrong"] == found["right_minus_wrong_low"] == found["right_minus_wrong_high"] == 0.0
    assert found["right_minus_silent"] == 0.0
    assert found["retrieval_class"] == pytest.approx(1 / 3)
    assert found["class_accuracy"] == found["class_chance"] == pytest.approx(1 / 3)
    assert found["change_in_time"] == pytest.approx(0.0, abs=1e-6)
    assert found["half_distance_difference"] == pytest.approx(0.0, abs=1e-6)
    assert found["real_right_minus_wrong_low"] > 0.5


def test_a_model_that_hears_the_beginning_alone_does_not_change_in_time() -> None:
    found = prove(Painter(keeps_the_first), clips(), judge())
    assert found["right_minus_wrong_low"] > 0.5
    assert found["change_first_half_low"] > 0.5
    assert found["change_second_half_high"] < -0.5
    assert found["change_in_time"] == pytest.approx(0.0, abs=1e-6)
    assert found["half_distance_changed"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_the_same_settings_give_the_same_numbers_and_seeds_average() -> None:
    model = random_model()
    few = clips(2)
    settings = EvaluateSettings(num_seeds=2, num_resamples=200)
    first = prove(model, few, judge(), settings)
    assert prove(model, few, judge(), settings) == first
    assert first["num_seeds"] == 2
    one = prove(model, few, judge(), settings.model_copy(update={"num_seeds": 1}))
    assert one["agreement_right"] != first["agreement_right"]
    assert one["real_agreement_right"] == first["real_agreement_right"]
    assert prove(model, few, judge(), settings.model_copy(update={"use_blocks": False})) != first
    assert not model.training


def test_videos_of_one_seed_differ_by_their_sound_alone() -> None:
    model = random_model()
    sounds = [tone(300, 3.0), tone(300, 3.0), tone(4000, 2.0), np.zeros(9000, np.float32)]
    videos = draw_videos(model, sounds, [1, 2, 1, 1], batch_size=4)
    assert [video.shape for video in videos] == [(6, 16, 16, 3), (6, 16, 16, 3), (4, 16, 16, 3), (1, 16, 16, 3)]
    alone = draw_videos(model, sounds[:1], [1], batch_size=64)[0]
    assert abs(alone.astype(int) - videos[0]).max() <= 1
    assert abs(videos[0].astype(int) - videos[1]).max() > 3
    assert abs(videos[0][:4].astype(int) - videos[2]).max() > 3


def test_a_clip_of_one_segment_has_no_halves() -> None:
    found = prove(Painter(follows), clips(2, seconds=0.4), judge())
    assert found["right_minus_wrong_low"] > 0.5
    assert not [name for name in found if "change" in name or "half" in name]


def test_a_class_without_words_is_left_out_of_the_class_accuracy(caplog: pytest.LogCaptureFixture) -> None:
    some = [
        HeldOutClip(clip.key, clip.source_id, ("hum",) if clip.labels == ("low",) else clip.labels, clip.sound_K, clip.frames_THWC)
        for clip in clips(2)
    ]  # fmt: skip
    found = prove(Painter(follows), some, judge())
    assert found["class_accuracy"] == 1.0
    assert found["class_chance"] == pytest.approx(1 / 2)
    assert "class hum is left out" in caplog.text
    assert "class_accuracy" not in prove(Painter(follows), some, judge(), classes=["hum"])


def test_too_little_to_compare_is_refused() -> None:
    made = clips(2)
    for few, words in (
        ([], "0 labelled clips of 0 sources and 0 classes"),
        (made[:2], r"2 labelled clips of 2 sources and 1 classes \(low\)"),
    ):
        with pytest.raises(DataError, match=words):
            comparable(few)
    same = [HeldOutClip(clip.key, "one", clip.labels, clip.sound_K, clip.frames_THWC) for clip in made]
    with pytest.raises(DataError, match="6 labelled clips of 1 sources"):
        prove(Painter(follows), same, judge())


def test_a_clip_that_has_everything_in_common_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    made = clips(2)
    both = HeldOutClip("both", "another", ("low", "mid", "high"), made[0].sound_K, made[0].frames_THWC)
    assert comparable([*made, both]) == made
    assert "1 clips share a source or a label with every other and were left out, such as both" in caplog.text
    assert prove(Painter(follows), [*made, both], judge())["num_clips"] == 6


def test_intervals_come_from_the_sources_not_from_their_clips() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, 30)
    sources = [f"s{number}" for number in range(30)]
    low, high = Bootstrap(sources, 2000, 0).interval(values)
    half_width = 1.96 * values.std() / math.sqrt(30)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.15)
    assert low < values.mean() < high
    again = Bootstrap(sources * 5, 2000, 0).interval(np.tile(values, 5))
    assert again == pytest.approx((low, high), abs=1e-9)
    with_gaps = np.concatenate([values, np.full(30, np.nan)])
    assert Bootstrap(sources * 2, 2000, 0).interval(with_gaps) == pytest.approx((low, high), abs=1e-9)
    shares = Bootstrap(sources, 200, 0)
    assert shares.interval_of_share(np.zeros(30)) == (0.0, pytest.approx(1.959964**2 / (30 + 1.959964**2)))
    low, high = shares.interval_of_share(np.arange(30) % 2 * 1.0)
    assert 0.2 < low < 0.5 < high < 0.8


def test_a_spliced_sound_has_two_halves_of_one_loudness() -> None:
    loud, quiet = tone(400, 2.0), 0.01 * tone(3000, 1.5)
    joined = spliced(loud, quiet)
    assert len(joined) == len(quiet)
    half = len(joined) // 2
    np.testing.assert_array_equal(joined[:half], loud[:half])
    np.testing.assert_allclose(joined[half:] / quiet[half:], 100.0, rtol=0.05)
    assert np.sqrt((joined[:half] ** 2).mean()) == pytest.approx(np.sqrt((joined[half:] ** 2).mean()), rel=1e-4)
    silent = spliced(loud, np.zeros(1000, np.float32))
    assert not silent[500:].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_clips_out_of_shards_and_the_packaged_pair(tmp_path: Path) -> None:
    paired.build_paired(tmp_path, {"validation": 2})
    settings = ReaderSettings(num_frames=3, picture_px=48, window_seconds=1.5, mel=False, batch_size=3, num_workers=0)
    reader = Reader([DatasetMix(location=str(tmp_path))], settings, split="validation", seed=0, shuffle=False)
    found = held_out_clips(reader, 7)
    reader.close()
    assert len(found) == 7
    assert found[0].key == "validation-fire-000_00000000_00001000"
    assert found[0].source_id == "paired/validation-fire-000"
    assert found[0].labels == ("fire",)
    assert found[0].sound_K.shape == (44_100,), "the silence that fills the window is part of the sound"
    assert found[0].frames_THWC.shape == (3, 48, 48, 3)
    red, _, blue = found[0].frames_THWC.reshape(-1, 3).mean(0)
    assert red > 2 * blue
    measures = prove(random_model(), found, load_pair(EncoderPairSettings(device="cpu")))
    assert measures["num_classes"] == 4
    assert -1 <= measures["right_minus_wrong_low"] <= measures["right_minus_wrong_high"] <= 1
    assert measures["retrieval_chance"] == pytest.approx(1 / 7)
    assert {"agreement_silent", "class_accuracy", "real_right_minus_wrong"} <= set(measures)
