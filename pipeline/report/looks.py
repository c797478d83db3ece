"""Thumbnails of a clip: a strip of frames and a spectrogram, both as WebP."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import soundfile

from pipeline.dataset.manifest import Manifest
from pipeline.errors import ClipError
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.media.decoding import Decoding, Picture
from pipeline.report.clip_files import ClipFiles, ClipPlace, Frames, mono

logger = logging.getLogger(__name__)

FRAME_SIZE = (192, 108)
NUM_FRAMES = 3
SPECTRUM_SIZE = (192, 40)
FRAME_QUALITY = 55
SPECTRUM_QUALITY = 40
_FFT, _LOWEST_HZ, _HIGHEST_HZ, _RANGE_DB = 2048, 60.0, 16_000.0, 70.0


def strip_of(
    place: ClipPlace, files: ClipFiles, manifest: Manifest | None, num_frames: int = NUM_FRAMES
) -> bytes | None:
    """Frames of FRAME_SIZE side by side, spread evenly over the clip. None: they cannot be read.

    A kept clip's frames come from its tar, as used in training; a rejected clip's from the previews.
    """
    frames = _shard_frames(place, files, manifest, num_frames) if place.shard is not None and manifest else None
    if not frames:
        frames = files.preview_frames(place, num_frames)
    if not frames:
        return None
    repeated = [frames[i * len(frames) // num_frames] for i in range(num_frames)]  # short clips have fewer frames
    return strip(repeated)


def spectrum_of(place: ClipPlace, files: ClipFiles) -> bytes | None:
    """A spectrogram of the clip's sound, SPECTRUM_SIZE, time from left to right. None: the sound cannot be read."""
    sound = sound_of(place, files)
    return spectrum(sound) if sound is not None and len(sound) >= _FFT else None


def sound_of(place: ClipPlace, files: ClipFiles) -> npt.NDArray[np.float32] | None:
    """The clip's sound, (N,) mono; a kept clip's at the rate of its FLAC, a rejected clip's at 44.1 kHz."""
    part = files.member(place, files.renditions[0], "flac") if place.shard is not None and files.renditions else None
    if part is not None:
        try:
            return mono(files.read(part))
        except (OSError, soundfile.LibsndfileError) as error:
            logger.warning("the sound of %s in %s cannot be read: %s", place.key, part.path, error)
    return files.preview_sound(place)


def _shard_frames(place: ClipPlace, files: ClipFiles, manifest: Manifest, num_frames: int) -> Frames | None:
    rendition = files.small_rendition(manifest, FRAME_SIZE[1])
    part = files.member(place, rendition, "mp4")
    if part is None:
        return None
    seconds = (place.end_ms - place.start_ms) / 1000
    times = [seconds * (2 * i + 1) / (2 * num_frames) for i in range(num_frames)]
    try:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(files.read(part))
            file.flush()
            return [_frame_at(Path(file.name), time) for time in times]
    except (OSError, ClipError) as error:
        logger.warning("the frames of %s in %s cannot be read: %s", place.key, part.path, error)
        return None


def _frame_at(path: Path, seconds: float) -> npt.NDArray[np.uint8]:
    """The key frame at or before the time: one seek, one decoded frame. Black where none can be decoded."""
    for item in Decoding(path, sample_rate_hz=SAMPLE_RATE_HZ, start_seconds=seconds, end_seconds=seconds + 2):
        if isinstance(item, Picture):
            return item.rgb(FRAME_SIZE[1])
    return np.zeros((FRAME_SIZE[1], FRAME_SIZE[0], 3), np.uint8)


def strip(frames: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    """Frames (H, W, 3) RGB side by side, each scaled to fit FRAME_SIZE, with black bars."""
    width, height = FRAME_SIZE
    canvas = np.zeros((height, width * len(frames), 3), np.uint8)
    for index, frame in enumerate(frames):
        factor = min(width / frame.shape[1], height / frame.shape[0])
        size = (max(round(frame.shape[1] * factor), 1), max(round(frame.shape[0] * factor), 1))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        left, top = index * width + (width - size[0]) // 2, (height - size[1]) // 2
        canvas[top : top + size[1], left : left + size[0]] = small
    return _webp(canvas[:, :, ::-1], FRAME_QUALITY)


def spectrum(sound: npt.NDArray[np.float32]) -> bytes:
    """The spectrogram of sound (N,) as WebP: 60 Hz to 16 kHz logarithmic, the 70 dB below the maximum, in cividis."""
    width, height = SPECTRUM_SIZE
    starts = np.linspace(0, len(sound) - _FFT, width).astype(int)
    windows = np.stack([sound[start : start + _FFT] for start in starts]) * np.hanning(_FFT).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2 @ _bands(height)
    level_db = 10 * np.log10(np.maximum(power, 1e-10))
    loudest = max(float(level_db.max()), -20.0)
    level = np.clip((level_db - loudest) / _RANGE_DB + 1, 0, 1).T[::-1]
    return _webp(
        cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS).astype(np.uint8), SPECTRUM_QUALITY
    )


@functools.cache
def _bands(count: int) -> npt.NDArray[np.float32]:
    """Triangular filters on a logarithmic scale, (frequencies, bands), each summing to 1."""
    frequencies = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE_HZ)
    corners = np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, count + 2)
    rising = (frequencies[:, None] - corners[None, :-2]) / np.diff(corners)[None, :-1]
    falling = (corners[None, 2:] - frequencies[:, None]) / np.diff(corners)[None, 1:]
    bands = np.clip(np.minimum(rising, falling), 0, None)
    nearest = np.abs(frequencies[:, None] - corners[None, 1:-1]).argmin(axis=0)
    bands[nearest, np.arange(count)] += 1e-6  # so that a band narrower than the frequency step is not empty
    return np.asarray(bands / bands.sum(axis=0, keepdims=True), np.float32)


def _webp(image_bgr: npt.NDArray[np.uint8], quality: int) -> bytes:
    done, encoded = cv2.imencode(".webp", np.ascontiguousarray(image_bgr), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done
    return encoded.tobytes()
