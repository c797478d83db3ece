"""Decodes a file in one pass: pictures and sound in the order of the file, in seconds from the file's time 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.stream import Discard

from pipeline.errors import MediaError
from pipeline.media.ffmpeg import cause, opened, start_of
from pipeline.media.parts import Straightener
from pipeline.media.tone_map import HLG, PQ, grey_table, to_screen
from pipeline.media.tracks import picture_track, sound_track

Luma = npt.NDArray[np.uint8]

NO_PICTURE_TIMES = {"avi"}
"""Containers that store decoding times only. With B-frames the presentation times that libavformat guesses are out of order; like
ffmpeg, we use the decoding times. The last pictures, which are decoded after the last packet, have none: each follows the one before."""

MAX_SECONDS = 24 * 3600.0
"""Largest time stamp. A larger one is damaged, and would make gaps and windows without end."""

PLANAR_8_BIT = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv411p", "yuv410p"}


class Picture:
    """One decoded frame. Its planes are views into the decoder's memory, valid until the next frame is decoded."""

    __slots__ = ("_decoded_frame", "_frame", "_transfer", "seconds")

    def __init__(self, frame: av.VideoFrame, seconds: float) -> None:
        self.seconds = seconds
        self._decoded_frame = frame
        self._transfer = int(frame.color_trc)
        if frame.format.name not in PLANAR_8_BIT:
            frame = frame.reformat(format="yuv420p")
        self._frame = frame
        """The frame in a format with 8-bit planes."""

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
        """Luma as displayed, (H, W), uint8, in the range of the file: 0..255, or 16..235 unless ``full_range``."""
        return self._plane(0)

    def small_luma(self, size: tuple[int, int]) -> Luma:
        """Luma at ``size`` (width, height), stretched to 0..255. HDR is tone-mapped.

        Scaling is bilinear, from the nearest four pixels: an average over all pixels would take longer than decoding.
        """
        return self._stretched(cv2.resize(self._plane(0), size, interpolation=cv2.INTER_LINEAR))

    def _stretched(self, luma: Any) -> Luma:
        if not self.full_range:
            luma = cv2.convertScaleAbs(np.maximum(luma, 16), alpha=255 / 219, beta=-16 * 255 / 219)
        if self._transfer in (PQ, HLG):
            luma = cv2.LUT(luma, grey_table(self._transfer))
        return np.asarray(luma, np.uint8)

    def small_bgr(self, size: tuple[int, int], luma: Luma) -> npt.NDArray[np.uint8]:
        """The picture at ``size`` (width, height) in BGR. ``luma``: result of :meth:`small_luma` for the same size."""
        chroma = [cv2.resize(self._plane(i), size, interpolation=cv2.INTER_LINEAR) for i in (1, 2)]
        if not self.full_range:
            chroma = [cv2.convertScaleAbs(plane, alpha=255 / 224, beta=128 * (1 - 255 / 224)) for plane in chroma]
        return np.asarray(cv2.cvtColor(cv2.merge([luma, chroma[1], chroma[0]]), cv2.COLOR_YCrCb2BGR), np.uint8)

    def rgb(self, short_side: int) -> npt.NDArray[np.uint8]:
        """The picture in RGB (H, W, 3), uint8, scaled by area so that its shorter side has ``short_side`` pixels. HDR is tone-mapped."""
        is_hdr = self._transfer in (PQ, HLG)
        frame = self._decoded_frame if is_hdr else self._frame
        factor = short_side / min(frame.width, frame.height)
        size = (max(round(frame.width * factor), 1), max(round(frame.height * factor), 1))
        rgb_format = "rgb48le" if is_hdr else "rgb24"
        scaled = frame.reformat(width=size[0], height=size[1], format=rgb_format, interpolation="AREA").to_ndarray()
        return self._turned(
            to_screen(np.asarray(scaled, np.uint16), self._transfer) if is_hdr else np.asarray(scaled, np.uint8)
        )


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """Consecutive samples, int16, (num_samples, num_channels), that begin at ``seconds``."""

    seconds: float
    samples: npt.NDArray[np.int16]


class Decoding:
    """One pass through a file, from ``start_seconds`` to ``end_seconds``. Iterating gives pictures and sound in the order of the file.

    Sound has ``sample_rate_hz`` and one or two channels (more are mixed down). ``part_shifts``: see :class:`MediaFacts`.
    ``num_errors`` counts the packets that could not be decoded. Raises MediaError, among others ``bad_times``.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        sample_rate_hz: int,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        num_threads: int = 1,
        part_shifts: Sequence[float] = (),
    ) -> None:
        self.path = path
        self.sample_rate_hz = sample_rate_hz
        self.start_seconds = start_seconds
        self.end_seconds = math.inf if end_seconds is None else end_seconds
        self.num_threads = num_threads
        self.part_shifts = part_shifts
        self.num_errors = 0
        self.last_error = ""
        self.picture_seconds: float | None = None
        """Largest time of a picture so far, also outside of the section."""
        self.changes_seconds: list[float] = []
        """Times at which the picture's size or format, or the sound's rate or channels, changed."""
        self._picture_form: tuple[Any, ...] | None = None
        """Width, height and pixel format of the last picture."""
        self._next_stamp: int | None = None
        """The time stamp at which the last picture ends, in containers without presentation times."""
        self.end_byte = 0
        """Byte of the file at which the last packet so far ends."""

    def __iter__(self) -> Iterator[Picture | SoundBlock]:
        with opened(self.path) as container:
            yield from self._walk(container)

    def _walk(self, container: av.container.InputContainer) -> Iterator[Picture | SoundBlock]:
        origin = start_of(container)
        chosen_picture, chosen_sound = picture_track(container), sound_track(container)
        video = chosen_picture.stream if chosen_picture else None
        sound = chosen_sound.stream if chosen_sound else None
        streams = [stream for stream in (video, sound) if stream is not None]
        for stream in container.streams:
            if stream not in streams:
                stream.discard = Discard.all
        if video is not None:
            video.codec_context.thread_count = self.num_threads
            video.codec_context.thread_type = "FRAME" if self.num_threads > 1 else "SLICE"
        if self.start_seconds > 0 and not self.part_shifts:  # with times that restart, seeking finds the wrong place
            container.seek(int((self.start_seconds + origin) * av.time_base), backward=True)
        clock = None
        if sound is not None:
            layout = "mono" if sound.codec_context.channels == 1 else "stereo"
            clock = _SoundClock(self.sample_rate_hz, layout, origin)
        unfinished = set(streams)
        straightener = Straightener(self.part_shifts)
        for packet in self._packets(container, streams):
            straightener.straighten(packet)
            self.end_byte = max(self.end_byte, (packet.pos or 0) + packet.size)
            if packet.stream not in unfinished:
                continue
            if packet.pts is not None and _checked(packet.pts * packet.time_base - origin) > self.end_seconds + 2:
                unfinished.discard(packet.stream)
                if not unfinished:
                    break
                continue
            for frame in self._frames(packet):
                if isinstance(frame, av.VideoFrame):
                    stamp = self._decoded_at(frame) if container.format.name in NO_PICTURE_TIMES else frame.pts
                    yield from self._picture(frame, stamp, origin)
                elif isinstance(frame, av.AudioFrame) and clock is not None:
                    yield from self._sound(clock, frame)
        if clock is not None:
            yield from self._sound(clock, None)

    def _packets(self, container: av.container.InputContainer, streams: Sequence[Any]) -> Iterator[av.Packet[Any]]:
        try:
            yield from container.demux(streams)
        except av.error.FFmpegError as error:
            self._count_error(error)
        except IndexError as error:
            # raised by PyAV at the end of a file with a track that its header does not list
            self._count_error(error)

    def _sound(self, clock: _SoundClock, frame: av.AudioFrame | None) -> Iterator[SoundBlock]:
        try:
            yield from clock.feed(frame)
            if clock.changed_seconds is not None:
                self.changes_seconds.append(clock.changed_seconds)
        except (av.error.FFmpegError, ValueError) as error:  # an invalid layout or rate
            self._count_error(error)

    def _frames(self, packet: av.Packet[Any]) -> Sequence[Any]:
        try:
            return packet.decode()
        except av.error.FFmpegError as error:
            self._count_error(error)
            return ()

    def _decoded_at(self, frame: av.VideoFrame) -> int | None:
        """The decoding time of a frame; if it has none, the time at which the picture before it ends."""
        stamp = self._next_stamp if frame.dts is None else frame.dts
        self._next_stamp = None if stamp is None else stamp + max(frame.duration or 1, 1)
        return stamp

    def _count_error(self, error: Exception) -> None:
        self.num_errors += 1
        self.last_error = cause(error)

    def _picture(self, frame: av.VideoFrame, stamp: int | None, origin: Fraction) -> Iterator[Picture]:
        if stamp is None or frame.time_base is None:
            return
        seconds = _checked(stamp * frame.time_base - origin)
        self.picture_seconds = max(seconds, self.picture_seconds or 0.0)
        form = (frame.width, frame.height, frame.format.name)
        if self._picture_form not in (None, form):
            self.changes_seconds.append(seconds)
        self._picture_form = form
        if self.start_seconds <= seconds < self.end_seconds:
            try:
                picture = Picture(frame, seconds)
            except (av.error.FFmpegError, ValueError) as error:  # a pixel format that cannot be converted
                self._count_error(error)
                return
            yield picture


def _checked(seconds: Fraction) -> float:
    """The time as a float. Raises MediaError ``bad_times`` if it is more than ``MAX_SECONDS`` from 0."""
    if abs(seconds) > MAX_SECONDS:
        raise MediaError("bad_times", f"a time stamp is {float(seconds):.3g} s from the beginning")
    return float(seconds)


class _SoundClock:
    """Resamples sound and gives each block its time. At a gap or an overlap of the time stamps the resampler starts again."""

    TOLERANCE_SECONDS = 0.04

    def __init__(self, sample_rate_hz: int, layout: str, origin: Fraction) -> None:
        self.sample_rate_hz, self.layout, self.origin = sample_rate_hz, layout, origin
        self._expected: float | None = None
        """The time at which the next frame should begin, in seconds. None before the first."""
        self._start = 0.0
        self._num_given = 0
        """When the current resampler started, in seconds, and the samples that it has given since."""
        self._signature: tuple[Any, ...] = ()
        """Sample format, channel layout and rate of the last frame."""
        self.changed_seconds: float | None = None
        """Time of the last frame, if its rate or channels differ from those of the frame before; else None."""
        self._resampler: av.AudioResampler | None = None

    def feed(self, frame: av.AudioFrame | None) -> Iterator[SoundBlock]:
        """The blocks that are complete after this frame. None: the end of the file, which gives the rest."""
        self.changed_seconds = None
        if frame is None:
            yield from self._drain()
            return
        if frame.sample_rate <= 0 or frame.samples <= 0:
            return
        seconds = self._expected or 0.0
        if frame.pts is not None and frame.time_base is not None:
            seconds = _checked(frame.pts * frame.time_base - self.origin)
        signature = (frame.format.name, frame.layout.name, frame.sample_rate)
        jumped = self._expected is None or abs(seconds - self._expected) > self.TOLERANCE_SECONDS
        if jumped or signature != self._signature:
            self.changed_seconds = seconds if self._signature not in ((), signature) else None
            yield from self._drain()
            self._resampler = av.AudioResampler(format="s16", layout=self.layout, rate=self.sample_rate_hz)
            self._start, self._num_given, self._signature = seconds, 0, signature
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
            yield SoundBlock(self._start + self._num_given / self.sample_rate_hz, samples)
            self._num_given += frame.samples
