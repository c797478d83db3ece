"""The measures and the judge's rules as data: labels, units, meanings, settings.

The rules are in the judge's order: the first that rejects a clip gives its reason. ``tests/pipeline/report`` compares
them with :func:`pipeline.judge.rules.judge_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.schema import Reason


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of numbers, one for each clip."""

    name: str
    label: str
    unit: str
    """Empty: no unit. ``share``: 0..1, shown in percent."""
    group: Literal["Picture", "Sound", "Agreement", "Source"]
    meaning: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One threshold of the judge: ``setting`` is its name in the recipe's table ``judge``."""

    setting: str
    measure: str
    side: Literal["at_most", "at_least"]
    reason: Reason


MEASURES: tuple[Measure, ...] = (
    Measure("black_share", "Black frames", "share", "Picture", "Share of frames that are black."),
    Measure("white_share", "White frames", "share", "Picture", "Share of frames that are white."),
    Measure("luma_mean", "Brightness", "of 255", "Picture", "Mean luma, 0 black to 255 white."),
    Measure("luma_std", "Contrast", "of 255", "Picture", "Standard deviation of luma inside a frame."),
    Measure("still_share", "Standing still", "share", "Picture", "Share of the time in which the picture does not change."),
    Measure("motion", "Motion", "of 255", "Picture", "Mean change of luma in a fifth of a second."),
    Measure("sharpness", "Sharpness", "", "Picture", "0.01 is sharp, 0.0003 out of focus."),
    Measure("cropped_share", "Picture between the bars", "share", "Picture", "What is left of the frame when black bars are cut off."),
    Measure("covered_share", "Covered by sound", "share", "Sound", "Share of the clip that the sound track covers."),
    Measure("silent_share", "Silence", "share", "Sound", "Share of the clip below -60 dBFS."),
    Measure("loudness_lufs", "Loudness", "LUFS", "Sound", "Integrated loudness, ITU-R BS.1770-4."),
    Measure("peak_dbfs", "Peak", "dBFS", "Sound", "Highest sample."),
    Measure("clipped_share", "Clipped samples", "share", "Sound", "Share of samples cut off at full scale."),
    Measure("dc_offset", "Offset", "of full scale", "Sound", "Absolute mean of the samples."),
    Measure("speech_share", "Speech", "share", "Sound", "Share of the clip in which a voice is heard."),
    Measure("music_share", "Music", "share", "Sound", "Estimated share of the clip with music."),
    Measure("agreement", "Agreement", "cosine", "Agreement", "How well sound and picture match in the shared space, -1 to 1."),
    Measure("best_agreement", "Best agreement of a frame", "cosine", "Agreement", "Highest cosine of any one frame and the sound."),
    Measure("margin", "Margin over other classes", "cosine", "Agreement", "How much nearer the sound is to its own class than to others."),
    Measure("motion_match", "Sound with motion", "correlation", "Agreement", "How well rises of the sound go with rises of motion."),
    Measure("light_match", "Sound with light", "correlation", "Agreement", "How well rises of the sound go with rises of brightness."),
    Measure("motion_lag_seconds", "Sound after motion", "s", "Agreement", "Lag of the best fit; positive: the sound comes later."),
    Measure("light_lag_seconds", "Sound after light", "s", "Agreement", "Lag of the best fit; positive: sound comes later."),
    Measure("seconds", "Length of a clip", "s", "Source", "Length of the clip."),
    Measure("source_height_px", "Height of the source", "px", "Source", "Height of the source's picture as displayed."),
    Measure("source_fps", "Frame rate of the source", "frames/s", "Source", "Average frame rate of the source."),
)  # fmt: skip
MEASURE_OF: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}

RULES: tuple[Rule, ...] = (
    Rule("max_black_share", "black_share", "at_most", Reason.BLACK),
    Rule("max_white_share", "white_share", "at_most", Reason.WHITE),
    Rule("min_luma_std", "luma_std", "at_least", Reason.FLAT),
    Rule("max_still_share", "still_share", "at_most", Reason.STILL),
    Rule("min_motion", "motion", "at_least", Reason.STILL),
    Rule("min_sharpness", "sharpness", "at_least", Reason.BLURRED),
    Rule("min_cropped_share", "cropped_share", "at_least", Reason.CROPPED_TOO_SMALL),
    Rule("min_covered_share", "covered_share", "at_least", Reason.SOUND_MISSING),
    Rule("max_silent_share", "silent_share", "at_most", Reason.SILENT),
    Rule("min_loudness_lufs", "loudness_lufs", "at_least", Reason.QUIET),
    Rule("max_clipped_share", "clipped_share", "at_most", Reason.CLIPPED_SOUND),
    Rule("max_dc_offset", "dc_offset", "at_most", Reason.DC_OFFSET),
    Rule("max_speech_share", "speech_share", "at_most", Reason.SPEECH),
    Rule("max_music_share", "music_share", "at_most", Reason.MUSIC),
    Rule("min_agreement", "agreement", "at_least", Reason.DISAGREES),
)
ACROSS_DATASET = (Reason.DUPLICATE, Reason.CLASS_FULL, Reason.SOURCE_FULL)
"""Reasons that depend on other clips: no threshold changes them."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds that the build applied to clips."""

    values: Mapping[str, float | None]
    """By setting; None: the rule is off. Empty: the recipe is not known."""
    per_class: Mapping[str, float]
    """Minimum agreement (cosine) for clips of some classes, in place of ``min_agreement``."""
    origin: str = ""
    """A text that says where the agreement's threshold comes from."""


def thresholds_of(recipe: Mapping[str, Any], rule: Any | None) -> Thresholds:
    """The thresholds of a manifest's recipe. ``rule``: its agreement rule, used in place of ``judge.min_agreement``."""
    judge = recipe.get("judge")
    if not isinstance(judge, Mapping):
        return Thresholds({}, {})
    values = {each.setting: _number(judge.get(each.setting)) for each in RULES}
    if rule is None:
        return Thresholds(values, {})
    values["min_agreement"] = rule.min_agreement
    return Thresholds(values, dict(rule.per_class), ", ".join(filter(None, (rule.origin, rule.words()))))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
