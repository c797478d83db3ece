"""Frames by torchcodec, which can decode on a GPU. Not tried yet: no machine with it was at hand when this was written.

Shape suffixes: T frames, C=3 colours, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torchcodec.decoders import VideoDecoder

from pipeline.errors import MediaError


def decode_pictures(
    mp4: bytes, seconds: Sequence[float], side_px: int, place: float, *, upscale: bool, device: str
) -> npt.NDArray[np.uint8]:
    """What ``frames.decode_frames`` and ``frames.as_pictures`` give together: (T, C, H, W), RGB. The scaling is torch's, on the
    device; the bytes differ from PyAV's a little. Raises MediaError.
    """
    try:
        decoder = VideoDecoder(mp4, device=device, seek_mode="exact")
        facts = decoder.metadata
        last = float(facts.end_stream_seconds) - 1e-3
        times = [min(max(second, float(facts.begin_stream_seconds)), last) for second in seconds]
        frames_TCHW = decoder.get_frames_played_at(times).data
    except (RuntimeError, ValueError, IndexError) as error:
        raise MediaError("damaged", f"it cannot be decoded: {error}") from error
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
    cut: npt.NDArray[np.uint8] = frames_TCHW[:, :, top : top + side_px, left : left + side_px].cpu().numpy()
    return cut
