"""Write a video from frames and sound that are in memory, the same bytes every time.

The picture goes to ffmpeg through a pipe in IVF, the simplest container that gives every frame a time of its own.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MediaError
from pipeline.media import ffmpeg as media

_TICKS = 90000
"""Ticks in a second of the frame times."""


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]] | None,
    sound: NDArray[np.float32] | None,
    *,
    fps: float | None = 25.0,
    frame_times_seconds: Sequence[float] | None = None,
    sample_rate: int = 48000,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    pix_fmt: str = "yuv420p",
    crf: int = 23,
    preset: str | None = "superfast",
    gop: int | None = None,
    rotation: int = 0,
    faststart: bool = False,
    extra: Sequence[str] = (),
) -> None:
    """Encode frames (height, width, 3) uint8 RGB and sound (samples,) or (samples, channels), -1..1, to ``path``.

    The suffix of ``path`` chooses the container. ``frames`` or ``sound`` may be None: no such track.
    ``frame_times_seconds`` (rising, one per frame) makes the frame rate variable and replaces ``fps``.
    ``gop`` is the most frames from key frame to key frame; None leaves it to the encoder. ``rotation`` (0, 90, 180,
    270 degrees) stores the picture turned and tags it, so that players show the frames as they were given.
    ``preset=None`` gives the encoder none. ``extra`` goes to ffmpeg before the output's name.

    Raises ValueError for arguments that do not fit together, MediaError when ffmpeg fails; ``path`` stays as it was.
    """
    _check(frames, sound, fps, frame_times_seconds, rotation)
    picture = _Picture(frames, fps, frame_times_seconds, rotation, pix_fmt) if frames is not None else None
    output = ["-map_metadata", "-1", "-fflags", "+bitexact", *(["-movflags", "+faststart"] if faststart else [])]
    if picture is not None:
        colours = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
        output += ["-c:v", video_codec, "-crf", str(crf), "-threads:v", "1", "-flags:v", "+bitexact", *colours]
        convert = "" if picture.planar else "scale=out_color_matrix=smpte170m:out_range=tv:flags=bilinear+bitexact,"
        output += ["-vf", f"{convert}format={pix_fmt}", "-color_range", "tv"]
        output += ["-fps_mode", "passthrough" if frame_times_seconds is not None else "cfr"]
        # frames out of order would make the container's own length shorter than the last frame's time
        output += ["-enc_time_base", f"1:{_TICKS}", "-bf", "0"] if frame_times_seconds is not None else []
        output += ["-preset", preset] if preset else []
        output += ["-g", str(gop)] if gop else []
    if sound is not None:
        output += ["-aac_coder", "fast"] if audio_codec == "aac" else []
        output += ["-c:a", audio_codec, "-threads:a", "1", "-flags:a", "+bitexact"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        inputs = [] if picture is None else picture.arguments()
        if sound is not None:
            samples = sound.reshape(len(sound), -1)
            raw = Path(folder) / "sound.f32"
            raw.write_bytes(np.ascontiguousarray(samples, dtype="<f4").tobytes())
            inputs += ["-f", "f32le", "-ar", str(sample_rate), "-ac", str(samples.shape[1]), "-i", str(raw)]
        written = Path(folder) / f"written{path.suffix}"
        # plain C for what ffmpeg computes itself, whatever the processor has; x264 gives the same bytes with any instructions
        program = [
            media.ffmpeg_path(),
            "-cpuflags",
            "0",
            "-v",
            "error",
            "-nostdin",
            "-y",
            "-filter_threads",
            "1",
            *inputs,
        ]
        _run([*program, *output, *extra, str(written)], picture)
        written.replace(path)


def _check(
    frames: object, sound: object, fps: float | None, frame_times_seconds: Sequence[float] | None, rotation: int
) -> None:
    if frames is None and sound is None:
        raise ValueError("a video needs frames, sound or both: got neither")
    if fps is None and frame_times_seconds is None and frames is not None:
        raise ValueError("give fps or frame_times_seconds")
    if rotation not in (0, 90, 180, 270):
        raise ValueError(f"rotation is 0, 90, 180 or 270 degrees, got {rotation}")
    if frame_times_seconds is not None and any(b <= a for a, b in pairwise(frame_times_seconds)):
        raise ValueError("frame_times_seconds must rise from frame to frame")


class _Picture:
    """The frames as an IVF stream, in the 4:2:0 planes that most encoders want where the size and format allow it."""

    def __init__(
        self,
        frames: Iterable[NDArray[np.uint8]],
        fps: float | None,
        times: Sequence[float] | None,
        rotation: int,
        pix_fmt: str,
    ) -> None:
        self._fps, self._times, self._rotation = fps, times, rotation
        waiting = iter(frames)
        first = next(waiting, None)
        if first is None:
            raise ValueError("there are no frames")
        self._frames = chain([first], waiting)
        self._shape = first.shape
        self.planar = pix_fmt.startswith("yuv420p") and first.shape[0] % 2 == 0 and first.shape[1] % 2 == 0

    def arguments(self) -> list[str]:
        """What ffmpeg is told about its input."""
        rate = [] if self._times is not None else ["-r", str(Fraction(self._fps or 0).limit_denominator(1001))]
        turned = ["-noautorotate", "-display_rotation", str(-self._rotation)] if self._rotation else []
        return [*rate, *turned, "-f", "ivf", "-i", "pipe:0"]

    def write(self, stream: IO[bytes]) -> None:
        """Send every frame."""
        turns = self._rotation // 90
        height, width = self._shape[:2] if turns % 2 == 0 else self._shape[1::-1]
        code = b"I420" if self.planar else b"RV24"
        stream.write(b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, code, width, height, _TICKS, 1, 0, 0))
        number = -1
        for number, frame in enumerate(self._frames):
            if frame.shape != self._shape or frame.dtype != np.uint8:
                raise ValueError(f"frame {number} is {frame.shape} {frame.dtype}, not {self._shape} uint8 as frame 0")
            if self._times is not None and number >= len(self._times):
                raise ValueError(f"more frames than the {len(self._times)} frame_times_seconds")
            at = number if self._times is None else round(self._times[number] * _TICKS)
            turned = np.ascontiguousarray(np.rot90(frame, turns))
            pixels = cv2.cvtColor(turned, cv2.COLOR_RGB2YUV_I420 if self.planar else cv2.COLOR_RGB2BGR)
            stream.write(struct.pack("<IQ", pixels.size, at))
            stream.write(np.ascontiguousarray(pixels).data)
        if self._times is not None and number + 1 != len(self._times):
            raise ValueError(f"{number + 1} frames for {len(self._times)} frame_times_seconds")


def _run(command: list[str], picture: _Picture | None) -> None:
    with tempfile.TemporaryFile() as errors:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL if picture is None else subprocess.PIPE, stderr=errors
        )
        try:
            if picture is not None:
                assert process.stdin is not None
                with process.stdin as stream:
                    picture.write(stream)
        except BrokenPipeError:
            pass  # ffmpeg has ended early: its exit status and last lines say why
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        if status != 0:
            errors.seek(0)
            last = b"\n".join(errors.read().splitlines()[-8:]).decode(errors="replace")
            raise MediaError("encode_failed", f"ffmpeg ended with status {status}: {last}\n  {' '.join(command)}")
