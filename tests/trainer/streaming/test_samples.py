"""The reader gives of each sample what was asked for: frames and sound of one span, mels, and the rendition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset.shards import SampleContent
from pipeline.encoders.mel import LogMel
from pipeline.errors import DataError
from tests.datasets import (
    LABELS,
    NUM_CLIPS,
    Clip,
    as_flac,
    build_dataset,
    content_of,
    index_of,
    middle_shown,
    number_shown,
    sound_of,
)
from tests.footage import FPS
from tests.trainer.streaming.readers import SETTINGS, reader
from trainer.streaming.reader import Batch


def test_frames_come_from_their_segments_and_the_sound_is_that_of_the_same_span(numbered: Path):
    whole = [
        (i, number, frames, sound) for batch in reader(numbered, SETTINGS) for i, number, frames, sound in rows(batch)
    ]
    assert len(whole) == 40
    starts, middles = set(), set()
    for index, numbers, frames_TCHW, sound_N in whole:
        mono = sound_of(index).mean(axis=1)
        first = next(int(n) for n in np.flatnonzero(mono == sound_N[0]) if mono[n + 1] == sound_N[1])
        np.testing.assert_array_equal(sound_N, mono[first : first + 44_100])
        start = first / 44_100
        shown_at = [(number - 50 * (index % NUM_CLIPS)) / FPS for number in numbers]
        for segment, shown in enumerate(shown_at):  # a frame is shown for 1 / FPS
            assert start + segment * 0.2 - 1 / FPS < shown < start + (segment + 1) * 0.2 + 0.001
        starts.add(first)
        middles |= {round(middle_shown(picture)) for picture in frames_TCHW}
    assert min(starts) < 0.1 * 44_100
    assert max(starts) > 0.9 * 44_100
    assert min(middles) < 60  # squares of 96 px out of 160 have their middles from 48 to 112
    assert max(middles) > 100


def rows(batch: Batch) -> list[tuple[int, list[int], np.ndarray, np.ndarray]]:
    """Index, numbers shown, pictures and sound of each sample."""
    return [
        (index_of(key), [number_shown(picture) for picture in pictures], pictures, sound)
        for key, pictures, sound in zip(batch.keys, batch.frames_BTCHW.numpy(), batch.sounds_BN.numpy(), strict=True)
    ]


def test_without_shuffle_they_come_from_the_middle(numbered: Path):
    batch = next(iter(reader(numbered, SETTINGS.model_copy(update={"picture_px": 96}), shuffle=False)))
    for index, numbers, pictures, sound in rows(batch):
        # of 2 s the middle second, from 0.5 s: middles of its fifths at 0.6, 0.8 ...
        assert numbers == [50 * (index % NUM_CLIPS) + number for number in (15, 20, 25, 30, 35)]
        assert [middle_shown(picture) for picture in pictures] == pytest.approx([80] * 5, abs=2)
        np.testing.assert_array_equal(sound, sound_of(index).mean(axis=1)[22_050:66_150])
    assert batch.labels == tuple((LABELS[i % 3],) for i in range(8))
    assert batch.captions == tuple(f"caption {i}" if i % 2 else None for i in range(8))
    assert batch.source_ids == tuple(f"s{i:03d}" for i in range(8))
    assert batch.datasets == ("numbered",) * 8


@pytest.mark.parametrize("shuffle", [True, False])
def test_neighbouring_frames_are_read_beside_the_others(numbered: Path, shuffle: bool):
    """The clips have 25 frames a second, so that a burst of 12.5 takes every second one."""
    settings = SETTINGS.model_copy(update={"burst_frames": 4, "burst_fps": FPS / 2})
    batch, plain = (next(iter(reader(numbered, one, shuffle=shuffle))) for one in (settings, SETTINGS))
    assert torch.equal(batch.frames_BTCHW, plain.frames_BTCHW) and plain.bursts_BKCHW is None
    assert batch.bursts_BKCHW is not None and batch.burst_starts_B is not None
    assert batch.bursts_BKCHW.shape == (8, 4, *batch.frames_BTCHW.shape[2:])
    starts = batch.burst_starts_B.tolist()
    for key, burst, sound, start in zip(
        batch.keys, batch.bursts_BKCHW.numpy(), batch.sounds_BN.numpy(), starts, strict=True
    ):
        index = index_of(key)
        numbers = [number_shown(picture) for picture in burst]
        assert [later - earlier for earlier, later in pairwise(numbers)] == [2, 2, 2]
        mono = sound_of(index).mean(axis=1)
        window = next(int(n) for n in np.flatnonzero(mono == sound[0]) if mono[n + 1] == sound[1]) / 44_100
        moment = (numbers[0] - 50 * (index % NUM_CLIPS)) / FPS - window
        assert start * 2 / FPS - 0.001 <= moment <= (start + 1) * 2 / FPS
        assert 0 <= start <= 12 - 4
    assert (len(set(starts)) > 1) == shuffle


def test_a_burst_that_is_longer_than_its_clip_ends_with_the_last_frame(numbered: Path):
    settings = SETTINGS.model_copy(update={"burst_frames": 20, "burst_fps": FPS / 2})  # 1.6 s, and the window has 1 s
    batch = next(iter(reader(numbered, settings, shuffle=False)))
    assert batch.bursts_BKCHW is not None and batch.burst_starts_B is not None
    assert batch.burst_starts_B.tolist() == [0] * 8
    assert torch.equal(batch.bursts_BKCHW[:, -1], batch.bursts_BKCHW[:, 14])
    assert not torch.equal(batch.bursts_BKCHW[:, 0], batch.bursts_BKCHW[:, 10])


def test_the_mel_is_that_of_the_sound(numbered: Path):
    batch = next(iter(reader(numbered, SETTINGS)))
    assert batch.mels_BMT is not None
    torch.testing.assert_close(batch.mels_BMT, LogMel()(batch.sounds_BN), rtol=0, atol=1e-5)
    assert next(iter(reader(numbered))).mels_BMT is None


def test_a_clip_shorter_than_the_window_gives_all_it_has_and_then_silence(numbered: Path):
    settings = SETTINGS.model_copy(update={"window_seconds": 3.0, "batch_size": 3})
    batch = next(iter(reader(numbered, settings, shuffle=False)))
    assert batch.seconds_B.tolist() == [2.0] * 3
    for index, numbers, _, sound in rows(batch):
        assert numbers == [50 * index + number for number in (5, 15, 25, 35, 45)]
        np.testing.assert_array_equal(sound[:88_200], sound_of(index).mean(axis=1))
        assert not sound[88_200:].any()


def test_sound_at_another_rate_is_resampled(tmp_path: Path, clips: list[Clip]):
    times = np.arange(96_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * times)).astype(np.float32)
    content = content_of(0, clips, "48")
    build_dataset(tmp_path, clips, [1], contents={0: SampleContent(content.mp4, as_flac(tone, 48_000), content.record)})
    settings = SETTINGS.model_copy(update={"batch_size": 1})
    (batch,) = reader(tmp_path, settings, shuffle=False)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * (0.5 + np.arange(44_100) / 44_100))
    assert batch.sounds_BN.shape == (1, 44_100)
    np.testing.assert_allclose(batch.sounds_BN[0, 2000:-2000], expected[2000:-2000], atol=1e-3)


def test_the_smallest_rendition_that_is_large_enough_is_read(numbered: Path):
    small = reader(numbered, SETTINGS, shuffle=False)
    large = reader(numbered, SETTINGS.model_copy(update={"picture_px": 49}), shuffle=False)
    assert [one.datasets[0].rendition for one in (small, large)] == ["48", "96"]
    with pytest.raises(
        DataError, match=r"no rendition is large enough for pictures of 97 px; there are: 48 \(48 px\), 96 \(96 px\)"
    ):
        reader(numbered, SETTINGS.model_copy(update={"picture_px": 97}))
    scaled = reader(numbered, SETTINGS.model_copy(update={"picture_px": 128, "upscale": True}), shuffle=False)
    batch = next(iter(scaled))
    assert batch.frames_BTCHW.shape == (8, 5, 3, 128, 128)
    assert rows(batch)[0][1] == [15, 20, 25, 30, 35]
