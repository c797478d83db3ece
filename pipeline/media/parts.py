"""Continuous times for files whose time stamps restart, such as joined transport streams.

    stored   0 --- 7 | 0 --- 5        shifts (0, 7)        as read   0 --- 7 --- 12

A part begins where the decoding times of a track go back. It follows the end of the longest track of the part before, so that picture
and sound stay synchronous.

``python -m pipeline.media.parts SOURCE TARGET START END SHIFTS`` copies the packets of a span into a file with continuous times.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from pipeline.errors import MediaError
from pipeline.media.tracks import picture_track, sound_track

TS_DISCONT = 0x200
"""AVFMT_TS_DISCONT: the flag of formats whose time stamps may restart."""
BACK_SECONDS, AHEAD_SECONDS = 0.2, 43_200.0
"""A part begins where times go back by more than the first, or ahead by more than the second: libavformat unwraps the 33-bit times of
a transport stream, so that a step back by minutes appears as one ahead by hours."""
COPIED_BEFORE_SECONDS, SOUND_BEFORE_SECONDS, COPIED_BEHIND_SECONDS = 30.0, 1.0, 1.0
"""Most seconds that are copied before a span, to include its key frame; least seconds of sound before it; seconds after it."""


class PartCounter:
    """Gets every packet in order; gives the index of its part."""

    def __init__(self) -> None:
        self._part: dict[int, int] = {}
        self._latest: dict[int, float] = {}

    def part_of(self, packet: Any) -> int:
        track = packet.stream.index
        part = self._part.setdefault(track, 0)
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None:
            return part
        seconds = float(stamp * packet.time_base)
        if not -BACK_SECONDS <= seconds - self._latest.get(track, seconds) <= AHEAD_SECONDS:
            part = self._part[track] = part + 1
        self._latest[track] = seconds
        return part

    def counts(self) -> set[int]:
        """The numbers of parts that the tracks have; one number if it is the same for all."""
        return {part + 1 for part in self._part.values()}


class Straightener:
    """Makes the time stamps of packets continuous. It must get every packet in order."""

    def __init__(self, shifts_seconds: Sequence[float]) -> None:
        self._shifts_seconds = shifts_seconds
        self._counter = PartCounter()

    def straighten(self, packet: Any) -> None:
        """Changes the packet. Raises MediaError ``bad_times`` at a part that did not exist when the file was probed."""
        if not self._shifts_seconds:
            return
        part = self._counter.part_of(packet)
        if part >= len(self._shifts_seconds):
            raise MediaError("bad_times", "the time stamps restart more often than when the file was probed")
        ticks = round(self._shifts_seconds[part] / packet.time_base) if packet.time_base else 0
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks


def part_shifts(container: av.container.InputContainer) -> tuple[tuple[float, ...], float, float | None]:
    """Seconds to add to the time stamps of each part, the end of the last part, and the end of its picture. Empty, 0 and None if the times
    never restart.

    Also empty if picture and sound have different numbers of parts: then single stamps are damaged, or it is not known which parts
    belong together. Reads all packets, without decoding.
    """
    streams = [track.stream for track in (picture_track(container), sound_track(container)) if track is not None]
    if not int(container.format.flags) & TS_DISCONT or not streams:
        return (), 0.0, None
    counter = PartCounter()
    begins: list[float] = []
    ends: list[float] = []
    picture_ends: list[float | None] = []
    for packet in _packets(container, streams):
        part = counter.part_of(packet)
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        begin, end = (float(ticks * packet.time_base) for ticks in (stamp, stamp + (packet.duration or 0)))
        if part == len(begins):
            begins.append(begin)
            ends.append(end)
            picture_ends.append(None)
        begins[part], ends[part] = min(begins[part], begin), max(ends[part], end)
        if packet.stream.type == "video":
            picture_ends[part] = max(picture_ends[part] or end, end)
    if len(begins) < 2 or len(counter.counts()) > 1:
        return (), 0.0, None
    shifts = [0.0]
    for end, begin in zip(ends[:-1], begins[1:], strict=True):
        shifts.append(end + shifts[-1] - begin)
    picture_end = picture_ends[-1]
    return (
        tuple(round(shift, 6) for shift in shifts),
        ends[-1] + shifts[-1],
        None if picture_end is None else picture_end + shifts[-1],
    )


def _packets(container: av.container.InputContainer, streams: Sequence[Any]) -> Any:
    try:
        yield from container.demux(streams)
    except (av.error.FFmpegError, IndexError):  # decoding reports it; IndexError: see pipeline.media.decoding
        return


def copy_straightened(
    source: av.container.InputContainer, target: Path, start: float, end: float, shifts_seconds: Sequence[float]
) -> None:
    """Writes the packets of ``[start, end)``, in continuous seconds, and those before it from the last key frame on."""
    tracks = [track.stream for track in (picture_track(source), sound_track(source)) if track is not None]
    straightener = Straightener(shifts_seconds)
    waiting: collections.deque[Any] = collections.deque()
    with av.open(f"file:{target}", "w", format="nut") as container:
        written = {stream.index: container.add_stream_from_template(stream, opaque=True) for stream in tracks}
        latest: dict[int, int] = {}

        def write(packet: Any) -> None:
            stream = packet.stream
            # a small step back is no new part, but the file must have increasing times
            packet.dts = max(packet.dts, latest.get(stream.index, packet.dts - 1) + 1)
            packet.pts = packet.dts if packet.pts is None else max(packet.pts, packet.dts)
            latest[stream.index] = packet.dts
            packet.stream = written[stream.index]
            container.mux(packet)

        for packet in _packets(source, tracks):
            straightener.straighten(packet)
            if packet.dts is None or packet.size == 0:
                continue
            seconds = float(packet.dts * packet.time_base)
            if seconds > end + COPIED_BEHIND_SECONDS:
                break
            if seconds >= start:
                while waiting:
                    write(waiting.popleft())
                write(packet)
                continue
            shown = float((packet.dts if packet.pts is None else packet.pts) * packet.time_base)
            if packet.stream.type == "video" and packet.is_keyframe and shown <= start:
                sound = (p for p in waiting if p.stream.type == "audio")
                waiting = collections.deque(
                    p for p in sound if float(p.dts * p.time_base) > start - SOUND_BEFORE_SECONDS
                )
            waiting.append(packet)
            while waiting and float(waiting[0].dts * waiting[0].time_base) < start - COPIED_BEFORE_SECONDS:
                waiting.popleft()


def main(words: Sequence[str]) -> None:
    from pipeline.media.ffmpeg import opened  # noqa: PLC0415 - imports this module

    source, target, start, end, *shifts = words
    with opened(source) as container:
        copy_straightened(container, Path(target), float(start), float(end), [float(shift) for shift in shifts])


if __name__ == "__main__":
    main(sys.argv[1:])
