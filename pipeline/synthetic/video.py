"""Encodes frames and sound that are in memory to a video file; equal input gives equal bytes.

The frames go to ffmpeg through a pipe as IVF, a simple container that stores a time with each frame.
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
"""Ticks per second of the frame times."""


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
    """Encodes frames (height, width, 3) uint8 RGB and sound (samples,) or (samples, channels), -1..1, to ``path``.

    Args:
        path: The file; its suffix chooses the container.
        frames: None: no picture track.
        sound: None: no sound track.
        frame_times_seconds: One per frame, rising. The frame rate is then variable, and ``fps`` is not used.
        gop: The largest distance between key frames, in frames. None: the encoder decides.
        rotation: 0, 90, 180 or 270 degrees: the frames are stored turned, with a tag by which players show them upright.
        preset: None: the encoder's own default.
        extra: More options for ffmpeg, which stand before the output's name.

    Raises ValueError for arguments that do not fit together, MediaError when ffmpeg fails; ``path`` stays as it was.
    """
    _check(frames, sound, fps, frame_times_seconds, rotation)
    picture = _Picture(frames, fps, frame_times_seconds, rotation, pix_fmt) if frames is not None else None
    output = ["-map_metadata", "-1", "-fflags", "+bitexact", *(["-movflags", "+faststart"] if faststart else [])]
    if picture is not None:
        colours = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
        output += ["-c:v", video_codec, "-crf", str(crf), "-threads:v", "1", "-flags:v", "+bitexact", *colours]
        convert = "" if picture.is_planar else "scale=out_color_matrix=smpte170m:out_range=tv:flags=bilinear+bitexact,"
        output += ["-vf", f"{convert}format={pix_fmt}", "-color_range", "tv"]
        output += ["-fps_mode", "passthrough" if frame_times_seconds is not None else "cfr"]
        # -bf 0: with B-frames, the container's duration would end before the time of the last frame
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
            sound_path = Path(folder) / "sound.f32"
            sound_path.write_bytes(np.ascontiguousarray(samples, dtype="<f4").tobytes())
            inputs += ["-f", "f32le", "-ar", str(sample_rate), "-ac", str(samples.shape[1]), "-i", str(sound_path)]
        partial = Path(folder) / f"written{path.suffix}"
        # -cpuflags 0: ffmpeg's own code uses no processor-specific instructions; x264 gives the same bytes with any
        general = ["-cpuflags", "0", "-v", "error", "-nostdin", "-y", "-filter_threads", "1"]
        _run([media.ffmpeg_path(), *general, *inputs, *output, *extra, str(partial)], picture)
        partial.replace(path)


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
    """The frames as an IVF stream: as 4:2:0 planes where size and pixel format allow it, else as packed BGR."""

    def __init__(
        self,
        frames: Iterable[NDArray[np.uint8]],
        fps: float | None,
        times: Sequence[float] | None,
        rotation: int,
        pix_fmt: str,
    ) -> None:
        self._fps, self._times, self._rotation = fps, times, rotation
        iterator = iter(frames)
        first = next(iterator, None)
        if first is None:
            raise ValueError("there are no frames")
        self._frames = chain([first], iterator)
        self._shape = first.shape
        self.is_planar = pix_fmt.startswith("yuv420p") and first.shape[0] % 2 == 0 and first.shape[1] % 2 == 0

    def arguments(self) -> list[str]:
        """ffmpeg's options for this input, which it reads from its standard input."""
        rate = [] if self._times is not None else ["-r", str(Fraction(self._fps or 0).limit_denominator(1001))]
        rotation = ["-noautorotate", "-display_rotation", str(-self._rotation)] if self._rotation else []
        return [*rate, *rotation, "-f", "ivf", "-i", "pipe:0"]

    def write(self, stream: IO[bytes]) -> None:
        """Writes the header and every frame. Raises ValueError for a frame of another shape, or too many or few of them."""
        turns = self._rotation // 90
        height, width = self._shape[:2] if turns % 2 == 0 else self._shape[1::-1]
        code = b"I420" if self.is_planar else b"RV24"
        stream.write(b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, code, width, height, _TICKS, 1, 0, 0))
        number = -1
        for number, frame in enumerate(self._frames):
            if frame.shape != self._shape or frame.dtype != np.uint8:
                raise ValueError(f"frame {number} is {frame.shape} {frame.dtype}, not {self._shape} uint8 as frame 0")
            if self._times is not None and number >= len(self._times):
                raise ValueError(f"more frames than the {len(self._times)} frame_times_seconds")
            ticks = number if self._times is None else round(self._times[number] * _TICKS)
            turned = np.ascontiguousarray(np.rot90(frame, turns))
            pixels = cv2.cvtColor(turned, cv2.COLOR_RGB2YUV_I420 if self.is_planar else cv2.COLOR_RGB2BGR)
            stream.write(struct.pack("<IQ", pixels.size, ticks))
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
            pass  # ffmpeg ended early: the error below carries its exit status and last lines
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        if status != 0:
            errors.seek(0)
            last = b"\n".join(errors.read().splitlines()[-8:]).decode(errors="replace")
            raise MediaError("encode_failed", f"ffmpeg ended with status {status}: {last}\n  {' '.join(command)}")
