"""Previews: small frames and the sound of a measured video, stored so that encoders need no other decode.

``<stem>.frames.npz``: JPEG frames and their times. ``<stem>.flac``: the sound, mono, 44.1 kHz, from the file's time 0 on.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt
import soundfile
from pydantic import Field

from pipeline.errors import PreviewError
from pipeline.measure.sound import SAMPLE_RATE_HZ, SoundTrack, to_mono
from pipeline.settings import Settings

BLOCK_SECONDS = 10
JPEG_QUALITY = 92


class PreviewSettings(Settings):
    """Size and number of the frames that are stored for the picture encoder and the report."""

    every_seconds: float = Field(1.0, gt=0)
    """Time from one stored frame to the next."""
    short_side_px: int = Field(256, ge=32)
    """Length of a stored frame's shorter side: at least the input size of the picture encoder."""


class FrameRoll:
    """Collects frames as JPEG while a video is decoded."""

    def __init__(self, settings: PreviewSettings) -> None:
        self._settings = settings
        self._times: list[float] = []
        self._jpegs: list[bytes] = []

    @property
    def short_side_px(self) -> int:
        return self._settings.short_side_px

    def wants(self, seconds: float) -> bool:
        return not self._times or seconds - self._times[-1] >= self._settings.every_seconds - 0.001

    def add(self, seconds: float, frame_rgb: npt.NDArray[np.uint8]) -> None:
        done, jpeg = cv2.imencode(".jpg", frame_rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        self._times.append(seconds)
        self._jpegs.append(jpeg.tobytes())

    def save(self, path: Path) -> None:
        ends = np.cumsum([len(jpeg) for jpeg in self._jpegs], dtype=np.int64)
        with path.open("wb") as file:
            np.savez(
                file,
                seconds=np.asarray(self._times, np.float64),
                ends=ends,
                jpegs=np.frombuffer(b"".join(self._jpegs), np.uint8),
            )


def save_sound(track: SoundTrack, path: Path) -> None:
    """Writes the whole track as mono FLAC, a block at a time. Raises OSError, as on a full disk."""
    with path.open("wb+", buffering=0) as opened:
        target = _ErrorKeepingFile(opened)
        with soundfile.SoundFile(target, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format="FLAC") as file:
            for start in range(0, -(-track.num_samples // SAMPLE_RATE_HZ), BLOCK_SECONDS):
                stop = min(start + BLOCK_SECONDS, track.end_seconds)
                file.write(to_mono(track.between(start, stop)))
        if target.error is not None:
            raise target.error


class _ErrorKeepingFile:
    """A file whose writes never raise: the first error is kept in ``error``. libsndfile would replace it by "system error"."""

    def __init__(self, file: io.RawIOBase) -> None:
        """``file`` must be unbuffered: with a buffer the error would be raised elsewhere."""
        self._file = file
        self.error: OSError | None = None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)


def read_frames(file: IO[bytes], spans: Sequence[tuple[float, float]], num_frames: int) -> list[npt.NDArray[np.uint8]]:
    """For each span in seconds, up to ``num_frames`` frames spread evenly over it: (T, H, W, 3) uint8 RGB.

    A span without a stored frame gets the nearest one. Raises PreviewError if the file is damaged.
    """
    with _errors_as_damage("frames"), np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
        seconds, ends, jpegs = arrays["seconds"], arrays["ends"], arrays["jpegs"]
    chosen: list[npt.NDArray[np.uint8]] = []
    for start, end in spans:
        inside = np.flatnonzero((seconds >= start - 0.001) & (seconds < end))
        if inside.size == 0:
            inside = np.asarray([np.abs(seconds - start).argmin()])
        evenly = inside[np.linspace(0, inside.size - 1, min(num_frames, inside.size)).round().astype(int)]
        frames = []
        for index in evenly:
            begin = int(ends[index - 1]) if index else 0
            with _errors_as_damage("frames"):
                frame = cv2.imdecode(jpegs[begin : int(ends[index])], cv2.IMREAD_COLOR)
                if frame is None:
                    raise ValueError(f"frame {index} is no JPEG")
            frames.append(np.asarray(frame)[:, :, ::-1])
        chosen.append(np.stack(frames).astype(np.uint8))
    return chosen


def read_sounds(file: IO[bytes], spans: Sequence[tuple[float, float]]) -> list[npt.NDArray[np.float32]]:
    """For each span in seconds its sound, mono float32 at 44.1 kHz, -1..1; silence after the end of the track.

    Raises PreviewError if the file is damaged.
    """
    with _errors_as_damage("sound"), soundfile.SoundFile(file) as sound:
        sounds = []
        for start, end in spans:
            first, last = round(start * SAMPLE_RATE_HZ), round(end * SAMPLE_RATE_HZ)
            mono = np.zeros(last - first, np.float32)
            if first < sound.frames:
                sound.seek(first)
                samples = sound.read(last - first, dtype="float32")
                mono[: len(samples)] = samples
            sounds.append(mono)
    return sounds


@contextlib.contextmanager
def _errors_as_damage(what: str) -> Iterator[None]:
    """Raises errors of the block as a PreviewError. ``what``: the part of the previews that is read."""
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        cv2.error,
    ) as error:
        raise PreviewError(
            "previews_damaged",
            f"the {what} kept for the encoders cannot be read ({error})",
        ) from error
