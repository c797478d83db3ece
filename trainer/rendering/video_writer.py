"""Writes an mp4 with sound while its pictures are generated, so that only a few of them are in memory.

The same pictures and sound give the same bytes with the same versions of the encoders.

Shape suffixes: N samples, C channels; H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from pipeline.errors import MediaError, OutputError
from trainer.rendering.sound_file import Samples, Sound

THREADS = 4
"""Threads of x264. The number changes the bytes, so it does not depend on the machine."""
SOUND_BITS_PER_SECOND = 96_000
"""Bit rate of AAC for each channel."""
MOST_PER_SECOND = 1001
"""Largest denominator of a frame rate, as in 30000/1001."""


def write_mp4(
    path: Path, frames: Iterable[NDArray[np.uint8]], fps: float, sound: Sound | None = None, *, crf: int = 18
) -> int:
    """Encodes RGB frames (H, W, 3), uint8, with even sides, and a sound to the mp4 ``path``. Returns the number of frames.

    The file has H.264 (4:2:0, BT.709) and AAC, with its index first. The sound is cut to the length of the picture, or followed by
    silence; more than two channels become two. ``path`` is written through a temporary name; after an error it is unchanged.

    Raises OutputError if the file cannot be written, ValueError for no frames or frames of different sizes, and the errors that
    ``frames`` and ``sound`` raise.
    """
    with _written(path) as container:
        return _encode(container, iter(frames), Fraction(fps).limit_denominator(MOST_PER_SECOND), sound, crf)


def write_with_sound(path: Path, picture: Path, sound: Sound) -> None:
    """Writes the mp4 ``path``: the picture track of the mp4 ``picture``, not encoded again, with another sound, as :func:`write_mp4` does.

    Raises MediaError if ``picture`` cannot be read or has no picture, OutputError if ``path`` cannot be written, and the errors that
    ``sound`` raises.
    """
    try:
        with av.open(picture, mode="r") as source, _written(path) as container:
            if not source.streams.video or not source.streams.video[0].average_rate:
                raise MediaError("no_video", f"{picture}: it has no picture track")
            _copy(container, source, sound, str(picture))
    except av.error.FFmpegError as error:
        raise MediaError("not_media", f"{picture}: it is no video that can be read: {error.strerror}") from error


@contextmanager
def _written(path: Path) -> Iterator[av.container.OutputContainer]:
    """An mp4 with its index first, under a temporary name that becomes ``path`` where no error is raised."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(partial, mode="w", format="mp4", options={"movflags": "+faststart"}) as container:
            yield container
        partial.replace(path)
    except av.error.FFmpegError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(
    container: av.container.OutputContainer, source: av.container.InputContainer, sound: Sound, name: str
) -> None:
    picture = source.streams.video[0]
    fps = picture.average_rate
    assert fps is not None
    copied = container.add_stream_from_template(picture)
    track = _SoundTrack(container, sound)
    for count, packet in enumerate(_packets(source, name), 1):
        packet.stream = copied
        container.mux(packet)
        track.encode_until(count / fps)
    track.end()


def _packets(source: av.container.InputContainer, name: str) -> Iterator[av.Packet[av.VideoStream]]:
    """The packets of the picture. Raises MediaError, so that an error of the source is not taken for one of the file that is written."""
    try:
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:  # not the empty packet at the end
                yield packet
    except av.error.FFmpegError as error:
        raise MediaError("damaged", f"{name}: its picture cannot be read: {error.strerror}") from error


def _encode(
    container: av.container.OutputContainer,
    frames: Iterator[NDArray[np.uint8]],
    fps: Fraction,
    sound: Sound | None,
    crf: int,
) -> int:
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs frames, and there are none")
    if first.ndim != 3 or first.shape[2] != 3 or first.dtype != np.uint8 or first.shape[0] % 2 or first.shape[1] % 2:
        raise ValueError(f"frames are uint8 (height, width, 3) of even sides, got {first.dtype} {first.shape}")
    picture = _picture_track(container, first.shape[1], first.shape[0], fps, crf)
    track = None if sound is None else _SoundTrack(container, sound)
    count = 0
    frame: NDArray[np.uint8] | None = first
    while frame is not None:
        if frame.shape != first.shape:
            raise ValueError(f"frame {count} is {frame.shape}, the first was {first.shape}")
        shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        encoded = shown.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        encoded.pts, encoded.time_base = count, 1 / fps
        container.mux(picture.encode(encoded))
        count += 1
        if track is not None:
            track.encode_until(count / fps)
        frame = next(frames, None)
    container.mux(picture.encode(None))
    if track is not None:
        track.end()
    return count


def _picture_track(
    container: av.container.OutputContainer, width: int, height: int, fps: Fraction, crf: int
) -> av.VideoStream:
    track = container.add_stream("libx264", rate=fps)
    track.width, track.height, track.pix_fmt = width, height, "yuv420p"
    track.time_base = 1 / fps
    track.options = {"crf": str(crf), "preset": "medium"}
    context = track.codec_context
    context.thread_count = THREADS
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return track


class _SoundTrack:
    """The sound track of a video, encoded in step with the picture."""

    def __init__(self, container: av.container.OutputContainer, sound: Sound) -> None:
        self._container = container
        self._rate_hz, self._num_channels, blocks = sound.played()
        self._blocks: Iterator[Samples] | None = blocks
        self._layout = "mono" if self._num_channels == 1 else "stereo"
        self._track = container.add_stream("aac", rate=self._rate_hz, layout=self._layout)
        self._track.bit_rate = SOUND_BITS_PER_SECOND * self._num_channels
        self._waiting: Samples = np.zeros((0, self._num_channels), np.float32)
        self._num_encoded = 0
        self._num_wanted = 0
        self._frame_size = 1024  # samples of one AAC frame

    def encode_until(self, seconds: Fraction) -> None:
        """Encodes all complete AAC frames up to ``seconds``."""
        self._num_wanted = round(seconds * self._rate_hz)
        while self._num_encoded + self._frame_size <= self._num_wanted:
            self._encode_samples(self._frame_size)

    def end(self) -> None:
        """Encodes the rest up to the last ``seconds``, and flushes the encoder."""
        self._encode_samples(self._num_wanted - self._num_encoded)
        self._container.mux(self._track.encode(None))
        self._blocks = None

    def _encode_samples(self, count: int) -> None:
        if not count:
            return
        planes_CN = np.ascontiguousarray(self._next_samples(count).T)
        frame = av.AudioFrame.from_ndarray(planes_CN, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._num_encoded, Fraction(1, self._rate_hz)
        self._container.mux(self._track.encode(frame))
        self._num_encoded += count

    def _next_samples(self, count: int) -> Samples:
        """The next samples (count, C), with silence after the end of the sound."""
        while len(self._waiting) < count and self._blocks is not None:
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
                block = np.zeros((0, self._num_channels), np.float32)
            self._waiting = np.concatenate([self._waiting, block])
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return np.pad(taken, ((0, count - len(taken)), (0, 0)))
