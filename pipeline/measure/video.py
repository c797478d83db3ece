"""Measures a video in one decode: its cuts, its clips, the measures of every clip, and the previews for the encoders."""

from __future__ import annotations

import bisect
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scenedetect
from pydantic import Field

from pipeline.errors import MediaError
from pipeline.measure import speech
from pipeline.measure.clips import ClipSettings, split_scenes
from pipeline.measure.picture import PictureSettings, PictureTrack
from pipeline.measure.previews import FrameRoll, PreviewSettings, save_sound
from pipeline.measure.rhythm import SMALLEST_LIGHT, SMALLEST_MOTION, envelope_db, rhythm_match
from pipeline.measure.scenes import (
    CutDetector,
    FlashMemory,
    SceneSettings,
    detector_versions,
    open_detector,
    scenes_between,
)
from pipeline.measure.sound import SAMPLE_RATE_HZ, SoundTrack, measure_sound, to_mono
from pipeline.media.boxes import bytes_of_next_file
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.facts import MediaFacts, VideoFacts
from pipeline.media.ffmpeg import versions
from pipeline.schema import PictureMeasures, SoundMeasures, Span, TimeMeasures, flat, from_flat, stable_hash
from pipeline.settings import Settings

VERSION = 4
"""Raised when the numbers change: stored measures of other versions are not used."""
UNKNOWN_FPS = 25.0
"""Frame rate that is assumed if the header gives none."""
READ_TO_THE_END = {"flv", "asf"}
"""Formats in which media reach to the last byte of a file."""
UNREAD_BYTES = 64 << 10
"""Bytes at the end of such a file that may be left unread."""


class MeasureSettings(Settings):
    """What is measured while a file is decoded."""

    picture: PictureSettings = PictureSettings()
    """Measures of the picture that are taken from some frames only."""
    previews: PreviewSettings = PreviewSettings()
    """Which frames are stored for the picture encoder and the report."""
    missing_share: float = Field(0.05, ge=0, le=1)
    """A file is truncated if it decodes to less than the length in its header, by more than this share and more than a second."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Smallest time limit for measuring a file. The limit is 10 times the length in its header, if that is more."""
    timeout_max_seconds: float = Field(6 * 3600.0, gt=0)
    """Largest time limit for measuring a file, whatever length its header gives."""


@dataclass(frozen=True, slots=True)
class MeasuredClip:
    """A clip's span, in the time of the file, and its measures. ``sound`` and ``in_time`` are None if the file has no sound track."""

    scene_index: int
    span: Span
    picture: PictureMeasures
    sound: SoundMeasures | None
    in_time: TimeMeasures | None = None


@dataclass(frozen=True, slots=True)
class MeasuredVideo:
    """Result of :func:`measure_video`. ``scenes`` are in the time of the file."""

    facts: MediaFacts
    num_frames: int
    decoded_seconds: float
    scenes: tuple[Span, ...]
    clips: tuple[MeasuredClip, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts.to_json(),
            "num_frames": self.num_frames,
            "decoded_seconds": self.decoded_seconds,
            "scenes": [[scene.start_ms, scene.end_ms] for scene in self.scenes],
            "clips": [
                {
                    "scene_index": clip.scene_index,
                    "span": [clip.span.start_ms, clip.span.end_ms],
                    "picture": flat(clip.picture),
                    "sound": flat(clip.sound) if clip.sound else None,
                    "in_time": flat(clip.in_time) if clip.in_time else None,
                }
                for clip in self.clips
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MeasuredVideo:
        return cls(
            facts=MediaFacts.from_json(values["facts"]),
            num_frames=values["num_frames"],
            decoded_seconds=values["decoded_seconds"],
            scenes=tuple(Span(*scene) for scene in values["scenes"]),
            clips=tuple(
                MeasuredClip(
                    clip["scene_index"],
                    Span(*clip["span"]),
                    from_flat(PictureMeasures, clip["picture"]),
                    from_flat(SoundMeasures, clip["sound"]) if clip["sound"] else None,
                    from_flat(TimeMeasures, clip["in_time"]) if clip["in_time"] else None,
                )
                for clip in values["clips"]
            ),
        )


def measure_versions(scenes: SceneSettings) -> dict[str, str]:
    """Versions of everything that the measures depend on besides file and settings."""
    libraries = {
        "opencv": cv2.__version__,
        "scenedetect": scenedetect.__version__,
        "pyloudnorm": importlib.metadata.version("pyloudnorm"),
    }
    return {
        "measure": str(VERSION),
        "pyav": versions()["pyav"],
        "silero-vad": speech.version(),
        **libraries,
        **detector_versions(scenes),
    }


def measure_key(
    content_sha256: str,
    section: tuple[int, int | None],
    scenes: SceneSettings,
    clips: ClipSettings,
    settings: MeasureSettings,
    versions: Mapping[str, str] | None = None,
) -> str:
    """Key of the result of :func:`measure_video`: equal keys, equal results. ``versions``: those of a manifest, for the key of its
    measures. None: those of this program."""
    without_timeouts = settings.model_dump_json(exclude={"timeout_seconds", "timeout_max_seconds"})
    used = {name: (versions or {}).get(name, ours) for name, ours in measure_versions(scenes).items()}
    return stable_hash(
        content_sha256, section, scenes.model_dump_json(), clips.model_dump_json(), without_timeouts, used, length=32
    )


def measure_video(
    path: Path,
    facts: MediaFacts,
    *,
    section_ms: tuple[int, int | None],
    scenes: SceneSettings,
    clips: ClipSettings,
    settings: MeasureSettings,
    frames_out: Path,
    sound_out: Path,
) -> MeasuredVideo:
    """Decodes ``section_ms`` of the file once and measures every clip in it.

    The previews are written to ``frames_out`` and, if the file has a sound track, ``sound_out``: see :mod:`pipeline.measure.previews`.
    Raises MediaError: ``no_frames``, ``no_such_span``, ``truncated``, ``joined``, or what opening the file raises.
    """
    video = facts.video
    assert video is not None, "a file without a picture is rejected before it is measured"
    start, end = section_ms[0] / 1000, None if section_ms[1] is None else section_ms[1] / 1000
    pictures = PictureTrack((video.width, video.height), settings.picture)
    detector, flashes = open_detector(scenes, video.fps or UNKNOWN_FPS), FlashMemory()
    roll = FrameRoll(settings.previews)
    sound = SoundTrack(sound_out.parent)
    try:
        decoding = Decoding(
            path,
            sample_rate_hz=SAMPLE_RATE_HZ,
            start_seconds=start,
            end_seconds=end,
            part_shifts=facts.part_shifts,
        )
        num_back = _decode(decoding, pictures, detector, flashes, roll, sound)
        times = pictures.times
        if not times:
            raise _no_picture(decoding, facts, start, end)
        frame_seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / (video.fps or UNKNOWN_FPS)
        picture_end = min(times[-1] + frame_seconds, end or math.inf)
        _check_complete(facts, video, picture_end, sound.end_seconds, end, settings.missing_share, decoding)
        usual_seconds = float(np.median(np.diff(times))) if len(times) > 1 else frame_seconds
        lost_seconds = max(num_back * usual_seconds, sound.lost_seconds)
        _check_all_read(path, facts, picture_end - times[0], lost_seconds, end, settings.missing_share, decoding)
        cuts = [cut for cut in detector.cuts() if not (scenes.ignore_flashes and flashes.is_flash(times[cut]))]
        cuts = _with_changes(cuts, decoding.changes_seconds, times)
        scene_seconds = scenes_between(cuts, times, picture_end)
        measured = tuple(
            MeasuredClip(
                index,
                span,
                picture,
                measure_sound(sound, span.start_seconds, span.end_seconds) if facts.sound else None,
                _in_time(pictures, sound, span) if facts.sound else None,
            )
            for index, span in split_scenes(scene_seconds, times, clips)
            if (picture := pictures.measures(span.start_seconds, span.end_seconds)) is not None
        )
        roll.save(frames_out)
        if facts.sound is not None:
            save_sound(sound, sound_out)
    finally:
        sound.close()
    return MeasuredVideo(
        facts=facts,
        num_frames=len(times),
        decoded_seconds=round(picture_end - times[0], 3),
        scenes=tuple(span for begin, stop in scene_seconds if (span := _as_span(begin, stop))),
        clips=measured,
    )


def _in_time(pictures: PictureTrack, sound: SoundTrack, span: Span) -> TimeMeasures:
    level_db = envelope_db(to_mono(sound.between(span.start_seconds, span.end_seconds)), SAMPLE_RATE_HZ)
    light, motion = pictures.rhythm(span.start_seconds, span.end_seconds)
    motion_match, motion_lag = rhythm_match(motion, level_db, SMALLEST_MOTION)
    light_match, light_lag = rhythm_match(light, level_db, SMALLEST_LIGHT)
    return TimeMeasures(motion_match, motion_lag, light_match, light_lag)


def _with_changes(cuts: Sequence[int], changes_seconds: Sequence[float], times: Sequence[float]) -> list[int]:
    """The cuts and the first frame after each change of size or format: ffmpeg restarts its filters there, so no clip may include one."""
    changes = {bisect.bisect_left(times, seconds) for seconds in changes_seconds}
    return sorted({*cuts, *(index for index in changes if 0 < index < len(times))})


def _as_span(begin: float, stop: float) -> Span | None:
    begin_ms, stop_ms = max(round(begin * 1000), 0), round(stop * 1000)
    return Span(begin_ms, stop_ms) if stop_ms > begin_ms else None


def _decode(
    decoding: Decoding,
    pictures: PictureTrack,
    detector: CutDetector,
    flashes: FlashMemory,
    roll: FrameRoll,
    sound: SoundTrack,
) -> int:
    """Feeds everything that is decoded to the measures. Returns the number of frames that were left out because their time stamps go
    back."""
    num_back = 0
    for piece in decoding:
        if not isinstance(piece, Picture):
            sound.feed(piece)
            continue
        if pictures.times and piece.seconds <= pictures.times[-1]:
            num_back += 1
            continue
        small = piece.small_luma(pictures.size)
        pictures.feed(piece, small)
        flashes.feed(piece.seconds, small)
        detector.feed(piece.small_bgr(pictures.size, small))
        if roll.wants(piece.seconds):
            roll.add(piece.seconds, piece.rgb(roll.short_side_px))
    return num_back


def _no_picture(decoding: Decoding, facts: MediaFacts, start: float, end: float | None) -> MediaError:
    known = [facts.video.duration_seconds if facts.video else None, facts.duration_seconds, decoding.picture_seconds]
    length = next((seconds for seconds in known if seconds is not None), None)
    if length is not None and start >= length - 0.001:
        wanted = f"{start:g} s to its end" if end is None else f"{start:g} to {end:g} s of it"
        return MediaError(
            "no_such_span",
            f"the file is {length:.2f} s long, and the row of the source list asks for {wanted}: correct its start and end",
        )
    errors = f"{decoding.num_errors} errors, {decoding.last_error or 'none named'}"
    return MediaError("no_frames", f"no picture could be decoded ({errors})")


def _check_complete(
    facts: MediaFacts,
    video: VideoFacts,
    picture_end: float,
    sound_end: float,
    section_end: float | None,
    missing_share: float,
    decoding: Decoding,
) -> None:
    """Raises MediaError ``truncated`` if the picture ends well before the end that the header gives."""
    header_end = video.duration_seconds or facts.duration_seconds
    if header_end is None:
        return
    # a length of the container is that of its longest track, which may be the sound
    decoded_end = picture_end if video.duration_seconds is not None else max(picture_end, sound_end)
    header_end = min(header_end, section_end) if section_end is not None else header_end
    if header_end - decoded_end > max(1.0, missing_share * header_end):
        reason = f", last error: {decoding.last_error}" if decoding.last_error else ""
        raise MediaError(
            "truncated",
            f"the header says {header_end:.1f} s of picture, only {picture_end:.1f} s can be decoded{reason}",
        )


def _check_all_read(
    path: Path,
    facts: MediaFacts,
    picture_seconds: float,
    lost_seconds: float,
    section_end: float | None,
    missing_share: float,
    decoding: Decoding,
) -> None:
    """Raises MediaError ``joined`` if much of the file was left out because its time stamps go back, or if its end was not read."""
    if lost_seconds > max(1.0, missing_share * picture_seconds):
        raise MediaError(
            "joined",
            f"the time stamps go back, so that {lost_seconds:.1f} s of picture or sound overlap with earlier ones, as if files were "
            "joined byte by byte: split the file, or join its parts with ffmpeg's concat demuxer",
        )
    if section_end is not None:
        return
    num_bytes = path.stat().st_size
    rest = _unread_bytes(path, facts.container, decoding.end_byte)
    if rest > max(UNREAD_BYTES, missing_share * num_bytes):
        raise MediaError(
            "joined",
            f"{rest} of {num_bytes} bytes, at the end, cannot be read, as if files were joined byte by byte: split the file, or join "
            "its parts with ffmpeg's concat demuxer",
        )


def _unread_bytes(path: Path, container: str, end_byte: int) -> int:
    if container in READ_TO_THE_END:
        return path.stat().st_size - end_byte
    return bytes_of_next_file(path, end_byte) if container.startswith("mov") else 0
