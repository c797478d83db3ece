"""AVI files of our own making, in which frames may be missing and tracks may begin late: what ffmpeg's muxer does not write."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tests.footage import FPS, HEIGHT, SOUND_HZ, WIDTH, numbered_frames


def jpegs(numbers: Sequence[int]) -> list[bytes]:
    """Numbered frames as JPEG files."""
    return [cv2.imencode(".jpg", frame[:, :, ::-1])[1].tobytes() for frame in numbered_frames(numbers)]


def write_avi(
    path: Path,
    frames: Sequence[bytes],
    sound: npt.NDArray[np.float32],
    *,
    picture_start: int = 0,
    sound_start: int = 0,
    has_index: bool = True,
) -> None:
    """Motion JPEG with mono PCM. An empty frame is a chunk of no bytes, which stands for a frame that was dropped. ``picture_start``
    (frames) and ``sound_start`` (samples) are the ``dwStart`` of the tracks: how late they begin."""
    samples = (sound[:, 0] * 32767).astype("<i2")
    per_frame = round(SOUND_HZ / FPS)
    movi, index = b"movi", b""
    for number, frame in enumerate(frames):
        heard = samples[number * per_frame : (number + 1) * per_frame].tobytes()
        for name, data in ((b"00dc", frame), (b"01wb", heard)):
            index += name + struct.pack("<III", 0x10 if data else 0, len(movi), len(data))
            movi += _chunk(name, data)
    format_of_picture = struct.pack("<IiiHH4sIiiII", 40, WIDTH, HEIGHT, 1, 24, b"MJPG", WIDTH * HEIGHT * 3, 0, 0, 0, 0)
    format_of_sound = struct.pack("<HHIIHHH", 1, 1, SOUND_HZ, SOUND_HZ * 2, 2, 16, 0)
    tracks = [
        _track(b"vids", b"MJPG", round(FPS), picture_start, len(frames), 0, format_of_picture),
        _track(b"auds", bytes(4), SOUND_HZ, sound_start, len(samples), 2, format_of_sound),
    ]
    flags = 0x10 if has_index else 0
    numbers = (round(1e6 / FPS), 0, 0, flags, len(frames), 0, len(tracks), 0, WIDTH, HEIGHT, 0, 0, 0, 0)
    header = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", struct.pack("<14I", *numbers)) + b"".join(tracks))
    body = b"AVI " + header + _chunk(b"LIST", movi) + (_chunk(b"idx1", index) if has_index else b"")
    path.write_bytes(_chunk(b"RIFF", body))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) & 1)


def _track(kind: bytes, codec: bytes, rate: int, start: int, length: int, sample_bytes: int, form: bytes) -> bytes:
    size = (0, 0, WIDTH, HEIGHT)
    numbers = (0, 0, 0, 0, 1, rate, start, length, 0, 0xFFFFFFFF, sample_bytes, *size)
    return _chunk(
        b"LIST",
        b"strl" + _chunk(b"strh", struct.pack("<4s4sIHHIIIIIIII4h", kind, codec, *numbers)) + _chunk(b"strf", form),
    )
