"""The only file that runs ffmpeg (through ffmpeg-python) or opens a file with PyAV; :mod:`pipeline.media.decoding` reads what it opens.

Times that its functions return count from the start of the file as a player shows it: the container's start time is subtracted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import ffmpeg
import imageio_ffmpeg

from pipeline.errors import MediaError, WorkerError
from pipeline.media.facts import MediaFacts, SoundFacts, VideoFacts
from pipeline.media.parts import part_shifts
from pipeline.media.tone_map import HLG, PQ
from pipeline.media.tracks import ChosenTrack, picture_track, sound_track
from pipeline.runtime.awake import wait_awake
from pipeline.runtime.memory import limited_memory
from pipeline.runtime.stop import Stop

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,wav,mp3,flac,aac,gif,rm,nut,mxf,h264,hevc,ivf,y4m"
"""Formats that contain their media. Playlists and scripts, which can refer to other files, are left out."""

INPUT_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
STREAM_OPTIONS = {
    "protocol_whitelist": "http,https,tls,tcp,httpproxy,crypto,data",
    "format_whitelist": f"hls,dash,webvtt,ac3,eac3,{CONTAINERS}",
}
"""Options for links that ffmpeg fetches itself: playlists over http, which may refer to other links, never to a file."""

MAX_FPS = 500
"""Largest frame rate that is believed. With a variable rate a header may give the ticks of its clock, thousands per second."""
MAX_PIXELS = 1 << 27
"""Largest picture: 16K (15360 x 8640)."""
PICTURE_LIMIT = {"max_pixels": str(MAX_PIXELS)}
"""Option of decoders, which then refuse a larger picture before they take memory for it."""


ENDED_BY_SIGNAL = {255, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
"""Return codes of an ffmpeg that was ended by a signal; 255 is its own code for that."""
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that cannot be written to. They do not depend on the file that ffmpeg reads."""
SIGNAL_SECONDS = 1.0
"""Time to wait, after ffmpeg was ended by a signal, for the same signal to stop the build: it may have gone to all processes."""

av.logging.set_level(None)  # errors are raised; ffmpeg's own lines would disturb the progress display


@functools.cache
def ffmpeg_path() -> str:
    """Path of the ffmpeg program: ``$IMAGEIO_FFMPEG_EXE``, else the one in the package."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the programs that determine the bytes of a cut."""
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
    """Whether ffmpeg can encode a frame with this encoder on this machine. It is tried: an encoder of a GPU may be compiled in and fail."""
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
    command = [ffmpeg_path(), "-v", "quiet", "-nostdin", *picture]
    # the output is captured: SVT-AV1 prints lines in spite of -v quiet
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def as_input(path: Path | str) -> str:
    """The path in a form that ffmpeg never takes for an option, a pattern or another protocol, whatever its name is."""
    return f"file:{path}"


def guarded(command: Sequence[str]) -> list[str]:
    """An ffmpeg command of another program, with options that restrict every input: a file may open only media files, a link only
    links. Inputs of other kinds cannot be opened."""
    restricted: list[str] = []
    for option, value in zip(command, [*command[1:], ""], strict=True):
        if option == "-i":
            is_link = value.startswith(("http://", "https://"))
            for name, allowed in (STREAM_OPTIONS if is_link else INPUT_OPTIONS).items():
                restricted += [f"-{name}", allowed]
        restricted.append(option)
    return restricted


_DIE_WITH_US = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The command, changed so that the kernel kills it when the thread that started it ends, also by SIGKILL. On systems other than
    Linux it is returned unchanged.

    A small Python program sets PR_SET_PDEATHSIG and then becomes the command. Code between fork and exec, the usual place for that,
    would not be safe with threads.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_US, str(os.getpid()), *command]


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[av.container.InputContainer]:
    """The file, opened for reading. Raises MediaError ``empty`` or ``not_media`` if ffmpeg finds no media in it."""
    size = Path(path).stat().st_size
    if size == 0:
        raise MediaError("empty", "the file has zero bytes")
    try:
        container = av.open(as_input(path), options=INPUT_OPTIONS | PICTURE_LIMIT, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError("not_media", f"not a video that ffmpeg can open ({size} bytes): {cause(error)}") from error
    with container:
        for stream in container.streams.video:
            if stream.codec_context is not None:  # its codec is known
                stream.codec_context.options = PICTURE_LIMIT
        yield container


def cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def start_of(container: av.container.InputContainer) -> Fraction:
    """The container's start time in seconds, which is time 0 for a player."""
    return Fraction(container.start_time, av.time_base) if container.start_time is not None else Fraction(0)


def start_seconds(path: Path | str) -> float:
    """The file's own time stamp at its beginning, from which all other times count. Raises MediaError."""
    with opened(path) as container:
        return float(start_of(container))


def _seconds(value: int | None, time_base: Fraction | None) -> float | None:
    return float(value * time_base) if value is not None and value > 0 and time_base is not None else None


def _rotation(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Degrees that the picture must be turned counter-clockwise for display: 0, 90, 180 or 270."""
    for frame in container.decode(stream):
        return int(frame.rotation) % 360
    raise MediaError("no_frames", "the video track holds no picture that can be decoded")


def _check_size(stream: av.VideoStream) -> None:
    """Raises MediaError ``bad_size``. A decoder that refuses a picture for its size forgets the size: it is 0 x 0 then."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if min(width, height) < 1:
        raise MediaError(
            "bad_size", f"the header says no size of its pictures, or one of more than {MAX_PIXELS:,} pixels"
        )
    if width * height > MAX_PIXELS:
        raise MediaError(
            "bad_size",
            f"the header says pictures of {width} x {height} pixels; at most {MAX_PIXELS:,} pixels can be decoded",
        )


def _video_facts(track: ChosenTrack[av.VideoStream], rotation: int) -> VideoFacts:
    stream = track.stream
    _check_size(stream)
    context = stream.codec_context
    width, height = context.width, context.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect > 0 and aspect != 1:
        width = max(round(width * aspect), 1)
    if rotation in (90, 270):
        width, height = height, width
    rates = (rate for rate in (stream.average_rate, stream.guessed_rate) if rate and 0 < rate <= MAX_FPS)
    rate = next(rates, None)
    return VideoFacts(
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        fps=round(float(rate), 3) if rate else None,
        duration_seconds=_seconds(stream.duration, stream.time_base),
        rotation_degrees=rotation,
        sample_aspect=float(aspect) if aspect > 0 else 1.0,
        pixel_format=str(context.pix_fmt),
        is_hdr=int(context.color_trc or 0) in (PQ, HLG),
        interlaced=str(getattr(context, "field_order", "progressive")).lower()
        not in ("progressive", "unknown", "0", "1"),
        track=stream.index,
        num_tracks=track.num_tracks,
        chosen_by=track.decided_by,
    )


def _sound_facts(track: ChosenTrack[av.AudioStream]) -> SoundFacts:
    stream = track.stream
    return SoundFacts(
        codec=stream.codec_context.codec.canonical_name,
        sample_rate_hz=stream.codec_context.sample_rate,
        num_channels=stream.codec_context.channels,
        duration_seconds=_seconds(stream.duration, stream.time_base),
        track=stream.index,
        num_tracks=track.num_tracks,
        chosen_by=track.decided_by,
    )


def probe(path: Path | str) -> MediaFacts:
    """Properties from the file's header, the rotation of its first picture, and the parts of a file whose time stamps restart. Files of
    formats in which they may restart are read to their end.

    Raises MediaError: ``empty``, ``not_media``, ``no_frames``, ``bad_size``.
    """
    with opened(path) as container:
        video, sound = picture_track(container), sound_track(container)
        try:
            rotation = _rotation(container, video.stream) if video is not None else 0
        except (av.error.FFmpegError, IndexError) as error:  # IndexError: see pipeline.media.decoding
            if video is not None:
                _check_size(video.stream)
            raise MediaError("no_frames", f"no picture can be decoded: {cause(error)}") from error
        facts = MediaFacts(
            container=container.format.name,
            duration_seconds=_seconds(container.duration, Fraction(1, av.time_base)),
            video=_video_facts(video, rotation) if video is not None else None,
            sound=_sound_facts(sound) if sound is not None else None,
            start_seconds=float(start_of(container)),
        )
    with opened(path) as container:
        shifts, end, picture_end = part_shifts(container)
    return _with_parts(facts, shifts, end, picture_end) if shifts else facts


def _with_parts(facts: MediaFacts, shifts: tuple[float, ...], end: float, picture_end: float | None) -> MediaFacts:
    """The facts of a file in parts. Its length is that of all parts; the header gives at most the length of one."""
    picture_seconds = None if picture_end is None else picture_end - facts.start_seconds
    return replace(
        facts,
        duration_seconds=end - facts.start_seconds,
        video=replace(facts.video, duration_seconds=picture_seconds) if facts.video else None,
        sound=replace(facts.sound, duration_seconds=None) if facts.sound else None,
        part_shifts=shifts,
    )


def count_frames(path: Path) -> tuple[int, float]:
    """Number of pictures in a file and their length in seconds, from its packets, without decoding."""
    with opened(path) as container:
        track = picture_track(container)
        if track is None:
            return 0, 0.0
        video = track.stream
        times = [(packet.pts, packet.duration or 0) for packet in container.demux(video) if packet.pts is not None]
        if not times or video.time_base is None:
            return 0, 0.0
        return len(times), float(
            (max(pts + duration for pts, duration in times) - min(pts for pts, _ in times)) * video.time_base
        )


def run_ffmpeg(
    outputs: Any,
    *,
    timeout_seconds: float | None = None,
    memory_bytes: int | None = None,
    stop: Stop | None = None,
) -> None:
    """Runs an ffmpeg-python graph. ``memory_bytes``: limit above which it is killed. None: no limit.

    Raises MediaError with the command and ffmpeg's last lines; WorkerError if it was killed, exceeded its memory or its time;
    StoppedError once ``stop`` is set; OSError if the disk is full.
    """
    command = ffmpeg.compile(
        outputs.global_args("-hide_banner", "-nostdin", "-y", "-loglevel", "error"), cmd=ffmpeg_path()
    )
    _run_checked(apart(command), timeout_seconds, memory_bytes, stop or Stop())


def apart(command: Sequence[str]) -> list[str]:
    """An ffmpeg command with a separate graph for each group of connected filters.

    ffmpeg rebuilds a graph when its input changes, for example the picture's size. Sound in the same graph would then lose its
    buffered samples.
    """
    separate: list[str] = []
    for word in command:
        if separate and separate[-1] == "-filter_complex":
            separate.pop()
            separate += [option for graph in _graphs(word.split(";")) for option in ("-filter_complex", graph)]
        else:
            separate.append(word)
    return separate


def _graphs(filters: Sequence[str]) -> list[str]:
    """The groups of connected filters, each joined by semicolons. A filter is written ``[in][in]name=options[out]``.

    Two filters are connected if they have a label in common. A label with a colon, such as ``[0:1]``, is a track of the file and
    connects no filters.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for text in filters:
        labels, members = {label for label in re.findall(r"\[([^\]]+)\]", text) if ":" not in label}, [text]
        connected = [group for group in groups if group[0] & labels]
        index = groups.index(connected[0]) if connected else len(groups)
        for group in reversed(connected):
            labels, members = labels | group[0], group[1] + members
            groups.remove(group)
        groups.insert(index, (labels, members))
    return [";".join(members) for _, members in groups]


def run_straightener(
    path: Path,
    target: Path,
    span_seconds: tuple[float, float],
    part_shifts: Sequence[float],
    *,
    timeout_seconds: float | None = None,
    memory_bytes: int | None = None,
    stop: Stop | None = None,
) -> None:
    """Runs :func:`pipeline.media.parts.copy_straightened` in another process, with the limits and errors of :func:`run_ffmpeg`."""
    words = [str(path), str(target), *(f"{seconds:.6f}" for seconds in (*span_seconds, *part_shifts))]
    command = [sys.executable, "-m", "pipeline.media.parts", *words]
    _run_checked(command, timeout_seconds, memory_bytes, stop or Stop())


def _run_checked(command: Sequence[str], timeout_seconds: float | None, memory_bytes: int | None, stop: Stop) -> None:
    returncode, errors = _run(command, timeout_seconds, memory_bytes, stop)
    last_lines = " | ".join(errors.strip().splitlines()[-4:])
    if returncode == -signal.SIGXFSZ:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), _shown(command))
    if returncode in ENDED_BY_SIGNAL:
        stop.sleep(SIGNAL_SECONDS)
        detail = f"{last_lines} (command: {_shown(command)})" if last_lines else _shown(command)
        raise WorkerError("worker_killed", f"ffmpeg was killed ({returncode}): {detail}")
    if returncode:
        for number in DISK_ERRNOS:
            if os.strerror(number) in last_lines:
                raise OSError(number, os.strerror(number), _shown(command))
        raise MediaError("ffmpeg_failed", f"ffmpeg ended with {returncode}: {last_lines} (command: {_shown(command)})")


def _run(
    command: Sequence[str], timeout_seconds: float | None, memory_bytes: int | None, stop: Stop
) -> tuple[int, str]:
    """Exit code and standard error."""
    process = subprocess.Popen(
        dying_with_us(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C does not reach it: a clip whose ffmpeg is ended by it would count as failed
    )
    errors = ""

    def is_over(step_seconds: float) -> bool:
        nonlocal errors
        try:
            _, errors = process.communicate(timeout=step_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    with process:
        try:
            with stop.calling(process.kill), limited_memory(process.pid, memory_bytes) as memory:
                in_time = wait_awake(is_over, math.inf if timeout_seconds is None else timeout_seconds)
        finally:
            process.kill()
    stop.check()
    if not in_time:
        raise WorkerError("timed_out", f"ffmpeg took longer than {timeout_seconds:g} s: {_shown(command)}")
    if memory.exceeded:
        raise WorkerError("out_of_memory", f"ffmpeg was ended: {memory.exceeded}: {_shown(command)}")
    return process.returncode, errors


def _shown(command: Sequence[str]) -> str:
    return " ".join(Path(part).name if part.startswith("/") else part for part in command)[:2000]
