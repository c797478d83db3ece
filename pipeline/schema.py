"""Types that the stages share: source, span, clip, measures, verdict, state. Standard library only.

Times are integer milliseconds (``_ms``) or float seconds (``_seconds``), by name, from the start of the source's own timeline.

    0 ms                                          source timeline                                   duration
    |------------- scene 0 -------------|--------------- scene 1 ---------------|---- scene 2 ----|
         |-- clip 0 --||-- clip 1 --|        |-- clip 2 --||-- clip 3 --|              too short
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,96}")
"""A valid source id. It becomes part of file names and sample keys, so dots and slashes are not allowed."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open stretch of time, ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_ms < self.end_ms:
            raise ValueError(f"a span needs 0 <= start < end, got start={self.start_ms} ms, end={self.end_ms} ms")

    @property
    def duration_ms(self) -> int:
        return self.end_ms - self.start_ms

    @property
    def start_seconds(self) -> float:
        return self.start_ms / 1000

    @property
    def end_seconds(self) -> float:
        return self.end_ms / 1000

    @property
    def duration_seconds(self) -> float:
        return self.duration_ms / 1000


@dataclass(frozen=True, slots=True)
class Source:
    """One row of a source list.

    ``start_ms`` and ``end_ms`` bound the wanted section (``end_ms=None``: to the end). ``listed_at`` is ``FILE:LINE``.
    """

    source_id: str
    url: str
    start_ms: int = 0
    end_ms: int | None = None
    labels: tuple[str, ...] = ()
    caption: str | None = None
    licence: str | None = None
    split: str | None = None
    listed_at: str | None = None

    def __post_init__(self) -> None:
        if not KEY_PATTERN.fullmatch(self.source_id):
            raise ValueError(f"source id {self.source_id!r}: use 1 to 96 letters, digits, '_' or '-'")
        if self.start_ms < 0 or (self.end_ms is not None and self.end_ms <= self.start_ms):
            raise ValueError(
                f"source {self.source_id}: needs 0 <= start < end, got {self.start_ms} ms, {self.end_ms} ms"
            )

    @property
    def is_section(self) -> bool:
        """Whether only a part of the video is wanted."""
        return self.start_ms > 0 or self.end_ms is not None


def clip_key(source_id: str, span: Span) -> str:
    """The sample key of a clip. It depends on the source and the span only, so it is the same in every build."""
    return f"{source_id}_{span.start_ms:08d}_{span.end_ms:08d}"


def source_of_key(key: str) -> str:
    """The id of the source of the clip with this key: the inverse of :func:`clip_key`."""
    return key.rsplit("_", 2)[0]


class State(StrEnum):
    """Outcome of a source or clip. Each has exactly one."""

    KEPT = "kept"
    REJECTED = "rejected"
    FAILED = "failed"
    PENDING = "pending"


class Reason(StrEnum):
    """Why a source or clip was rejected. The first rule that rejects it gives the reason."""

    # a whole source, before any decode
    NO_VIDEO = "no_video"
    NO_AUDIO = "no_audio"
    PORTRAIT = "portrait"
    TOO_SMALL = "too_small"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    # a whole source, after its decode
    NO_CLIP_FITS = "no_clip_fits"
    NO_CLIP_KEPT = "no_clip_kept"
    # a clip's picture
    BLACK = "black"
    WHITE = "white"
    FLAT = "flat"
    STILL = "still"
    BLURRED = "blurred"
    CROPPED_TOO_SMALL = "cropped_too_small"
    # a clip's sound
    SOUND_MISSING = "sound_missing"
    SILENT = "silent"
    QUIET = "quiet"
    CLIPPED_SOUND = "clipped_sound"
    DC_OFFSET = "dc_offset"
    SPEECH = "speech"
    MUSIC = "music"
    # both
    DISAGREES = "disagrees"
    # across the dataset
    DUPLICATE = "duplicate"
    CLASS_FULL = "class_full"
    SOURCE_FULL = "source_full"
    # a whole source, after the dataset was built
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Kept (``reason is None``) or rejected for one reason. ``detail`` names the measured value and the limit."""

    reason: Reason | None = None
    detail: str = ""

    @property
    def kept(self) -> bool:
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a source or clip could not be processed. ``code`` is a stable word for grouping; ``transient``: a retry may help."""

    stage: str
    code: str
    message: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Black bars around the picture, in pixels of the displayed frame."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


@dataclass(frozen=True, slots=True)
class PictureMeasures:
    """Measures of a clip's picture. Luma is 0 (black) to 255 (white), full range."""

    num_frames: int
    luma_mean: float
    """Mean luma, 0..255."""
    luma_std: float
    """Mean over frames of the spatial standard deviation of luma, 0..255: contrast."""
    black_share: float
    """Share of frames that are black, 0..1."""
    white_share: float
    """Share of frames that are white, 0..1."""
    motion: float
    """Mean absolute change of luma between frames about 0.2 s apart, 0..255."""
    still_share: float
    """Share of the clip's time in which the picture does not change at all, 0..1."""
    sharpness: float
    """Variance of the Laplacian of luma divided by the variance of luma, of a slightly blurred picture 360 lines high: 0.01 is sharp,
    0.0003 out of focus. The division makes it independent of contrast: a dark picture can be sharp."""
    bar_left_px: int
    bar_top_px: int
    bar_right_px: int
    bar_bottom_px: int
    picture_hash: str
    """Perceptual hashes of frames spread evenly over the clip, 16 hexadecimal digits each."""

    @property
    def bars(self) -> Bars:
        return Bars(self.bar_left_px, self.bar_top_px, self.bar_right_px, self.bar_bottom_px)


@dataclass(frozen=True, slots=True)
class SoundMeasures:
    """Measures of a clip's sound."""

    loudness_lufs: float | None
    """Integrated loudness in LUFS, ITU-R BS.1770-4. None: too quiet or too short for the gate."""
    peak_dbfs: float | None
    """Highest sample, dB full scale. None: digital silence."""
    covered_share: float
    """Share of the clip that the sound track covers, 0..1."""
    silent_share: float
    """Share of the clip below -60 dBFS RMS, in blocks of 100 ms, 0..1."""
    clipped_share: float
    """Share of samples in runs of three samples or more at full scale, 0..1."""
    dc_offset: float
    """Absolute mean of the samples, 0..1 of full scale."""
    dual_mono: bool | None
    """Whether two channels carry the same signal. None: one channel only."""
    speech_share: float
    """Share of the clip in which silero-vad detects speech, 0..1."""
    music_share: float
    """Estimated share of the clip with music (steady harmonic partials), 0..1."""
    sound_hash: str
    """Fingerprint of the sound: signs of band-energy changes, hexadecimal."""


@dataclass(frozen=True, slots=True)
class AgreementMeasures:
    """How well sound and picture match in the shared space. Cosines are -1..1."""

    encoder_id: str
    agreement: float
    """Cosine of the clip's mean picture embedding and its sound embedding."""
    best_agreement: float
    """Highest cosine of any one frame and the sound."""
    margin: float | None = None
    """Cosine of the sound and the prompt of the clip's own class, minus the highest cosine with the prompt of another class: -2..2,
    below 0 if the sound is nearer to another class. None: the encoders could not embed the class prompts."""
    shown_class: str | None = None
    """The class whose prompt is nearest to the picture."""
    heard_class: str | None = None
    """The class whose prompt is nearest to the sound."""


@dataclass(frozen=True, slots=True)
class TimeMeasures:
    """Whether events of picture and sound coincide: see :mod:`pipeline.measure.rhythm`.

    Matches are correlations, -1..1. Lags are in seconds, positive if the sound comes after the picture. A value is None if the
    picture or the sound has no rises.
    """

    motion_match: float | None = None
    """Correlation of the rises of the sound with the rises of motion, at the best lag."""
    motion_lag_seconds: float | None = None
    light_match: float | None = None
    """Correlation of the rises of the sound with the rises of brightness, at the best lag."""
    light_lag_seconds: float | None = None


def flat(record: Any) -> dict[str, Any]:
    """The fields of a dataclass as a dict, in their order. Nested values are not converted."""
    return {f.name: getattr(record, f.name) for f in fields(record)}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source's file, in the download store or used in place, with its origin."""

    path: str
    """Local path of the file."""
    content_sha256: str
    num_bytes: int
    offset_ms: int = 0
    """Start of the file in the source's timeline: above 0 when only a section was fetched."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """title, uploader, licence, upload_date, webpage_url, extractor, format, fetched_url: those of them that are known."""
    is_new: bool = field(default=False, compare=False)
    """Whether this fetch has just stored the file, so that its hash is of the bytes that were written."""


def stable_hash(*parts: object, length: int = 16) -> str:
    """Hexadecimal digest of the parts' text, the same on every machine and in every run."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()
    return digest[:length]


def unit_interval(*parts: object) -> float:
    """A number in [0, 1) from a hash of the parts: the same on every machine and in every run."""
    return int(stable_hash(*parts, length=13), 16) / 16**13


def from_flat(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of :func:`flat`."""
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]
