"""What is kept for the encoders: that it is written whole, or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.measure.previews import save_sound
from pipeline.measure.sound import SAMPLE_RATE_HZ, SoundTrack
from pipeline.media.decoding import SoundBlock


@pytest.fixture
def track(tmp_path: Path) -> SoundTrack:
    """Twelve seconds of noise, more than one block of what is written."""
    made = SoundTrack(tmp_path)
    samples = np.random.default_rng(0).integers(-3000, 3000, (12 * SAMPLE_RATE_HZ, 1)).astype(np.int16)
    made.feed(SoundBlock(0.0, samples))
    return made


def test_the_sound_is_kept_sample_by_sample(track: SoundTrack, tmp_path: Path) -> None:
    save_sound(track, tmp_path / "sound.flac")
    kept, rate_hz = soundfile.read(tmp_path / "sound.flac", dtype="int16")
    assert rate_hz == SAMPLE_RATE_HZ
    assert len(kept) == 12 * SAMPLE_RATE_HZ
    assert np.abs(kept - np.random.default_rng(0).integers(-3000, 3000, 12 * SAMPLE_RATE_HZ)).max() <= 1
    track.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_as_what_it_is(track: SoundTrack) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_sound(track, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
    track.close()
