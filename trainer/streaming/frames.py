"""Decodes single frames of an mp4 in memory: seeks to the key frame before each wanted frame, and decodes only what that frame needs.

    time          |--------- group ---------|--------- group ---------|
    packets       K  b  P  b  b  P  b  b  P  K  b  P  b  b  P
    wanted                    ^
    decoded       K     P     b  P                        frames that no wanted frame needs are skipped

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
"""Codec -> decoder, for codecs whose default decoder is not wanted: libavcodec's own av1 decoder needs a GPU."""
SKIPS_EXACTLY = {"h264"}
"""Codecs whose decoder obeys ``skip_frame`` for each packet: with NONREF it skips a frame that no other frame refers to."""
UNKNOWN_CODECS = {"codec_whitelist": "none"}
"""Stops libav from decoding the start of a file when it opens it, which takes 4 ms for a small clip. The header is enough."""
EARLY_SECONDS = 0.0005
"""Added to every wanted time: half a millisecond, the unit of spans. A frame that starts exactly with its segment is then not missed
by rounding."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Packets in decoding order, from a key frame to the last wanted frame."""

    packets: Sequence[av.Packet[av.VideoStream]]
    wanted: frozenset[int]
    """Presentation time stamps of the wanted frames, in the stream's time base."""


def decode_frames(mp4: bytes, seconds: Sequence[float]) -> list[av.VideoFrame]:
    """The frame that is shown at each time, in the order of the times; after the end of the video, the last frame.

    Times are in seconds from the file's time 0. Raises MediaError for a file without video or frames, or with damage in a part that
    is decoded.
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
    """The start times, in seconds, of the frames that ``decode_frames`` returns. Decodes nothing. Raises MediaError as it does."""
    with _opened(mp4) as (container, stream):
        stamps, _ = _planned(container, stream, seconds)
        assert stream.time_base is not None
        return [float(stamp * stream.time_base) for stamp in stamps]


def missing_frames(count: int, wanted: int) -> MediaError:
    """The error for frames that the decoder did not return."""
    return MediaError("damaged", f"{count} of {wanted} frames cannot be decoded")


@contextmanager
def _opened(mp4: bytes) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens the file and its first video stream; other streams are discarded. Turns libav's errors into MediaError."""
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
    """The presentation time stamp of the frame for each time, and the groups of packets to decode."""
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
    """The packets from a key frame up to the frame shown at ``stamp``, and that frame's own time stamp."""
    target = stamp
    while True:
        container.seek(target, stream=stream, backward=True)
        packets = list(_until(container, stream, stamp))
        head = packets[0] if packets else None
        if head is None or head.pts is None or head.dts is None or not head.is_keyframe:
            raise MediaError("no_frames", "it has no frame to begin with")
        if head.pts <= stamp or head.dts >= target:
            break
        target = (
            head.dts - 1
        )  # libav seeks by decoding time: this group is shown after the stamp, so take the group before it
    shown = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
    if not shown:
        raise MediaError("no_frames", "none of its frames is shown")
    best = max((pts for pts in shown if pts <= stamp), default=min(shown))
    last = next(place for place, packet in enumerate(packets) if packet.pts == best)
    return packets[: last + 1], best


def _until(
    container: av.container.InputContainer, stream: av.VideoStream, stamp: int
) -> Iterator[av.Packet[av.VideoStream]]:
    """One packet, then all packets with a decoding time up to ``stamp``: a frame is never shown before it is decoded."""
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
    """Square pictures (T, C, H, W), uint8 RGB: the short side is scaled to ``side_px`` (area average), the long side is cropped.

    ``place`` is the position of the square along the long side, 0..1; 0.5 is the middle. Raises MediaError for a frame with a
    smaller short side, unless ``upscale``.
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
