"""Measures of a clip's sound. The sound of a whole file is stored in a scratch file, so that memory does not grow with its length."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soxr

from pipeline.measure.fingerprint import sound_hash
from pipeline.measure.speech import SAMPLE_RATE_HZ as SPEECH_RATE_HZ
from pipeline.measure.speech import voice_detector
from pipeline.media.decoding import SoundBlock
from pipeline.schema import SoundMeasures

SAMPLE_RATE_HZ = 44_100
"""Rate at which sound is decoded, measured and stored: that of the encoders' spectrograms."""
SILENT_DBFS = -60.0
BLOCK_SECONDS = 0.1
FULL_SCALE = 32_760
"""Samples of 16 bits from this value on count as full scale."""
SPEECH_PROBABILITY = 0.5
PARTIAL_HZ = (80.0, 3000.0)
"""Range of frequencies in which partials are counted."""
PEAK_DB = 8.5
"""Height of a spectral peak above its surroundings."""
HOLD_FRAMES = 8
"""Frames of 20 ms for which a partial must hold its pitch: 0.16 s."""
MUSIC_PARTIALS = 4
"""A frame with at least so many partials is music."""
BACK_SECONDS = 1.0
"""Sound whose time stamps go back by more than this is counted as lost."""

Samples = npt.NDArray[np.int16]
Mono = npt.NDArray[np.float32]


class SoundTrack:
    """The sound of one file, (num_samples, num_channels) int16 at 44.1 kHz, from the file's time 0 on.

    Gaps are silence; ``covered`` distinguishes them from recorded silence. :meth:`close` frees the scratch file.
    """

    def __init__(self, scratch: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - open as long as the track
        self._num_channels = 1
        self._num_samples = 0
        self._runs: list[tuple[int, int]] = []
        self.lost_seconds = 0.0
        """Seconds of sound that were left out because their time stamps went back by more than ``BACK_SECONDS``."""

    def close(self) -> None:
        self._file.close()

    @property
    def num_samples(self) -> int:
        return self._num_samples

    def feed(self, block: SoundBlock) -> None:
        """Appends a block. A part that overlaps with earlier sound is left out; a gap is filled with silence."""
        samples = block.samples
        if not self._runs:
            self._num_channels = samples.shape[1]
        position = round(block.seconds * SAMPLE_RATE_HZ)
        if abs(position - self._num_samples) <= 2:
            position = self._num_samples
        if position < self._num_samples - BACK_SECONDS * SAMPLE_RATE_HZ:
            self.lost_seconds += len(samples) / SAMPLE_RATE_HZ
        if position < self._num_samples:
            samples = samples[self._num_samples - position :]
            position = self._num_samples
        if not len(samples):
            return
        gap = position - self._num_samples
        if gap:
            self._file.seek(gap * self._num_channels * 2, 1)
        self._file.write(np.ascontiguousarray(samples).data)
        self._num_samples = position + len(samples)
        if self._runs and self._runs[-1][1] == position:
            self._runs[-1] = (self._runs[-1][0], self._num_samples)
        else:
            self._runs.append((position, self._num_samples))

    def between(self, start: float, end: float) -> Samples:
        """The samples of ``[start, end)`` seconds, exactly that long. Where there is no sound they are 0."""
        first, last = round(start * SAMPLE_RATE_HZ), round(end * SAMPLE_RATE_HZ)
        samples = np.zeros((last - first, self._num_channels), np.int16)
        stop = min(last, self._num_samples)
        if stop > first:
            self._file.flush()
            stored = np.memmap(self._file, np.int16, "r", shape=(self._num_samples, self._num_channels))
            samples[: stop - first] = stored[first:stop]
        return samples

    def covered(self, start: float, end: float) -> float:
        """Share of ``[start, end)`` seconds that has sound, 0..1."""
        first, last = start * SAMPLE_RATE_HZ, end * SAMPLE_RATE_HZ
        inside = sum(max(min(last, run_end) - max(first, run_start), 0) for run_start, run_end in self._runs)
        return min(inside / (last - first), 1.0)

    @property
    def end_seconds(self) -> float:
        return self._num_samples / SAMPLE_RATE_HZ


def to_mono(samples: Samples) -> Mono:
    """(num_samples,) float32, -1..1: the mean of the channels."""
    return np.asarray(samples.mean(axis=1, dtype=np.float32) / np.float32(32768))


def measure_sound(track: SoundTrack, start: float, end: float) -> SoundMeasures:
    """The measures of the clip ``[start, end)`` in seconds of the file."""
    samples = track.between(start, end)
    mono = to_mono(samples)
    speech_mono = soxr.resample(mono, SAMPLE_RATE_HZ, SPEECH_RATE_HZ, quality="QQ")
    peak = int(np.abs(samples.astype(np.int32)).max(initial=0))
    probabilities = voice_detector().probabilities(speech_mono)
    return SoundMeasures(
        loudness_lufs=loudness(samples),
        peak_dbfs=round(20 * float(np.log10(peak / 32768)), 2) if peak else None,
        covered_share=round(track.covered(start, end), 4),
        silent_share=silent_share(mono),
        clipped_share=clipped_share(samples),
        dc_offset=round(float(np.abs(samples.mean(axis=0, dtype=np.float64)).max()) / 32768, 5),
        dual_mono=dual_mono(samples),
        speech_share=round(float((probabilities > SPEECH_PROBABILITY).mean()), 4),
        music_share=music_share(speech_mono, SPEECH_RATE_HZ),
        sound_hash=sound_hash(speech_mono, SPEECH_RATE_HZ),
    )


def loudness(samples: Samples) -> float | None:
    """Integrated loudness in LUFS, ITU-R BS.1770-4. None: shorter than a gating block (0.4 s), or below the gate of -70 LUFS."""
    if len(samples) < 0.4 * SAMPLE_RATE_HZ or not samples.any():
        return None
    import pyloudnorm  # noqa: PLC0415 - imports scipy.signal, which takes a second and is needed in workers only

    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(samples.astype(np.float64) / 32768))
    return round(value, 2) if np.isfinite(value) and value > -70 else None


def silent_share(mono: Mono) -> float:
    """Share of blocks of 100 ms whose RMS is below -60 dBFS. An incomplete last block counts only if it is the only one."""
    size = round(BLOCK_SECONDS * SAMPLE_RATE_HZ)
    blocks = mono[: max(mono.size // size, 1) * size].reshape(-1, min(size, mono.size))
    power = np.square(blocks).mean(axis=1)
    return round(float((power < 10 ** (SILENT_DBFS / 10)).mean()), 4)


def clipped_share(samples: Samples) -> float:
    """Share of samples in runs of three or more at full scale, in the channel with more of them."""
    loud = (samples >= FULL_SCALE) | (samples <= -FULL_SCALE)
    if not loud.any():
        return 0.0
    starts_run = loud[:-2] & loud[1:-1] & loud[2:]
    in_run = np.zeros_like(loud)
    for shift in range(3):
        in_run[shift : shift + len(starts_run)] |= starts_run
    return round(float(in_run.mean(axis=0).max()), 6)


def dual_mono(samples: Samples) -> bool | None:
    """Whether the two channels carry the same signal: their difference is 50 dB or more below their sum. None: one channel."""
    if samples.shape[1] < 2:
        return None
    left, right = samples[:, 0].astype(np.float32), samples[:, 1].astype(np.float32)
    total, difference = float(np.square(left + right).mean()), float(np.square(left - right).mean())
    return difference <= total * 1e-5


def music_share(mono: Mono, sample_rate_hz: int) -> float:
    """Estimated share of the sound with music, 0..1: frames with several partials that hold their pitch for 0.16 s.

    Wind, water, fire and thunder have no partials, a bird or a whistle has one, and the partials of a voice change their pitch. Chords
    and tuned instruments hold several at once. This is a rule over a spectrogram (windows of 128 ms), no trained classifier.
    """
    import scipy.signal  # noqa: PLC0415 - see loudness

    size, hop = 2048, sample_rate_hz // 50
    if mono.size < 2 * size:
        return 0.0
    hz, _, spectrum = scipy.signal.stft(
        mono, sample_rate_hz, nperseg=size, noverlap=size - hop, padded=False, boundary=None
    )
    low, high = np.searchsorted(hz, PARTIAL_HZ)
    power_db = 10 * np.log10(np.square(np.abs(spectrum[low:high])) + 1e-12)
    return round(float((steady_partials(power_db) >= MUSIC_PARTIALS).mean()), 4)


def steady_partials(power_db: npt.NDArray[np.floating[npt.NBitBase]]) -> npt.NDArray[np.int64]:
    """Number of spectral peaks per frame that stay within one bin for HOLD_FRAMES frames. ``power_db``: shape (bins, frames)."""
    import scipy.ndimage  # noqa: PLC0415 - see loudness

    around = scipy.ndimage.uniform_filter1d(power_db, 41, axis=0)
    is_peak = (
        (power_db > np.roll(power_db, 1, 0)) & (power_db >= np.roll(power_db, -1, 0)) & (power_db > around + PEAK_DB)
    )
    near_peak = is_peak | np.roll(is_peak, 1, 0) | np.roll(is_peak, -1, 0)
    runs = np.cumsum(near_peak, axis=1, dtype=np.int32)
    is_steady = (runs[:, HOLD_FRAMES:] - runs[:, :-HOLD_FRAMES]) == HOLD_FRAMES
    return np.asarray((is_steady & is_peak[:, HOLD_FRAMES:]).sum(axis=0))
