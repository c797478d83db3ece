"""Frames out of an mp4 in memory: seeks to the key frame before each wanted one, decodes what leads to it, and nothing else.

    time          |--------- group ---------|--------- group ---------|
    packets       K  b  P  b  b  P  b  b  P  K  b  P  b  b  P
    wanted                    ^
    decoded       K     P     b  P                        frames that no other needs are passed over

Shape suffixes: T frames, C=3 colours, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.stream import Discard

from pipeline.errors import MediaError

Pixels = npt.NDArray[np.uint8]

DECODERS = {"av1": "libdav1d"}
"""Where the decoder's name is not the codec's: libavcodec's own av1 needs a GPU."""
SKIPS_EXACTLY = {"h264"}
"""Codecs whose decoder passes over a frame that no other needs, when told so packet by packet."""
UNKNOWN_CODECS = {"codec_whitelist": "none"}
"""Opening a file would decode its beginning to find out what the header says already: 4 ms for a small clip."""
EARLY_SECONDS = 0.0005
"""Half of the unit that spans are counted in: a frame that begins with a segment is in it."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Packets in the order of decoding, a key frame first, up to the last wanted frame."""

    packets: Sequence[av.Packet[av.VideoStream]]
    wanted: frozenset[int]
    """Presentation stamps."""


def decode_frames(mp4: bytes, seconds: Sequence[float]) -> list[av.VideoFrame]:
    """The frame that is shown at each of the times (the last one after the end), in their order.

    Times count from the file's time 0. Raises MediaError for what is no video, has no frame, or is damaged where it
    is needed.
    """
    with _opened(mp4) as (container, stream):
        stamps, groups = _planned(container, stream, seconds)
        context = _decoder(stream)
        frames = {frame.pts: frame for group in groups for frame in _decoded(context, group)}
    missing = [stamp for stamp in stamps if stamp not in frames]
    if missing:
        raise missing_frames(len(missing), len(stamps))
    return [frames[stamp] for stamp in stamps]


def shown_seconds(mp4: bytes, seconds: Sequence[float]) -> list[float]:
    """When the frames begin that ``decode_frames`` gives for these times. Nothing is decoded. Raises MediaError as it does."""
    with _opened(mp4) as (container, stream):
        stamps, _ = _planned(container, stream, seconds)
        assert stream.time_base is not None
        return [float(stamp * stream.time_base) for stamp in stamps]


def missing_frames(count: int, wanted: int) -> MediaError:
    """What is raised where some of the wanted frames do not come."""
    return MediaError("damaged", f"{count} of {wanted} frames cannot be decoded")


@contextmanager
def _opened(mp4: bytes) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file, and its picture alone; what libav raises meanwhile is its damage."""
    try:
        with av.open(io.BytesIO(mp4), mode="r", options=UNKNOWN_CODECS) as container:
            if not container.streams.video:
                raise MediaError("no_video", "it has no picture")
            stream = container.streams.video[0]
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            yield container, stream
    except av.error.FFmpegError as error:
        raise MediaError("damaged", f"it cannot be decoded: {error.strerror}") from error


def _planned(
    container: av.container.InputContainer, stream: av.VideoStream, seconds: Sequence[float]
) -> tuple[list[int], list[_Group]]:
    """The presentation stamp for each time, and what must be decoded to get them all."""
    unit = stream.time_base
    if unit is None:
        raise MediaError("damaged", "its picture has no clock")
    stamps: list[int] = []
    groups: dict[int, _Group] = {}
    for second in seconds:
        packets, stamp = _leading_to(container, stream, int((second + EARLY_SECONDS) / unit))
        stamps.append(stamp)
        head = packets[0].pts
        assert head is not None
        known = groups.get(head, _Group((), frozenset()))
        longer = max(known.packets, packets, key=len)
        groups[head] = _Group(longer, known.wanted | {stamp})
    return stamps, list(groups.values())


def _leading_to(
    container: av.container.InputContainer, stream: av.VideoStream, stamp: int
) -> tuple[list[av.Packet[av.VideoStream]], int]:
    """Packets from a key frame up to the frame shown at ``stamp``, and that frame's own stamp."""
    target = stamp
    while True:
        container.seek(target, stream=stream, backward=True)
        packets = list(_until(container, stream, stamp))
        head = packets[0] if packets else None
        if head is None or head.pts is None or head.dts is None or not head.is_keyframe:
            raise MediaError("no_frames", "it has no frame to begin with")
        if head.pts <= stamp or head.dts >= target:
            break
        target = head.dts - 1  # found by decoding time: this group is shown later, the one before it is meant
    shown = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
    if not shown:
        raise MediaError("no_frames", "none of its frames is shown")
    best = max((pts for pts in shown if pts <= stamp), default=min(shown))
    last = next(place for place, packet in enumerate(packets) if packet.pts == best)
    return packets[: last + 1], best


def _until(
    container: av.container.InputContainer, stream: av.VideoStream, stamp: int
) -> Iterator[av.Packet[av.VideoStream]]:
    """At least one packet; then those that may be shown at ``stamp``: no frame is shown before it is decoded."""
    last = None
    for packet in container.demux(stream):
        if packet.dts is None:
            break
        if packet.dts > stamp and last is not None:
            return
        yield packet
        last = packet
    index = stream.index_entries
    if len(index) and (last is None or (last.pos, last.size) != (index[-1].pos, index[-1].size)):
        raise MediaError("truncated", "it ends before its last frame")


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    name = stream.codec_context.name
    context = av.CodecContext.create(DECODERS.get(name, name), "r")
    assert isinstance(context, av.VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    context.thread_count = 1
    context.options = {"err_detect": "explode"}
    return context


def _decoded(context: av.VideoCodecContext, group: _Group) -> Iterator[av.VideoFrame]:
    skips = context.name in SKIPS_EXACTLY
    for packet in (*group.packets, None):
        if skips:
            context.skip_frame = "DEFAULT" if packet is None or packet.pts in group.wanted else "NONREF"
        for frame in context.decode(packet):
            if frame.pts in group.wanted and not frame.is_corrupt:
                yield frame
    context.flush_buffers()


def as_pictures(frames: Sequence[av.VideoFrame], side_px: int, place: float, *, upscale: bool) -> Pixels:
    """Square pictures, (T, C, H, W), RGB: the short side scaled to ``side_px`` by area, the long one cut.

    ``place`` says where along the long side the square lies, 0..1; 0.5 is the middle. Raises MediaError for a frame that
    is smaller, unless ``upscale``.
    """
    pictures_TCHW = np.empty((len(frames), 3, side_px, side_px), np.uint8)
    for index, frame in enumerate(frames):
        short = min(frame.width, frame.height)
        if short < side_px and not upscale:
            raise MediaError("too_small", f"its picture is {frame.width}x{frame.height}, smaller than {side_px} px")
        width, height = (round(side_px * Fraction(length, short)) for length in (frame.width, frame.height))
        rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
        left, top = round(place * (width - side_px)), round(place * (height - side_px))
        pictures_TCHW[index] = rgb[top : top + side_px, left : left + side_px].transpose(2, 0, 1)
    return pictures_TCHW
