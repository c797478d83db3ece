"""Decodes frames with torchcodec, which can use a GPU. Frames are chosen as for PyAV, so that both decode the same ones.

A file that ends early or lacks a frame raises the same errors as with PyAV. Damage inside a frame is not reported: FFmpeg conceals it,
and torchcodec has no setting against that. Tested on CPUs only.

Shape suffixes: T frames, C=3 colours, H, W pixels.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.errors import DataError, MediaError
from trainer.streaming.frames import EARLY_SECONDS, missing_frames, shown_seconds

TRIAL_PX = 256
"""Side of the test video, in pixels: the decoder of a GPU refuses much smaller videos."""


def decode_pictures(
    mp4: bytes, seconds: Sequence[float], side_px: int, place: float, *, upscale: bool, device: str
) -> npt.NDArray[np.uint8]:
    """Square pictures (T, C, H, W), uint8 RGB, like those of ``frames.decode_frames`` and ``frames.as_pictures``.

    ``seconds``: times of the frames. ``place``: position of the crop on the long side, 0..1. ``upscale``: whether smaller frames are
    enlarged. Colour conversion and scaling run on the device, so that values differ slightly from PyAV's.

    Raises MediaError as those functions do, and DataError if this machine cannot decode on the device.
    """
    frame_seconds = shown_seconds(mp4, seconds)
    try:
        decoded = _frames_at(mp4, frame_seconds, device)
    except (RuntimeError, ValueError, IndexError) as error:
        check_device(device)
        raise MediaError("damaged", f"it cannot be decoded: {error}") from error
    is_other_T = np.abs(decoded.pts_seconds.cpu().numpy() - np.asarray(frame_seconds)) > EARLY_SECONDS
    if is_other_T.any():  # torchcodec returned another frame in place of a missing one
        raise missing_frames(int(is_other_T.sum()), len(frame_seconds))
    frames_TCHW = decoded.data
    height, width = frames_TCHW.shape[-2:]
    short = min(height, width)
    if short < side_px and not upscale:
        raise MediaError("too_small", f"its picture is {width}x{height}, smaller than {side_px} px")
    if short != side_px:
        size = (round(height * side_px / short), round(width * side_px / short))
        scaled = functional.interpolate(frames_TCHW.float(), size, mode="bilinear", antialias=True)
        frames_TCHW = scaled.round().clamp(0, 255).to(torch.uint8)
    height, width = frames_TCHW.shape[-2:]
    top, left = round(place * (height - side_px)), round(place * (width - side_px))
    squares_TCHW: npt.NDArray[np.uint8] = frames_TCHW[:, :, top : top + side_px, left : left + side_px].cpu().numpy()
    return squares_TCHW


def check_device(device: str) -> None:
    """Raises DataError, naming the setting, if torchcodec cannot be loaded or cannot decode a test video on this device."""
    try:
        _frames_at(_trial_mp4(), [0.0], device)
    except ImportError as error:
        raise DataError(
            "reader.decoder: 'torchcodec' is not installed: pip install torchcodec, or use 'pyav'"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reason = first_line.removesuffix(" Likely causes:").rstrip(".")
        raise DataError(
            f"reader.decoder, reader.decoder_device: torchcodec cannot decode on {device!r} here: {reason} (it needs FFmpeg's "
            f"shared libraries; on a GPU also NVIDIA's decoder and a wheel built for it; GPUs on this machine: "
            f"{torch.cuda.device_count()}). Install what is missing, or use the decoder 'pyav'"
        ) from error


def _frames_at(mp4: bytes, seconds: Sequence[float], device: str) -> Any:
    """torchcodec's FrameBatch. Its import raises RuntimeError where FFmpeg's libraries are missing."""
    from torchcodec.decoders import VideoDecoder  # noqa: PLC0415 (may not be installed)

    decoder = VideoDecoder(mp4, device=device, seek_mode="exact")
    return decoder.get_frames_played_at([second + EARLY_SECONDS for second in seconds])


@functools.cache
def _trial_mp4() -> bytes:
    """A video of one grey frame."""
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = TRIAL_PX
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((TRIAL_PX, TRIAL_PX, 3), 90, np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()
