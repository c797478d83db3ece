"""The only file that runs ffmpeg (through ffmpeg-python) or opens PyAV.

Every time that leaves this file counts from the start of the file as a player shows it: the container's own start time is taken off.
"""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import cv2
import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
from av.stream import Discard, Disposition

from pipeline.errors import MediaError, WorkerError

Luma = npt.NDArray[np.uint8]

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,wav,mp3,flac,aac,gif,rm,nut,mxf,h264,hevc,ivf,y4m"
"""Formats that carry their media themselves. Playlists and scripts, which can point at other files, are left out."""

INPUT_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}

NO_PICTURE_TIMES = {"avi"}
"""Containers that store only when a picture is decoded. With B-frames libavformat's guess is out of order; ffmpeg goes by decoding time."""

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
"""Transfer characteristics (ITU-T H.273) of PQ and HLG."""

PLANAR_8_BIT = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv411p", "yuv410p"}

av.logging.set_level(None)  # what goes wrong is raised; ffmpeg's own lines would garble the progress display


@functools.cache
def ffmpeg_path() -> str:
    """Path of the ffmpeg program: ``$IMAGEIO_FFMPEG_EXE``, else the one in the package."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the programs that decide what the bytes of a cut look like."""
    first_line = subprocess.run(
        [ffmpeg_path(), "-version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return {
        "ffmpeg": first_line.removeprefix("ffmpeg version ").split(" ")[0],
        "pyav": av.__version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
    }


@functools.cache
def has_encoder(name: str) -> bool:
    """Whether ffmpeg can encode a frame with it on this machine: being compiled in is not enough for a GPU's."""
    picture = [
        "-f",
        "lavfi",
        "-i",
        "color=size=256x256:duration=0.1",
        "-frames:v",
        "1",
        "-c:v",
        name,
        "-f",
        "null",
        "-",
    ]
    return subprocess.run([ffmpeg_path(), "-v", "quiet", "-nostdin", *picture], check=False).returncode == 0


def as_input(path: Path | str) -> str:
    """The path in a form that no name can turn into an option, a pattern or another protocol."""
    return f"file:{path}"


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the header says of the picture. Width and height are as displayed: turned, and with square pixels."""

    codec: str
    width: int
    height: int
    fps: float | None
    """Average frame rate. None: the header does not say."""
    duration_seconds: float | None
    rotation_degrees: int
    sample_aspect: float
    """Width of a stored pixel over its height; 1.0 is square."""
    pixel_format: str
    is_hdr: bool
    interlaced: bool

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """What the header says of the sound."""

    codec: str
    sample_rate_hz: int
    num_channels: int
    duration_seconds: float | None


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What the header says of a file. ``video`` or ``sound`` is None where there is no such track."""

    container: str
    duration_seconds: float | None
    video: VideoFacts | None
    sound: SoundFacts | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MediaFacts:
        video, sound = values["video"], values["sound"]
        return cls(
            values["container"],
            values["duration_seconds"],
            VideoFacts(**video) if video else None,
            SoundFacts(**sound) if sound else None,
        )


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[av.container.InputContainer]:
    """The file, opened for reading. Raises MediaError where ffmpeg finds no media in it."""
    size = Path(path).stat().st_size
    if size == 0:
        raise MediaError("empty", "the file has zero bytes")
    try:
        container = av.open(as_input(path), options=dict(INPUT_OPTIONS), metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError("not_media", f"not a video that ffmpeg can open ({size} bytes): {_cause(error)}") from error
    with container:
        yield container


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _origin(container: av.container.InputContainer) -> Fraction:
    """The container's start time in seconds, which is time 0 for a player."""
    return Fraction(container.start_time, av.time_base) if container.start_time is not None else Fraction(0)


def start_seconds(path: Path | str) -> float:
    """The time that the file itself gives to its beginning; everything else in this file counts from there. Raises MediaError."""
    with _opened(path) as container:
        return float(_origin(container))


def _picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first stream of moving pictures. Cover art is not one."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    return None


def _sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.codec_context.sample_rate:
            return stream
    return None


def _seconds(value: int | None, time_base: Fraction | None) -> float | None:
    return float(value * time_base) if value is not None and value > 0 and time_base is not None else None


def _rotation(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Degrees that the picture must be turned counter-clockwise for display: 0, 90, 180 or 270."""
    for frame in container.decode(stream):
        return int(frame.rotation) % 360
    raise MediaError("no_frames", "the video track holds no picture that can be decoded")


def _video_facts(stream: av.VideoStream, rotation: int) -> VideoFacts:
    context = stream.codec_context
    width, height = context.width, context.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect > 0 and aspect != 1:
        width = max(round(width * aspect), 1)
    if rotation in (90, 270):
        width, height = height, width
    rate = stream.average_rate or stream.guessed_rate
    return VideoFacts(
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        fps=round(float(rate), 3) if rate else None,
        duration_seconds=_seconds(stream.duration, stream.time_base),
        rotation_degrees=rotation,
        sample_aspect=float(aspect) if aspect > 0 else 1.0,
        pixel_format=str(context.pix_fmt),
        is_hdr=int(context.color_trc or 0) in HDR_TRANSFERS,
        interlaced=str(getattr(context, "field_order", "progressive")).lower()
        not in ("progressive", "unknown", "0", "1"),
    )


def probe(path: Path | str) -> MediaFacts:
    """What the file's header says, and the display rotation of its first picture.

    Raises MediaError: ``empty``, ``not_media``, ``no_frames``.
    """
    with _opened(path) as container:
        video, sound = _picture_stream(container), _sound_stream(container)
        try:
            rotation = _rotation(container, video) if video is not None else 0
        except av.error.FFmpegError as error:
            raise MediaError("no_frames", f"no picture can be decoded: {_cause(error)}") from error
        return MediaFacts(
            container=container.format.name,
            duration_seconds=_seconds(container.duration, Fraction(1, av.time_base)),
            video=_video_facts(video, rotation) if video is not None else None,
            sound=SoundFacts(
                codec=sound.codec_context.codec.canonical_name,
                sample_rate_hz=sound.codec_context.sample_rate,
                num_channels=sound.codec_context.channels,
                duration_seconds=_seconds(sound.duration, sound.time_base),
            )
            if sound is not None
            else None,
        )


def count_frames(path: Path) -> tuple[int, float]:
    """Number of pictures in a file and the seconds that they span, from its packets: nothing is decoded."""
    with _opened(path) as container:
        video = _picture_stream(container)
        if video is None:
            return 0, 0.0
        times = [(packet.pts, packet.duration or 0) for packet in container.demux(video) if packet.pts is not None]
        if not times or video.time_base is None:
            return 0, 0.0
        return len(times), float(
            (max(pts + duration for pts, duration in times) - min(pts for pts, _ in times)) * video.time_base
        )


class Picture:
    """One decoded frame. Its planes are views into the decoder's memory: use them before the next frame is asked for."""

    __slots__ = ("_frame", "seconds")

    def __init__(self, frame: av.VideoFrame, seconds: float) -> None:
        self.seconds = seconds
        if frame.format.name not in PLANAR_8_BIT:
            frame = frame.reformat(format="yuv420p")
        self._frame = frame

    def _plane(self, index: int) -> Luma:
        plane = self._frame.planes[index]
        rows: Luma = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        return self._turned(rows)

    def _turned(self, rows: Luma) -> Luma:
        quarter_turns = (int(self._frame.rotation) // 90) % 4
        return np.ascontiguousarray(np.rot90(rows, quarter_turns)) if quarter_turns else rows

    @property
    def full_range(self) -> bool:
        return self._frame.format.name.startswith("yuvj") or int(self._frame.color_range) == 2

    def luma(self) -> Luma:
        """Luma as displayed, (H, W), in the range that the file uses."""
        return self._plane(0)

    def small_luma(self, size: tuple[int, int]) -> Luma:
        """Luma at ``size`` (width, height), stretched to 0..255.

        Bilinear from the nearest four pixels: at these factors a true average would cost more than the decode.
        """
        return self._stretched(cv2.resize(self._plane(0), size, interpolation=cv2.INTER_LINEAR))

    def _stretched(self, luma: Any) -> Luma:
        if self.full_range:
            return np.asarray(luma, np.uint8)
        return np.asarray(cv2.convertScaleAbs(np.maximum(luma, 16), alpha=255 / 219, beta=-16 * 255 / 219), np.uint8)

    def small_bgr(self, size: tuple[int, int], luma: Luma) -> npt.NDArray[np.uint8]:
        """The picture at ``size`` (width, height) in BGR; ``luma`` is what :meth:`small_luma` gave for the same size."""
        chroma = [cv2.resize(self._plane(i), size, interpolation=cv2.INTER_LINEAR) for i in (1, 2)]
        if not self.full_range:
            chroma = [cv2.convertScaleAbs(plane, alpha=255 / 224, beta=128 * (1 - 255 / 224)) for plane in chroma]
        return np.asarray(cv2.cvtColor(cv2.merge([luma, chroma[1], chroma[0]]), cv2.COLOR_YCrCb2BGR), np.uint8)

    def rgb(self, short_side: int) -> npt.NDArray[np.uint8]:
        """The picture in RGB (H, W, 3), scaled by area so that its shorter side is ``short_side`` pixels."""
        frame = self._frame
        factor = short_side / min(frame.width, frame.height)
        size = (max(round(frame.width * factor), 1), max(round(frame.height * factor), 1))
        scaled = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA")
        return self._turned(np.asarray(scaled.to_ndarray(), np.uint8))


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """A run of samples, int16, (num_samples, num_channels), beginning at ``seconds``."""

    seconds: float
    samples: npt.NDArray[np.int16]


class Decoding:
    """One pass through a file, from ``start_seconds`` up to ``end_seconds``: iterate to get pictures and sound as they come.

    After the last one, ``num_errors`` counts the packets that could not be decoded.
    Sound comes at ``sample_rate_hz`` in one or two channels (more are mixed down).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        sample_rate_hz: int,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        num_threads: int = 1,
    ) -> None:
        self.path = path
        self.sample_rate_hz = sample_rate_hz
        self.start_seconds = start_seconds
        self.end_seconds = math.inf if end_seconds is None else end_seconds
        self.num_threads = num_threads
        self.num_errors = 0
        self.last_error = ""

    def __iter__(self) -> Iterator[Picture | SoundBlock]:
        with _opened(self.path) as container:
            yield from self._walk(container)

    def _walk(self, container: av.container.InputContainer) -> Iterator[Picture | SoundBlock]:
        origin = _origin(container)
        video, sound = _picture_stream(container), _sound_stream(container)
        streams = [stream for stream in (video, sound) if stream is not None]
        for stream in container.streams:
            if stream not in streams:
                stream.discard = Discard.all
        if video is not None:
            video.codec_context.thread_count = self.num_threads
            video.codec_context.thread_type = "FRAME" if self.num_threads > 1 else "SLICE"
        if self.start_seconds > 0:
            container.seek(int((self.start_seconds + origin) * av.time_base), backward=True)
        resampler = None
        if sound is not None:
            layout = "mono" if sound.codec_context.channels == 1 else "stereo"
            resampler = _SoundClock(self.sample_rate_hz, layout, origin)
        open_ends = set(streams)
        for packet in self._packets(container, streams):
            if packet.stream not in open_ends:
                continue
            if packet.pts is not None and float(packet.pts * packet.time_base - origin) > self.end_seconds + 2:
                open_ends.discard(packet.stream)
                if not open_ends:
                    break
                continue
            for frame in self._frames(packet):
                if isinstance(frame, av.VideoFrame):
                    yield from self._picture(
                        frame, frame.dts if container.format.name in NO_PICTURE_TIMES else frame.pts, origin
                    )
                elif isinstance(frame, av.AudioFrame) and resampler is not None:
                    yield from resampler.feed(frame)
        if resampler is not None:
            yield from resampler.feed(None)

    def _packets(self, container: av.container.InputContainer, streams: Sequence[Any]) -> Iterator[av.Packet[Any]]:
        try:
            yield from container.demux(streams)
        except av.error.FFmpegError as error:
            self._note(error)

    def _frames(self, packet: av.Packet[Any]) -> Sequence[Any]:
        try:
            return packet.decode()
        except av.error.FFmpegError as error:
            self._note(error)
            return ()

    def _note(self, error: Exception) -> None:
        self.num_errors += 1
        self.last_error = _cause(error)

    def _picture(self, frame: av.VideoFrame, stamp: int | None, origin: Fraction) -> Iterator[Picture]:
        if stamp is None or frame.time_base is None:
            return
        seconds = float(stamp * frame.time_base - origin)
        if self.start_seconds <= seconds < self.end_seconds:
            yield Picture(frame, seconds)


class _SoundClock:
    """Resamples sound and keeps it on the clock: a gap or an overlap in the time stamps restarts the run of samples."""

    TOLERANCE_SECONDS = 0.04

    def __init__(self, sample_rate_hz: int, layout: str, origin: Fraction) -> None:
        self.sample_rate_hz, self.layout, self.origin = sample_rate_hz, layout, origin
        self._expected: float | None = None
        self._start = 0.0
        self._given = 0
        self._signature: tuple[Any, ...] = ()
        self._resampler: av.AudioResampler | None = None

    def feed(self, frame: av.AudioFrame | None) -> Iterator[SoundBlock]:
        if frame is None:
            yield from self._drain()
            return
        seconds = self._expected or 0.0
        if frame.pts is not None and frame.time_base is not None:
            seconds = float(frame.pts * frame.time_base - self.origin)
        signature = (frame.format.name, frame.layout.name, frame.sample_rate)
        jumped = self._expected is None or abs(seconds - self._expected) > self.TOLERANCE_SECONDS
        if jumped or signature != self._signature:
            yield from self._drain()
            self._resampler = av.AudioResampler(format="s16", layout=self.layout, rate=self.sample_rate_hz)
            self._start, self._given, self._signature = seconds, 0, signature
            self._expected = seconds
        assert self._resampler is not None and self._expected is not None
        self._expected += frame.samples / frame.sample_rate
        frame.pts = None
        yield from self._blocks(self._resampler.resample(frame))

    def _drain(self) -> Iterator[SoundBlock]:
        if self._resampler is not None:
            yield from self._blocks(self._resampler.resample(None))
            self._resampler = None

    def _blocks(self, frames: Sequence[av.AudioFrame]) -> Iterator[SoundBlock]:
        for frame in frames:
            samples = np.asarray(frame.to_ndarray(), np.int16).reshape(frame.samples, -1)
            yield SoundBlock(self._start + self._given / self.sample_rate_hz, samples)
            self._given += frame.samples


def run_ffmpeg(outputs: Any, *, timeout_seconds: float | None = None) -> None:
    """Runs an ffmpeg-python graph.

    Raises MediaError with the command and ffmpeg's last lines, WorkerError when the time is over.
    """
    command = ffmpeg.compile(
        outputs.global_args("-hide_banner", "-nostdin", "-y", "-loglevel", "error"), cmd=ffmpeg_path()
    )
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerError("timed_out", f"ffmpeg took longer than {timeout_seconds:g} s: {_shown(command)}") from error
    if done.returncode:
        last_lines = " | ".join(done.stderr.decode(errors="replace").strip().splitlines()[-4:])
        if "No space left on device" in last_lines:
            raise OSError(28, "No space left on device", _shown(command))
        raise MediaError(
            "ffmpeg_failed", f"ffmpeg ended with {done.returncode}: {last_lines} (command: {_shown(command)})"
        )


def _shown(command: Sequence[str]) -> str:
    return " ".join(Path(part).name if part.startswith("/") else part for part in command)[:2000]
