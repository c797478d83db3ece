"""Files whose time stamps begin again, as of transport streams that were joined: one clock for all of their parts.

    stored   0 --- 7 | 0 --- 5        shifts (0, 7)        as read   0 --- 7 --- 12

A part begins where the decoding times of a track go back. Each part follows the one before, at the end of its longest track, so that
picture and sound stay together.

``python -m pipeline.media.parts SOURCE TARGET START END SHIFTS`` copies the packets of a span into a file with such times.
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
"""AVFMT_TS_DISCONT: time stamps of this format may begin again."""
BACK_SECONDS, AHEAD_SECONDS = 0.2, 43_200.0
"""A part begins where times go back so far; or ahead so far, which is how a transport stream's 33 bits of time go back by minutes."""
COPIED_BEFORE_SECONDS, SOUND_BEFORE_SECONDS, COPIED_BEHIND_SECONDS = 30.0, 1.0, 1.0
"""What is copied before a span at the most, to reach the key frame that it needs; of its sound at the least; and behind it."""


class PartCounter:
    """Is shown every packet in turn; says which part it is of, from 0."""

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
        """How many parts the tracks have."""
        return {part + 1 for part in self._part.values()}


class Straightener:
    """Puts the time stamps of packets, shown in turn, on one clock."""

    def __init__(self, shifts_seconds: Sequence[float]) -> None:
        self._shifts_seconds = shifts_seconds
        self._counter = PartCounter()

    def straighten(self, packet: Any) -> None:
        """Changes the packet. Raises MediaError where a part comes that was not there when the file was probed."""
        if not self._shifts_seconds:
            return
        part = self._counter.part_of(packet)
        if part >= len(self._shifts_seconds):
            raise MediaError("bad_times", "the time stamps begin again more often than when the file was probed")
        ticks = round(self._shifts_seconds[part] / packet.time_base) if packet.time_base else 0
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks


def part_shifts(container: av.container.InputContainer) -> tuple[tuple[float, ...], float]:
    """What to add to the time stamps of each part, in seconds, and where the last one ends. Nothing where the times never go back, and
    where they do not in picture and sound alike: single damaged stamps, or parts of which it cannot be told what belongs together.

    Reads all packets, without decoding.
    """
    streams = [track.stream for track in (picture_track(container), sound_track(container)) if track is not None]
    if not int(container.format.flags) & TS_DISCONT or not streams:
        return (), 0.0
    counter = PartCounter()
    begins: list[float] = []
    ends: list[float] = []
    for packet in _packets(container, streams):
        part = counter.part_of(packet)
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        begin, end = (float(ticks * packet.time_base) for ticks in (stamp, stamp + (packet.duration or 0)))
        if part == len(begins):
            begins.append(begin)
            ends.append(end)
        begins[part], ends[part] = min(begins[part], begin), max(ends[part], end)
    if len(begins) < 2 or len(counter.counts()) > 1:
        return (), 0.0
    shifts = [0.0]
    for end, begin in zip(ends[:-1], begins[1:], strict=True):
        shifts.append(end + shifts[-1] - begin)
    return tuple(round(shift, 6) for shift in shifts), ends[-1] + shifts[-1]


def _packets(container: av.container.InputContainer, streams: Sequence[Any]) -> Any:
    try:
        yield from container.demux(streams)
    except (
        av.error.FFmpegError,
        IndexError,
    ):  # what is behind it is missed when the file is decoded; IndexError: see pipeline.media.decoding
        return


def copy_straightened(
    source: av.container.InputContainer, target: Path, start: float, end: float, shifts_seconds: Sequence[float]
) -> None:
    """Writes the packets of ``[start, end)``, in straightened seconds, and what comes before from the last key frame on."""
    tracks = [track.stream for track in (picture_track(source), sound_track(source)) if track is not None]
    straightener = Straightener(shifts_seconds)
    waiting: collections.deque[Any] = collections.deque()
    with av.open(f"file:{target}", "w", format="nut") as container:
        written = {stream.index: container.add_stream_from_template(stream, opaque=True) for stream in tracks}
        latest: dict[int, int] = {}

        def write(packet: Any) -> None:
            stream = packet.stream
            packet.dts = max(packet.dts, latest.get(stream.index, packet.dts - 1) + 1)  # a little back is no new part
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
                heard = (p for p in waiting if p.stream.type == "audio")
                waiting = collections.deque(
                    p for p in heard if float(p.dts * p.time_base) > start - SOUND_BEFORE_SECONDS
                )
            waiting.append(packet)
            while waiting and float(waiting[0].dts * waiting[0].time_base) < start - COPIED_BEFORE_SECONDS:
                waiting.popleft()


def main(words: Sequence[str]) -> None:
    from pipeline.media.ffmpeg import opened  # noqa: PLC0415 - which imports this file

    source, target, start, end, *shifts = words
    with opened(source) as container:
        copy_straightened(container, Path(target), float(start), float(end), [float(shift) for shift in shifts])


if __name__ == "__main__":
    main(sys.argv[1:])
