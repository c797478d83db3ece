"""Decodes one sample: from the bytes of its members to frames, sound and mel. Webdataset reads the tar.

Shape suffixes: T frames, K neighbouring frames, C=3 colours, H, W pixels; N samples of sound; M mel bands.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from pydantic import Field, model_validator
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.encoders.mel import LogMel, MelConfig, check_sound, resampled
from pipeline.errors import MediaError
from pipeline.schema import unit_interval
from pipeline.settings import Settings
from trainer.streaming import frames
from trainer.streaming.shards import READ_MEMBERS, Place

Sound = npt.NDArray[np.float32]


class SampleError(MediaError):
    """A sample cannot be used. ``code`` names the damaged member, or is ``tar``."""


class SampleSettings(Settings):
    """What is read of a sample."""

    num_frames: int = Field(default=5, ge=1)
    """Frames of a sample. The window is cut into this many equal segments; each gives one frame, at a random time when shuffling, else at
    its middle."""
    picture_px: int = Field(default=256, ge=16)
    """Side of the square that is cropped from each frame, in pixels. The smallest rendition with at least this short side is read."""
    window_seconds: float = Field(default=10.0, gt=0)
    """Length of the window that frames and sound are read from, in seconds: at a random place in the clip when shuffling, else in its
    middle. A shorter clip is read whole, and silence follows its sound."""
    burst_frames: int = Field(default=0, ge=0, le=256)
    """Neighbouring frames that are read beside the others, ``burst_fps`` to the second, from a random moment of the window when shuffling,
    else in its middle. They show how pictures move. 0: none. A window that is too short for them repeats its last frame."""
    burst_fps: float = Field(default=12.5, gt=0, le=240)
    """Rate of the neighbouring frames. They begin at a whole multiple of its period after the window's start."""
    crop: Literal["random", "centre"] = "random"
    """Place of the square along the frame's long side, the same for all frames of a sample. random: only when shuffling, else centre."""
    upscale: bool = False
    """Whether smaller pictures are scaled up. If not, a dataset without a large enough rendition is refused, and a sample that is
    smaller than its rendition counts as unreadable."""
    pictures: bool = True
    """Whether frames are decoded. If not, samples have 0 frames."""
    sound: bool = True
    """Whether the sound is decoded. If not, sounds have 0 samples; only the header is read, for the length."""
    mel: bool = True
    """Whether the log-mel spectrogram of the sound is computed (``pipeline.encoders.mel`` with its defaults)."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """What decodes pictures. torchcodec can use a GPU; it needs the extra of that name and FFmpeg's shared libraries, and does not report
    damage inside a frame."""
    decoder_device: str = "cuda"
    """Where torchcodec decodes: ``cuda``, ``cuda:1`` or ``cpu``. pyav always uses the CPU."""

    @model_validator(mode="after")
    def _check_mel_has_sound(self) -> Self:
        if self.mel and not self.sound:
            raise ValueError("mel needs sound: set mel to false as well, or sound to true")
        return self


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded sample."""

    key: str
    source_id: str
    labels: tuple[str, ...]
    caption: str | None
    frames_TCHW: npt.NDArray[np.uint8]
    burst_KCHW: npt.NDArray[np.uint8]
    burst_start: int
    """Number of the first frame of the burst, counted from the window's start at ``burst_fps``."""
    sound_N: Sound
    mel_MT: Tensor | None
    seconds: float
    """Length of the sound in ``sound_N``, in seconds; silence follows it."""


@dataclass(frozen=True, slots=True)
class RandomChoices:
    """The random choices for one sample. They depend on the seed, the round and the key; without shuffling they are fixed."""

    seed: int
    round: int
    key: str
    shuffle: bool

    def number(self, *what: object) -> float:
        """A number in [0, 1) for the choice named ``what``; 0.5 when not shuffling."""
        return unit_interval(self.seed, self.round, self.key, *what) if self.shuffle else 0.5


class SampleDecoder:
    """Decodes samples, one at a time."""

    def __init__(self, settings: SampleSettings) -> None:
        self._settings = settings
        self._config = MelConfig()
        self._log_mel = LogMel(self._config) if settings.mel else None
        num_samples = round(settings.window_seconds * self._config.sample_rate_hz)
        self.num_sound_samples = num_samples if settings.sound else 0
        self.num_pictures = settings.num_frames if settings.pictures else 0
        self.num_in_burst = settings.burst_frames if settings.pictures else 0
        self.mel_shape = (self._config.num_mels, self._config.num_frames(num_samples))

    def decode(self, place: Place, tar: bytes, draw: RandomChoices) -> Decoded:
        """Decodes a sample from ``tar``, the bytes of its members with their headers. Raises SampleError."""
        members = unpacked(place, tar)
        facts = _facts(members["json"])
        with _blaming("flac"):
            sound_N, start, seconds = self._sound(members["flac"], draw)
        mel_MT = self._log_mel(torch.from_numpy(sound_N)[None])[0] if self._log_mel else None
        num_frames = self._settings.num_frames
        wanted = [start + (i + draw.number("frame", i)) * seconds / num_frames for i in range(self.num_pictures)]
        burst_start, burst = self._burst(seconds, draw)
        with _blaming("mp4"):
            frames_NCHW = self._frames(members["mp4"], [*wanted, *(start + moment for moment in burst)], draw)
        frames_TCHW, burst_KCHW = frames_NCHW[: len(wanted)], frames_NCHW[len(wanted) :]
        return Decoded(place.key, *facts, frames_TCHW, burst_KCHW, burst_start, sound_N, mel_MT, seconds)

    def _burst(self, seconds: float, draw: RandomChoices) -> tuple[int, list[float]]:
        """The number of the first neighbouring frame, and the times of all, in seconds from the window's start."""
        count, fps = self.num_in_burst, self._settings.burst_fps
        if not count:
            return 0, []
        last = max(0, int(seconds * fps) - count)  # the last number that leaves room for all
        first = min(last, int(draw.number("burst") * (last + 1)))
        latest = max(0.0, seconds - 1 / fps)
        return first, [min((first + index + 0.5) / fps, latest) for index in range(count)]

    def _sound(self, data: bytes, draw: RandomChoices) -> tuple[Sound, float, float]:
        """Mono sound of the window, with silence after a clip that is too short; start and length of the sound, in seconds."""
        rate_hz = self._config.sample_rate_hz
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            length = file.frames / file.samplerate
            if file.frames * rate_hz < self._config.fft_size * file.samplerate:
                raise MediaError(
                    "too_short", f"its sound has {file.frames} samples at {file.samplerate} Hz: less than one mel frame"
                )
            window = min(self._settings.window_seconds, length)
            first = round((length - window) * draw.number("window") * file.samplerate)
            count = min(round(window * file.samplerate), file.frames - first)
            if not self._settings.sound:
                return np.zeros(0, np.float32), first / file.samplerate, count / file.samplerate
            file.seek(first)
            samples_NC = file.read(count, dtype="float32", always_2d=True)
            if len(samples_NC) < count:
                raise MediaError(
                    "truncated", f"its sound ends after {first + len(samples_NC)} of {file.frames} samples"
                )
            mono = resampled(samples_NC.mean(axis=1, dtype=np.float32), file.samplerate, rate_hz)[
                : self.num_sound_samples
            ]
            start = first / file.samplerate
        check_sound(mono)
        sound_N = np.zeros(self.num_sound_samples, np.float32)
        sound_N[: len(mono)] = mono
        return sound_N, start, len(mono) / rate_hz

    def _frames(self, mp4: bytes, seconds: Sequence[float], draw: RandomChoices) -> npt.NDArray[np.uint8]:
        chosen = self._settings
        if not chosen.pictures:
            return np.zeros((0, 3, chosen.picture_px, chosen.picture_px), np.uint8)
        place = draw.number("crop") if chosen.crop == "random" else 0.5
        if chosen.decoder == "torchcodec":
            from trainer.streaming.torchcodec_frames import decode_pictures  # noqa: PLC0415 (may not be installed)

            return decode_pictures(
                mp4, seconds, chosen.picture_px, place, upscale=chosen.upscale, device=chosen.decoder_device
            )
        decoded = frames.decode_frames(mp4, seconds)
        return frames.as_pictures(decoded, chosen.picture_px, place, upscale=chosen.upscale)


def unpacked(place: Place, tar: bytes) -> Mapping[str, bytes]:
    """The members of a sample by their extensions (``flac``, ``json``, ``mp4``). Raises SampleError for an incomplete or foreign one."""
    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        errors.append(error)
        return False  # webdataset stops reading

    if len(tar) < place.end - place.start:
        raise SampleError("tar", f"the shard ends within it, at byte {place.start + len(tar)} of {place.end}")
    opened = [{"url": place.key, "stream": io.BytesIO(tar)}]
    samples = list(group_by_keys(tar_file_expander(opened, handler=note), handler=note))
    extensions = {name for sample in samples for name in sample if not name.startswith("__")}
    missing = [name for name in READ_MEMBERS if name not in extensions]
    if errors or missing or len(samples) != 1:
        why = f": {errors[0]}" if errors else ""
        raise SampleError("tar", f"the shard is damaged where it lies: without {', '.join(missing) or 'order'}{why}")
    if samples[0]["__key__"] != place.key:
        raise SampleError("tar", f"the shard holds {samples[0]['__key__']!r} where the index says {place.key!r}")
    members: Mapping[str, bytes] = samples[0]
    return members


def _facts(data: bytes) -> tuple[str, tuple[str, ...], str | None]:
    """Source, labels and caption of a sample's JSON. Raises SampleError."""
    try:
        record: Any = json.loads(data)
        caption = record["caption"]
        return str(record["source_id"]), tuple(str(label) for label in record["labels"]), caption and str(caption)
    except (ValueError, KeyError, TypeError) as error:
        raise SampleError("json", f"it is damaged ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _blaming(member: str) -> Iterator[None]:
    """Turns decoding errors inside the block into a SampleError that names this member."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise SampleError(member, f"it cannot be decoded: {error.error_string}") from error
    except MediaError as error:
        raise SampleError(member, str(error)) from error
