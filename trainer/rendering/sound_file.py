"""Sounds of any length, gone through block by block: out of a file (soundfile, else PyAV) or out of memory.

Nothing here holds more than a block and what a resampler keeps of one, whatever the length.

Shape suffixes: N samples of a block, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import MediaError

Samples = NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1000, 768_000
AAC_RATES_HZ = (
    7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000,
)  # fmt: skip
"""Sample rates that AAC has."""
MOST_LEVEL = 1e4
"""Samples of a file of floats that are larger were never scaled; encoders refuse far larger ones."""
PLAYED_RATE_HZ = 48_000
"""What another rate becomes in a video."""
NO_OTHER_FILES = {"protocol_whitelist": "none"}
"""A playlist that is given as a sound opens nothing."""

HALF_POWER = 0.5**0.5
FRONT, CENTRE, SIDES, BACK = (
    ((1.0, 0.0), (0.0, 1.0)),
    (HALF_POWER,) * 2,
    ((HALF_POWER, 0.0), (0.0, HALF_POWER)),
    (0.5,) * 2,
)
LOW = (0.0, 0.0)
STEREO_OF = {
    3: (*FRONT, CENTRE),
    4: (*FRONT, *SIDES),
    5: (*FRONT, CENTRE, *SIDES),
    6: (*FRONT, CENTRE, LOW, *SIDES),
    7: (*FRONT, CENTRE, LOW, BACK, *SIDES),
    8: (*FRONT, CENTRE, LOW, *SIDES, *SIDES),
}
"""Left and right share of each channel, in the order of WAVE: front, centre, low frequencies, back, sides (ITU-R BS.775)."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound that can be gone through from its beginning as often as wanted."""

    name: str
    """The file, for messages."""
    rate_hz: int
    num_channels: int
    read: Callable[[], Iterator[Samples]]
    """Its blocks, (N, C), not checked."""

    def blocks(self, seconds: float | None = None) -> Iterator[Samples]:
        """(N, C) float32, about -1..1; no more than the first ``seconds``.

        Raises MediaError for a sound without samples, for NaN or infinity, and for a file that is damaged, naming it.
        """
        left = None if seconds is None else max(1, round(seconds * self.rate_hz))
        is_empty = True
        for block in self.read():
            taken = block if left is None else block[:left]
            if not len(taken):
                continue
            if not np.isfinite(taken).all():
                raise MediaError("sound_not_finite", f"{self.name}: the sound holds NaN or infinity")
            if (peak := float(np.abs(taken).max())) > MOST_LEVEL:
                raise MediaError(
                    "sound_level", f"{self.name}: its samples reach {peak:.3g}, where 1 is full scale; scale them"
                )
            is_empty = False
            yield taken
            if left is not None:
                left -= len(taken)
                if left <= 0:
                    return
        if is_empty:
            raise MediaError("sound_empty", f"{self.name}: the sound has no samples")

    def mono(self, rate_hz: int, seconds: float | None = None) -> Iterator[Samples]:
        """(N,) blocks of the mean of its channels, at another rate (soxr, high quality, as ``pipeline.encoders.mel.resampled``)."""
        blocks = (block.mean(axis=1, dtype=np.float32) for block in self.blocks(seconds))
        return _at_rate(blocks, self.rate_hz, rate_hz, 1)

    def played(self, seconds: float | None = None) -> tuple[int, int, Iterator[Samples]]:
        """Rate, channels and blocks (N, C) of what a video of it holds: mono and stereo as they are, more as stereo, at a rate that
        AAC has.
        """
        rate_hz = self.rate_hz if self.rate_hz in AAC_RATES_HZ else PLAYED_RATE_HZ
        num_channels = min(self.num_channels, 2)
        blocks = (as_stereo(block) if self.num_channels > 2 else block for block in self.blocks(seconds))
        return rate_hz, num_channels, _at_rate(blocks, self.rate_hz, rate_hz, num_channels)


def as_stereo(block_NC: Samples) -> Samples:
    """(N, 2) of three channels or more; never louder than full scale. Layouts that WAVE does not have: all in the middle."""
    shares = np.asarray(STEREO_OF.get(block_NC.shape[1], [(1.0, 1.0)] * block_NC.shape[1]), np.float32)
    mixed: Samples = block_NC @ (shares / shares.sum(axis=0))
    return mixed


def _at_rate(blocks: Iterable[Samples], from_hz: int, to_hz: int, num_channels: int) -> Iterator[Samples]:
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, num_channels, dtype="float32", quality="HQ")
    shape = (0,) if num_channels == 1 else (0, num_channels)
    is_mono_column = False
    for block in blocks:
        is_mono_column = block.ndim == 2 and num_channels == 1
        changed: Samples = stream.resample_chunk(block[:, 0] if is_mono_column else block)
        if len(changed):
            yield changed[:, None] if is_mono_column else changed
    rest: Samples = stream.resample_chunk(np.zeros(shape, np.float32), last=True)
    if len(rest):
        yield rest[:, None] if is_mono_column else rest


def sound_of_array(samples: NDArray[np.floating], rate_hz: int, name: str = "the sound") -> Sound:
    """A sound in memory, (samples,) or (samples, channels). Raises MediaError for a rate that no sound has."""
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not samples.shape[1]):
        raise ValueError(f"a sound is (samples,) or (samples, channels), got {samples.shape}")
    columns = samples[:, None] if samples.ndim == 1 else samples
    _check_rate(rate_hz, name)

    def read() -> Iterator[Samples]:
        for first in range(0, len(columns), BLOCK_SAMPLES):
            yield np.ascontiguousarray(columns[first : first + BLOCK_SAMPLES], dtype=np.float32)

    return Sound(name, rate_hz, columns.shape[1], read)


def open_sound(path: Path) -> Sound:
    """The sound of a file: whatever libsndfile reads, else the first sound track of whatever ffmpeg reads.

    Only the header is read. Raises MediaError, naming the file, where there is none.
    """
    name = str(path)
    if not path.is_file():
        raise MediaError("missing", f"{name}: there is no such file")
    if not path.stat().st_size:
        raise MediaError("sound_empty", f"{name}: the file is empty")
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, num_channels = int(file.samplerate), int(file.channels)
        read = _by_soundfile(path)
    except soundfile.LibsndfileError:
        rate_hz, num_channels = _track_of(path)
        read = _by_av(path, num_channels)
    _check_rate(rate_hz, name)
    return Sound(name, rate_hz, num_channels, read)


def _check_rate(rate_hz: int, name: str) -> None:
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise MediaError(
            "sound_rate",
            f"{name}: its sample rate is {rate_hz} Hz; {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz can be used",
        )


def _by_soundfile(path: Path) -> Callable[[], Iterator[Samples]]:
    def read() -> Iterator[Samples]:
        try:
            with soundfile.SoundFile(path) as file:
                while len(block := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                    yield block
        except soundfile.LibsndfileError as error:
            raise MediaError("damaged", f"{path}: the sound cannot be decoded: {error.error_string}") from error

    return read


def _track_of(path: Path) -> tuple[int, int]:
    """Rate and channels."""
    try:
        with path.open("rb") as file, av.open(file, mode="r", options=NO_OTHER_FILES) as container:
            if not container.streams.audio:
                raise MediaError("no_audio", f"{path}: it has no sound track")
            track = container.streams.audio[0]
            return track.rate, track.channels
    except av.error.FFmpegError as error:
        raise MediaError("not_media", f"{path}: it is no sound that can be read: {error.strerror}") from error
    except OSError as error:
        raise MediaError("unreadable", f"{path}: it cannot be read: {error.strerror or error}") from error


def _by_av(path: Path, num_channels: int) -> Callable[[], Iterator[Samples]]:
    def read() -> Iterator[Samples]:
        try:
            with path.open("rb") as file, av.open(file, mode="r", options=NO_OTHER_FILES) as container:
                track = container.streams.audio[0]
                for part in _alike(container.decode(track), track.layout, track.rate):
                    yield np.ascontiguousarray(part.to_ndarray().T, dtype=np.float32)
        except av.error.FFmpegError as error:
            raise MediaError("damaged", f"{path}: the sound cannot be decoded: {error.strerror}") from error
        except OSError as error:
            raise MediaError("unreadable", f"{path}: it cannot be read: {error.strerror or error}") from error

    return read


def _alike(frames: Iterable[av.AudioFrame], layout: av.AudioLayout, rate_hz: int) -> Iterator[av.AudioFrame]:
    """Frames of floats, all with the channels and the rate of the header: broadcasts change them on the way."""
    resampler, kind = None, None
    for frame in frames:
        own = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or own != kind:
            if resampler is not None:
                yield from resampler.resample(None)
            resampler, kind = av.AudioResampler("fltp", layout, rate_hz), own
        frame.pts = None  # where stamps have gaps the sound has none
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)
