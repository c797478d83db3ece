"""The synthetic sources: their scenes, sounds and faults, and the expected outcome of each in a build."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from pipeline.schema import Bars, Reason
from pipeline.synthetic.pictures import PAINTERS
from pipeline.synthetic.sounds import NATURE_KINDS
from pipeline.synthetic.textures import generator

Fault = Literal["truncated", "text", "empty", "html"]
"""How the file is damaged: ``truncated``, or replaced by a text file, an empty file or an HTML page."""

KEPT = "kept"
LICENCE = "CC0-1.0"
_REJECTED_SECONDS = 10.5
"""Length of most sources that are not kept: enough for one clip of 10 s."""


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """A scene of the picture. ``kind`` is a class or ``black``; the seed determines its look and the times of its events."""

    kind: str
    seconds: float
    seed: int
    still: bool = False
    """One frame for the whole scene."""

    def __post_init__(self) -> None:
        if self.kind not in PAINTERS:
            raise ValueError(f"no scene of kind {self.kind!r}: use one of {', '.join(PAINTERS)}")
        if self.seconds <= 0:
            raise ValueError(f"a scene needs a length above 0 s, got {self.seconds}")


@dataclass(frozen=True, slots=True)
class SoundSpec:
    """A section of the sound track. ``kind`` is a class, ``speech``, ``music`` or ``silence``."""

    kind: str
    seconds: float
    seed: int
    gain: float = 1.0
    """Factor on the audio samples, which are then limited to full scale. Above about 10 the sound is clipped."""

    def __post_init__(self) -> None:
        if self.kind not in (*NATURE_KINDS, "speech", "music", "silence"):
            raise ValueError(f"no sound of kind {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the tracks are encoded; see :func:`pipeline.synthetic.video.write_video`."""

    video_codec: str = "libx264"
    audio_codec: str = "aac"
    pix_fmt: str = "yuv420p"
    crf: int = 23
    gop: int | None = None
    rotation: int = 0
    faststart: bool = False


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """One synthetic source. ``sounds=None`` gives every scene the sound of its kind; ``()`` means no audio track."""

    name: str
    file_name: str
    label: str
    caption: str
    scenes: tuple[SceneSpec, ...]
    sounds: tuple[SoundSpec, ...] | None = None
    width: int = 640
    height: int = 360
    """Size as shown, bars included."""
    fps: float = 20.0
    variable_frame_rate: bool = False
    sample_rate: int = 48000
    channels: Literal[1, 2, 6] = 2
    encoding: Encoding = field(default_factory=Encoding)
    bars: Bars = field(default_factory=Bars)
    fault: Fault | None = None
    expected: str = KEPT
    """``kept`` (at least one of its clips is), a value of :class:`pipeline.schema.Reason`, or ``failed:CODE``."""
    duplicate_of: str | None = None
    """Name of the source with the same picture and sound."""
    split: Literal["", "train", "validation", "test"] = ""
    """The split of its clips. Empty: the recipe decides."""

    @property
    def picture_seconds(self) -> float:
        return sum(scene.seconds for scene in self.scenes)

    @property
    def sound_seconds(self) -> float:
        return sum(sound.seconds for sound in self.all_sounds)

    @property
    def all_sounds(self) -> tuple[SoundSpec, ...]:
        """The sections of the sound track, in order; empty: no audio track."""
        if self.sounds is not None:
            return self.sounds
        return tuple(SoundSpec(scene.kind, scene.seconds, scene.seed) for scene in self.scenes)

    @property
    def cuts_seconds(self) -> tuple[float, ...]:
        """The times at which a scene ends and the next begins."""
        return tuple(accumulate(scene.seconds for scene in self.scenes[:-1]))

    def frame_times(self) -> list[list[float]]:
        """Times of the frames of every scene, in seconds from the start of that scene."""
        regular = [[number / self.fps for number in range(round(scene.seconds * self.fps))] for scene in self.scenes]
        if not self.variable_frame_rate:
            return regular
        rng = generator(self.name, "frame times")
        return [
            [0.0, *(t + rng.uniform(0, 0.4) / self.fps for t in times[1:] if rng.uniform() < 0.7)] for times in regular
        ]

    def scaled(self, scale: float) -> SyntheticSpec:
        """The same source with its picture and bars scaled to even numbers of pixels."""

        def even(pixels: int) -> int:
            return max(2, 2 * round(pixels * scale / 2))

        bars = Bars(
            *(2 * round(bar * scale / 2) for bar in (self.bars.left, self.bars.top, self.bars.right, self.bars.bottom))
        )
        return replace(self, width=even(self.width), height=even(self.height), bars=bars)


def truth(spec: SyntheticSpec) -> dict[str, Any]:
    """The entry of a source in ``truth.json``. Lengths are those before the file is damaged."""
    return {
        "name": spec.name,
        "file_name": spec.file_name,
        "expected": spec.expected,
        "label": spec.label,
        "scenes": [scene.kind for scene in spec.scenes],
        "sounds": [sound.kind for sound in spec.all_sounds],
        "cuts_seconds": list(spec.cuts_seconds),
        "picture_seconds": spec.picture_seconds,
        "sound_seconds": spec.sound_seconds,
        "width": spec.width,
        "height": spec.height,
        "bars": {"left": spec.bars.left, "top": spec.bars.top, "right": spec.bars.right, "bottom": spec.bars.bottom},
        "duplicate_of": spec.duplicate_of,
    }


_TRAIN_NAMES = {
    "ocean_evening", "ocean_letterboxed", "rain_valley", "fire_camp", "thunder_ridge", "wind_field", "river_stones",
    "waterfall_moss", "underwater_reef",
}  # fmt: skip
"""The kept sources of the training split; every class is also in the validation split."""


def _nature(name: str, caption: str, scenes: tuple[tuple[float, int], ...], **changes: Any) -> SyntheticSpec:
    """A source that is kept. Its name begins with its class; ``scenes``: (seconds, seed) of each."""
    label = name.split("_", 1)[0]
    fields = {
        "file_name": f"{name}.mp4",
        "label": label,
        "caption": caption,
        "scenes": tuple(SceneSpec(label, seconds, seed) for seconds, seed in scenes),
        "split": "train" if name in _TRAIN_NAMES else "validation",
    }
    return SyntheticSpec(name, **{**fields, **changes})


def _kept() -> tuple[SyntheticSpec, ...]:
    hd, wide = {"width": 1280, "height": 720}, {"width": 854, "height": 480}
    small_files = Encoding(crf=27)
    return (
        _nature("ocean_evening", "waves roll up a beach at sunset", ((12, 0), (11, 1))),
        _nature(
            "ocean_pier",
            "a grey sea and its surf",
            ((11, 8),),
            file_name="Waves at the pier.mp4",
            encoding=small_files,
            **hd,
        ),
        _nature("ocean_letterboxed", "a blue sea, in cinema format", ((11, 4),), bars=Bars(top=44, bottom=44)),
        _nature("rain_lake", "rain falls on a lake before wooded hills", ((12, 10),), **wide),
        _nature("rain_valley", "heavy rain in a valley", ((11, 11), (6, 12)), encoding=Encoding(gop=12)),
        _nature("fire_camp", "a camp fire crackles at night", ((12, 20),), **wide),
        _nature("fire_hearth", "logs burn", ((11, 21),), file_name="fire_hearth.mkv", sample_rate=22050, channels=1),
        _nature("thunder_ridge", "lightning over a wooded ridge", ((11, 30), (11, 34))),
        _nature("thunder_far", "a thunderstorm at dusk", ((12, 36),), fps=25, sample_rate=44100),
        _nature("wind_field", "wind runs through a field of wheat", ((12, 40),), fps=24, **wide),
        _nature("wind_turned", "gusts bend green wheat", ((11, 41),), encoding=Encoding(rotation=90)),
        _nature("river_stones", "a river runs over stones", ((12, 50),), channels=6),
        _nature("river_bend", "a mountain stream", ((11, 51),), variable_frame_rate=True, fps=24),
        _nature(
            "waterfall_gorge", "a waterfall in a gorge", ((11, 60),), width=1920, height=1080, encoding=small_files
        ),
        _nature("waterfall_moss", "water falls between mossy rocks", ((11, 61), (4.5, 62), (5, 63))),
        _nature("underwater_reef", "light falls through clear water", ((12, 70),), file_name="UNDERWATER.MOV"),
        _nature(
            "underwater_deep", "bubbles rise from the sea floor", ((11, 71),), encoding=Encoding(pix_fmt="yuv420p10le")
        ),
    )


def _wrong(name: str, scene: SceneSpec, expected: str, caption: str, **changes: Any) -> SyntheticSpec:
    """A source that is not kept, with one scene; its label is the kind of that scene."""
    fields = {"file_name": f"{name}.mp4", "label": scene.kind, "scenes": (scene,), "fps": 15.0}
    return SyntheticSpec(name, caption=caption, expected=expected, **{**fields, **changes})


def _wrong_sound() -> tuple[SyntheticSpec, ...]:
    def only(kind: str, seed: int, seconds: float = _REJECTED_SECONDS, gain: float = 1.0) -> tuple[SoundSpec, ...]:
        return (SoundSpec(kind, seconds, seed, gain),)

    river, sea, wheat = (
        SceneSpec(kind, _REJECTED_SECONDS, seed) for kind, seed in (("river", 80), ("ocean", 82), ("wind", 84))
    )
    pcm = Encoding(audio_codec="pcm_s16le")
    return (
        _wrong("speech", river, Reason.SPEECH, "somebody talks beside a river", sounds=only("speech", 1)),
        _wrong("music", sea, Reason.MUSIC, "music over a sea", sounds=only("music", 2)),
        _wrong("silence", wheat, Reason.SILENT, "a field without a sound", sounds=only("silence", 3)),
        _wrong(
            "wrong_sound", SceneSpec("ocean", _REJECTED_SECONDS, 85), Reason.DISAGREES, "a sea that crackles",
            sounds=only("fire", 85),
        ),
        _wrong(
            "clipped", SceneSpec("river", _REJECTED_SECONDS, 86), Reason.CLIPPED_SOUND, "a river, recorded too loud",
            file_name="clipped.mov", encoding=pcm, sounds=only("river", 86, gain=25.0),
        ),
        _wrong(
            "short_sound", SceneSpec("wind", _REJECTED_SECONDS, 87), Reason.SOUND_MISSING, "the sound ends early",
            sounds=only("wind", 87, seconds=1.5),
        ),
        _wrong("no_audio", SceneSpec("waterfall", _REJECTED_SECONDS, 92), Reason.NO_AUDIO, "a waterfall, not heard", sounds=()),
    )  # fmt: skip


def _wrong_picture() -> tuple[SyntheticSpec, ...]:
    still = SceneSpec("waterfall", _REJECTED_SECONDS, 83, still=True)
    rain, thunder = (SoundSpec(kind, _REJECTED_SECONDS, seed) for kind, seed in (("rain", 88), ("thunder", 93)))
    return (
        _wrong(
            "near_duplicate", SceneSpec("rain", 12, 10), Reason.DUPLICATE, "rain falls on a lake, a smaller copy",
            fps=20.0, encoding=Encoding(crf=30), duplicate_of="rain_lake",
        ),
        _wrong("still", still, Reason.STILL, "a photograph with sound"),
        _wrong("black", SceneSpec("black", _REJECTED_SECONDS, 1), Reason.BLACK, "rain in the dark", label="rain", sounds=(rain,)),
        _wrong("portrait", SceneSpec("fire", _REJECTED_SECONDS, 89), Reason.PORTRAIT, "a fire, upright", width=360, height=640),
        _wrong("tiny", SceneSpec("river", _REJECTED_SECONDS, 90), Reason.TOO_SMALL, "a very small river", width=64, height=64),
        _wrong("short", SceneSpec("rain", 1.0, 91), Reason.TOO_SHORT, "one second of rain"),
        SyntheticSpec(
            "audio_only", "audio_only.m4a", "thunder", "thunder without a picture", scenes=(), sounds=(thunder,),
            expected=Reason.NO_VIDEO,
        ),
    )  # fmt: skip


def _broken() -> tuple[SyntheticSpec, ...]:
    def replaced(name: Fault, caption: str, code: str = "not_media") -> SyntheticSpec:
        return SyntheticSpec(
            name, f"{name}.mp4", "wind", caption, scenes=(), sounds=(), fault=name, expected=f"failed:{code}"
        )

    return (
        _wrong(
            "truncated", SceneSpec("river", 12, 94), "failed:truncated", "a download that broke off", fault="truncated",
            encoding=Encoding(faststart=True),
        ),
        replaced("text", "a text file"),
        replaced("html", "a page that says not found"),
        replaced("empty", "no bytes at all", "empty"),
    )  # fmt: skip


def catalogue() -> tuple[SyntheticSpec, ...]:
    """The synthetic sources of the demo: first those that a build keeps, then those that it must reject."""
    return (*_kept(), *_wrong_sound(), *_wrong_picture(), *_broken())
