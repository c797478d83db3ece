"""Cuts a kept clip out of its video, in one ffmpeg run that writes every rendition and the sound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import ffmpeg
import soundfile
from pydantic import Field, field_validator, model_validator

from pipeline.errors import MediaError
from pipeline.media import tone_map
from pipeline.media.facts import MediaFacts, VideoFacts
from pipeline.media.ffmpeg import INPUT_OPTIONS, as_input, count_frames, run_ffmpeg, run_straightener, versions
from pipeline.runtime.hashing import sha256_of
from pipeline.runtime.stop import Stop
from pipeline.schema import Bars, Span, stable_hash
from pipeline.settings import Settings

VERSION = 2
"""Raised when the bytes of a cut change, or its record: stored cuts of other versions are not used."""
SOUND_NAME = "sound.flac"
EARLY_SECONDS = 0.0005
"""Spans are in whole milliseconds. Cutting begins half a millisecond early, so that the first frame of the span is included."""
SEEKS_EXACTLY = ("mov", "matroska")
"""Containers with an index, in which ffmpeg seeks to the right key frame."""
MISSING_FRAMES = 2
"""How many of the measured frames may be missing in a cut."""
GAP_SECONDS = 0.04
"""Shortest gap in the sound that is filled with silence, the same as in the measures. ffmpeg's default is 0.1."""
NEAR_SECONDS = 2.0
"""A clip that begins earlier is read from the file's beginning: an index may omit the first key frame if its time is below 0."""
STRAIGHT_FROM_SECONDS = 10.0
"""Time 0 of the temporary file with straightened times. Packets a little before it must not have times below zero."""
PREROLL_SECONDS = 6.0
"""In containers without an index, decoding begins this long before the clip."""


PRESETS: dict[str, tuple[str, ...]] = {
    "x264": (
        *("ultrafast", "superfast", "veryfast", "faster", "fast"),
        *("medium", "slow", "slower", "veryslow", "placebo"),
    ),
    "svt_av1": tuple(map(str, range(14))),
    "nvenc": ("fast", "medium", "slow", "p1", "p2", "p3", "p4", "p5", "p6", "p7"),
}
"""The presets of each encoder."""
MAX_H264_QUALITY = 51


class RenditionSettings(Settings):
    """One size in which every kept clip is written."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")
    """Name of the folder of its shards."""
    short_side_px: int = Field(ge=16)
    """Length of the shorter side, in pixels."""
    upscale: bool = False
    """Whether a smaller source is scaled up. If not, it keeps its own size."""


class CutSettings(Settings):
    """How kept clips are encoded."""

    renditions: tuple[RenditionSettings, ...] = (
        RenditionSettings(name="1080", short_side_px=1080),
        RenditionSettings(name="256", short_side_px=256),
    )
    """The sizes, all written from one decode."""
    codec: Literal["x264", "svt_av1", "nvenc"] = "x264"
    """Encoder of the picture. nvenc needs a GPU with an encoder (an A100 or H100 has none); its bytes may differ between drivers."""
    preset: str = "fast"
    """Preset of the encoder: a name for x264 (ultrafast..veryslow), a number for svt_av1 (0..13), p1..p7 for nvenc."""
    quality: int = Field(18, ge=0, le=63)
    """Constant quality: CRF of x264 (to 51) and svt_av1 (to 63), CQ of nvenc (to 51). Lower is better and larger."""
    gop_seconds: float = Field(0.5, gt=0)
    """Time from one key frame to the next. Every group of pictures is closed, so a reader can begin at any key frame."""
    encoder_threads: int = Field(1, ge=1)
    """Threads of each encoder. It is part of the key of a cut: x264 writes other bytes with another number."""
    crop_bars: bool = True
    """Whether black bars are cropped."""
    sample_rate_hz: int = Field(44_100, gt=0)
    """Sample rate of the sound."""
    aac_bits_per_second: int = Field(160_000, gt=0)
    """Bit rate of the sound inside the mp4. The FLAC beside it is lossless."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Time limit for cutting one clip."""

    @field_validator("preset", mode="before")
    @classmethod
    def _number_as_text(cls, preset: object) -> object:
        return str(preset) if isinstance(preset, int) else preset

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [rendition.name for rendition in self.renditions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"renditions need names that differ, at least one; got {names}")
        return self

    @model_validator(mode="after")
    def _fit_the_codec(self) -> Self:
        """Refused here, because all clips would fail later, after they were fetched and measured."""
        if self.preset not in PRESETS[self.codec]:
            known = PRESETS[self.codec]
            valid = (
                f"a number from {known[0]} to {known[-1]}" if self.codec == "svt_av1" else f"one of {', '.join(known)}"
            )
            raise ValueError(f"preset = {self.preset!r}: {self.codec} takes {valid}")
        if self.codec != "svt_av1" and self.quality > MAX_H264_QUALITY:
            raise ValueError(f"quality = {self.quality}: {self.codec} takes at most {MAX_H264_QUALITY}")
        return self


@dataclass(frozen=True, slots=True)
class CutRendition:
    """One written mp4."""

    name: str
    width: int
    height: int
    num_frames: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CutClip:
    """Result of :func:`cut_clip`, with sizes and sums by which damaged files are recognised."""

    renditions: tuple[CutRendition, ...]
    num_samples: int
    sample_rate_hz: int
    num_channels: int
    flac_bytes: int
    flac_sha256: str

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of every file, by its name."""
        pictures = {f"{rendition.name}.mp4": (rendition.num_bytes, rendition.sha256) for rendition in self.renditions}
        return {**pictures, SOUND_NAME: (self.flac_bytes, self.flac_sha256)}

    def to_json(self) -> dict[str, Any]:
        fields = ("num_samples", "sample_rate_hz", "num_channels", "flac_bytes", "flac_sha256")
        renditions = [{name: getattr(r, name) for name in CutRendition.__slots__} for r in self.renditions]
        return {"renditions": renditions, **{name: getattr(self, name) for name in fields}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CutClip:
        return cls(**{**values, "renditions": tuple(CutRendition(**r) for r in values["renditions"])})


def cut_key(content_sha256: str, span: Span, bars: Bars, settings: CutSettings) -> str:
    """Key of the result of :func:`cut_clip`: equal keys, equal bytes. ``span`` is in the time of the file."""
    without_timeout = settings.model_dump_json(exclude={"timeout_seconds"})
    cropped = bars if settings.crop_bars else ""
    return stable_hash(content_sha256, span, cropped, without_timeout, VERSION, versions()["ffmpeg"], length=32)


def picture_size(video: VideoFacts, bars: Bars, rendition: RenditionSettings) -> tuple[int, int]:
    """(width, height) of a rendition in pixels: even numbers, with the aspect of the picture between the bars."""
    width, height = video.width - bars.left - bars.right, video.height - bars.top - bars.bottom
    short_side = rendition.short_side_px
    if not rendition.upscale:
        short_side = min(short_side, width, height)
    factor = short_side / min(width, height)
    return max(round(width * factor / 2) * 2, 2), max(round(height * factor / 2) * 2, 2)


def cut_clip(
    path: Path,
    facts: MediaFacts,
    span: Span,
    bars: Bars,
    settings: CutSettings,
    folder: Path,
    stop: Stop | None = None,
    memory_bytes: int | None = None,
    num_frames: int | None = None,
) -> CutClip:
    """Writes ``<rendition>.mp4`` for every rendition and ``sound.flac`` into ``folder``. ``span`` is in the time of the file.

    The first frame and the first sample are those at the span's start; the FLAC has exactly the span's length.
    ``num_frames``: number of frames that were measured in the span. None: not known; then the length is checked instead.
    ``memory_bytes``: memory limit of ffmpeg. None: none.
    Raises MediaError ``ffmpeg_failed`` or ``cut_short``, WorkerError, or StoppedError once ``stop`` is set.
    """
    video, sound = facts.video, facts.sound
    assert video is not None and sound is not None, "only clips with picture and sound are kept"
    bars = bars if settings.crop_bars else Bars()
    num_channels = min(sound.num_channels, 2)
    num_samples = round(span.duration_seconds * settings.sample_rate_hz)
    sizes = [picture_size(video, bars, rendition) for rendition in settings.renditions]
    limits: dict[str, Any] = {"timeout_seconds": settings.timeout_seconds, "memory_bytes": memory_bytes, "stop": stop}
    with _tracks(path, facts, span, folder, limits) as (picture_track, sound_track, origin):
        pictures, samples = _trimmed(picture_track, sound_track, origin + span.start_seconds, origin + span.end_seconds)
        gapless = _gapless(samples, num_samples, settings.sample_rate_hz, num_channels)
        outputs = _outputs(_prepared(pictures, video, bars), gapless, video, settings, sizes, folder)
        # -copyts keeps the time stamps of the file, which the filters of the span use
        run_ffmpeg(ffmpeg.merge_outputs(*outputs).global_args("-copyts"), **limits)
    return _checked(folder, span, settings, sizes, num_samples, num_channels, num_frames)


def _outputs(
    pictures: Any,
    samples: Any,
    video: VideoFacts,
    settings: CutSettings,
    sizes: Sequence[tuple[int, int]],
    folder: Path,
) -> list[Any]:
    """ffmpeg's outputs: the FLAC, then the mp4 of every rendition."""
    sounds = samples.filter_multi_output("asplit", len(sizes) + 1)
    pictures = pictures.filter_multi_output("split", len(sizes))
    outputs = [ffmpeg.output(sounds[0], str(folder / "sound.flac"), acodec="flac", sample_fmt="s16", **BIT_EXACT)]
    for index, (rendition, (width, height)) in enumerate(zip(settings.renditions, sizes, strict=True)):
        scaled = (
            pictures[index]
            .filter("scale", width, height, flags="bicubic")
            .filter("setsar", 1)
            .filter("format", "yuv420p")
        )
        outputs.append(
            ffmpeg.output(
                scaled,
                sounds[index + 1],
                str(folder / f"{rendition.name}.mp4"),
                **_picture_options(settings, video),
                **_container_options(settings),
            )
        )
    return outputs


BIT_EXACT: dict[str, Any] = {
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    "flags:a": "+bitexact",
    "map_metadata": -1,
    "map_chapters": -1,
}


@contextlib.contextmanager
def _tracks(
    path: Path, facts: MediaFacts, span: Span, folder: Path, limits: Mapping[str, Any]
) -> Iterator[tuple[Any, Any, float]]:
    """The tracks of picture and sound as ffmpeg inputs that begin before the span, and their time stamp at time 0 of the file."""
    assert facts.video is not None and facts.sound is not None
    if facts.part_shifts:
        straightened = folder / "straight.nut"
        origin = STRAIGHT_FROM_SECONDS
        shifts = [shift + origin - facts.start_seconds for shift in facts.part_shifts]
        ends = origin + span.start_seconds, origin + span.end_seconds
        try:
            run_straightener(path, straightened, ends, shifts, **limits)
            source = ffmpeg.input(as_input(straightened), threads=1, **INPUT_OPTIONS)
            yield source["0"], source["1"], origin
        finally:
            straightened.unlink(missing_ok=True)
        return
    preroll = 0.0 if facts.container.startswith(SEEKS_EXACTLY) else PREROLL_SECONDS
    seek = max(span.start_seconds - EARLY_SECONDS - preroll, 0.0)
    seek = 0.0 if seek < NEAR_SECONDS else seek
    options = {"ss": f"{seek:.4f}"} if seek else {}
    length = span.end_seconds - seek + 0.5
    source = ffmpeg.input(as_input(path), threads=1, **INPUT_OPTIONS, **options, t=f"{length:.4f}")
    yield source[str(facts.video.track)], source[str(facts.sound.track)], facts.start_seconds


def _trimmed(picture_track: Any, sound_track: Any, begin: float, end: float) -> tuple[Any, Any]:
    """Picture and sound of ``[begin, end)``, in seconds. ``begin`` becomes time 0, also if the first frame or sample is later."""
    pictures = (
        picture_track.filter("trim", start=f"{begin - EARLY_SECONDS:.6f}", end=f"{end - EARLY_SECONDS:.6f}")
        # frames whose times go back are left out, as in the measures
        .filter("select", "isnan(prev_selected_pts)+gt(pts,prev_selected_pts)")
        .filter("setpts", f"if(lt(abs(STARTT-{begin:.6f}),{2 * EARLY_SECONDS}),PTS-STARTPTS,round(PTS-{begin:.6f}/TB))")
    )
    samples = sound_track.filter("atrim", start=f"{begin:.6f}", end=f"{end:.6f}").filter(
        "asetpts", f"round(PTS-{begin:.6f}/TB)"
    )
    return pictures, samples


def _prepared(pictures: Any, video: VideoFacts, bars: Bars) -> Any:
    """The pictures deinterlaced, cropped to ``bars``, and tone-mapped, where each is necessary."""
    if video.interlaced:
        pictures = pictures.filter("bwdif", mode="send_frame", deint="interlaced")
    if bars:
        width, height = video.width - bars.left - bars.right, video.height - bars.top - bars.bottom
        pictures = pictures.filter("scale", video.width, video.height) if _is_stretched(video) else pictures
        pictures = pictures.filter("crop", width, height, bars.left, bars.top, exact=1)
    if video.is_hdr:
        pictures = tone_map.filters(pictures)
    return pictures


def _is_stretched(video: VideoFacts) -> bool:
    return video.sample_aspect != 1.0


def _gapless(samples: Any, num_samples: int, sample_rate_hz: int, num_channels: int) -> Any:
    """Sound without gaps, exactly ``num_samples`` long. Missing sound at the beginning and the end is silence.

    It is divided into blocks of equal size, because the FLAC encoder takes its block size from the first block.
    """
    layout = "mono" if num_channels == 1 else "stereo"
    return (
        samples.filter("aresample", sample_rate_hz, **{"async": 1, "first_pts": 0, "min_hard_comp": GAP_SECONDS})
        .filter("aformat", sample_fmts="s16", channel_layouts=layout)
        .filter("apad", whole_len=num_samples)
        .filter("atrim", end_sample=num_samples)
        .filter("asetnsamples", n=4096, p=0)
    )


def _picture_options(settings: CutSettings, video: VideoFacts) -> dict[str, Any]:
    gop = max(round(settings.gop_seconds * (video.fps or 25.0)), 1)
    threads, keyint = settings.encoder_threads, f"keyint={gop}"
    x264 = f"threads={threads}:lookahead-threads=1:scenecut=0:open-gop=0:{keyint}:min-{keyint}"
    codec_options: dict[str, dict[str, Any]] = {
        "x264": {"vcodec": "libx264", "crf": settings.quality, "x264-params": x264},
        "svt_av1": {
            "vcodec": "libsvtav1",
            "crf": settings.quality,
            "svtav1-params": f"lp={threads}:{keyint}:scd=0:enable-overlays=0",
        },
        "nvenc": {"vcodec": "h264_nvenc", "cq": settings.quality, "rc": "vbr", "strict_gop": 1, "no-scenecut": 1},
    }
    common = {
        "g": gop,
        "preset": settings.preset,
        "fps_mode": "passthrough",
        "enc_time_base:v": "demux",
        "pix_fmt": "yuv420p",
    }
    return {**common, **codec_options[settings.codec]}


def _container_options(settings: CutSettings) -> dict[str, Any]:
    return {
        "acodec": "aac",
        "audio_bitrate": settings.aac_bits_per_second,
        "movflags": "+faststart",
        "video_track_timescale": 90_000,
        **BIT_EXACT,
    }


def _checked(
    folder: Path,
    span: Span,
    settings: CutSettings,
    sizes: Sequence[tuple[int, int]],
    num_samples: int,
    num_channels: int,
    num_measured: int | None,
) -> CutClip:
    """The record of the written files. Raises MediaError ``cut_short`` if frames or samples are missing."""
    renditions = []
    for rendition, (width, height) in zip(settings.renditions, sizes, strict=True):
        path = folder / f"{rendition.name}.mp4"
        num_frames, seconds = count_frames(path)
        if _is_short(num_frames, seconds, span, num_measured):
            expected = f" of {num_measured}" if num_measured is not None else ""
            raise MediaError(
                "cut_short",
                f"the cut has {num_frames}{expected} frames, {seconds:.2f} s of {span.duration_seconds:.2f} s",
            )
        num_bytes = path.stat().st_size
        renditions.append(CutRendition(rendition.name, width, height, num_frames, num_bytes, sha256_of(path)))
    flac = folder / SOUND_NAME
    with soundfile.SoundFile(flac) as sound:
        if sound.frames != num_samples:
            raise MediaError("cut_short", f"the sound of the cut has {sound.frames} of {num_samples} samples")
    flac_bytes, flac_sha256 = flac.stat().st_size, sha256_of(flac)
    return CutClip(tuple(renditions), num_samples, settings.sample_rate_hz, num_channels, flac_bytes, flac_sha256)


def _is_short(num_frames: int, seconds: float, span: Span, num_measured: int | None) -> bool:
    """Whether frames are missing.

    If the number of measured frames is not known, the lengths are compared, with a tolerance: containers differ in the duration that
    they give the last frame.
    """
    if num_measured is not None:
        return num_frames < max(num_measured - MISSING_FRAMES, 1)
    return num_frames == 0 or span.duration_seconds - seconds > max(2 * seconds / num_frames, 0.25)
