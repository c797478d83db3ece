"""Reads sounds of any length block by block, from a file (soundfile, else PyAV) or from memory.

Memory holds one block and the state of a resampler, whatever the length of the sound.

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
"""Largest sample value that is accepted. Larger values come from files of floats that were not scaled, and encoders refuse them."""
PLAYED_RATE_HZ = 48_000
"""Sample rate, in a video, of a sound whose own rate AAC does not have."""
NO_OTHER_FILES = {"protocol_whitelist": "none"}
"""Option for libav: a playlist given as a sound cannot open other files."""

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
    """A sound that can be read from its start any number of times."""

    name: str
    """Name of the file, for messages."""
    rate_hz: int
    num_channels: int
    read: Callable[[], Iterator[Samples]]
    """Returns the blocks (N, C), unchecked."""

    def blocks(self, seconds: float | None = None) -> Iterator[Samples]:
        """The blocks (N, C), float32, about -1..1, of the first ``seconds``; None: of the whole sound.

        Raises MediaError, with the name of the file, for a sound without samples, with NaN or infinity, or that cannot be decoded.
        """
        left = None if seconds is None else max(1, round(seconds * self.rate_hz))
        is_empty = True
        for block in self.read():
            samples_NC = block if left is None else block[:left]
            if not len(samples_NC):
                continue
            if not np.isfinite(samples_NC).all():
                raise MediaError("sound_not_finite", f"{self.name}: the sound holds NaN or infinity")
            if (peak := float(np.abs(samples_NC).max())) > MOST_LEVEL:
                raise MediaError(
                    "sound_level", f"{self.name}: its samples reach {peak:.3g}, where 1 is full scale; scale them"
                )
            is_empty = False
            yield samples_NC
            if left is not None:
                left -= len(samples_NC)
                if left <= 0:
                    return
        if is_empty:
            raise MediaError("sound_empty", f"{self.name}: the sound has no samples")

    def mono(self, rate_hz: int, seconds: float | None = None) -> Iterator[Samples]:
        """Blocks (N,) of the mean over channels, resampled to ``rate_hz`` (soxr, high quality, as ``pipeline.encoders.mel.resampled``)."""
        blocks = (block.mean(axis=1, dtype=np.float32) for block in self.blocks(seconds))
        return _at_rate(blocks, self.rate_hz, rate_hz, 1)

    def played(self, seconds: float | None = None) -> tuple[int, int, Iterator[Samples]]:
        """Rate in Hz, number of channels and blocks (N, C) for the track of a video: more than two channels become stereo, and a rate
        that AAC does not have becomes ``PLAYED_RATE_HZ``.
        """
        rate_hz = self.rate_hz if self.rate_hz in AAC_RATES_HZ else PLAYED_RATE_HZ
        num_channels = min(self.num_channels, 2)
        blocks = (as_stereo(block) if self.num_channels > 2 else block for block in self.blocks(seconds))
        return rate_hz, num_channels, _at_rate(blocks, self.rate_hz, rate_hz, num_channels)


def as_stereo(block_NC: Samples) -> Samples:
    """Downmix of three or more channels to (N, 2), never above full scale (ITU-R BS.775). Channels of other layouts go to both sides."""
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
    """A sound from an array, (samples,) or (samples, channels). Raises MediaError for a sample rate out of range."""
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not samples.shape[1]):
        raise ValueError(f"a sound is (samples,) or (samples, channels), got {samples.shape}")
    columns = samples[:, None] if samples.ndim == 1 else samples
    _check_rate(rate_hz, name)

    def read() -> Iterator[Samples]:
        for first in range(0, len(columns), BLOCK_SAMPLES):
            yield np.ascontiguousarray(columns[first : first + BLOCK_SAMPLES], dtype=np.float32)

    return Sound(name, rate_hz, columns.shape[1], read)


def open_sound(path: Path) -> Sound:
    """The sound of a file that libsndfile can read, else the first sound track of a file that ffmpeg can read.

    Only the header is read now. Raises MediaError, with the name of the file, if it has no sound.
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
    """Sample rate in Hz and number of channels of the first sound track."""
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
    """Converts frames to planar floats with the layout and rate of the header: recorded broadcasts may change both in the middle."""
    resampler, kind = None, None
    for frame in frames:
        own = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or own != kind:
            if resampler is not None:
                yield from resampler.resample(None)
            resampler, kind = av.AudioResampler("fltp", layout, rate_hz), own
        frame.pts = None  # gaps between time stamps are not filled with silence
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)
