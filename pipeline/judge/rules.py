"""Kept or rejected, and why. Pure: numbers and settings in, a verdict out. No decode is ever needed to judge again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipeline.judge.agreement_rule import AgreementRule
from pipeline.media.facts import MediaFacts
from pipeline.schema import AgreementMeasures, PictureMeasures, Reason, SoundMeasures, Verdict
from pipeline.settings import Settings

KEPT = Verdict()


class ProbeSettings(Settings):
    """What the header alone may rule out, before any decode."""

    min_short_side_px: int | None = Field(360, gt=0)
    """Shorter side of the displayed picture, in pixels, at the least. None: no such rule."""
    allow_portrait: bool = False
    """Whether a picture higher than wide may stay."""
    min_seconds: float | None = Field(None, ge=0)
    """Length of the video at the least. None: that of the shortest clip."""
    max_seconds: float | None = Field(4 * 3600, gt=0)
    """Length of the video (or of its wanted section) at the most. None: no such rule."""


class JudgeSettings(Settings):
    """The rules for a clip."""

    max_black_share: float | None = Field(0.96, ge=0, le=1)
    """Share of black frames (mean luma below 12 of 255) at the most. A night storm is black but for its lightning. None: no such rule."""
    max_white_share: float | None = Field(0.5, ge=0, le=1)
    """Share of white frames at the most. None: no such rule."""
    min_luma_std: float | None = Field(4.0, ge=0)
    """Contrast (standard deviation of luma, 0..255) at the least. None: no such rule."""
    max_still_share: float | None = Field(0.8, ge=0, le=1)
    """Share of time in which the picture stands still, at the most: slide shows, photographs with sound. None: no such rule."""
    min_motion: float | None = Field(0.4, ge=0)
    """Mean change of luma (0..255) in a fifth of a second, at the least: end cards, and photographs that are slowly zoomed.
    None: no such rule."""
    min_sharpness: float | None = Field(0.0003, ge=0)
    """Variance of the Laplacian over that of luma at 360 lines, at the least. Soft footage has 0.001, sharp 0.01 and more.
    None: no such rule."""
    min_cropped_share: float | None = Field(0.4, ge=0, le=1)
    """Share of the picture that must be left when black bars are cut off. None: no such rule."""
    min_covered_share: float | None = Field(0.95, ge=0, le=1)
    """Share of the clip that has sound, at the least. None: no such rule."""
    max_silent_share: float | None = Field(0.8, ge=0, le=1)
    """Share of the clip below -60 dBFS, at the most. None: no such rule."""
    min_loudness_lufs: float | None = -55.0
    """Integrated loudness in LUFS, at the least. None: no such rule."""
    max_clipped_share: float | None = Field(0.02, ge=0, le=1)
    """Share of samples cut off at full scale, at the most. None: no such rule."""
    max_dc_offset: float | None = Field(0.05, ge=0, le=1)
    """Offset of the sound's mean, as a share of full scale, at the most. None: no such rule."""
    max_speech_share: float | None = Field(0.3, ge=0, le=1)
    """Share of the clip with a voice, at the most. None: no such rule."""
    max_music_share: float | None = Field(0.05, ge=0, le=1)
    """Estimated share of the clip with music, at the most. On recordings of nature the estimate stays below 0.03. None: no such rule."""
    min_agreement: float | None = Field(None, ge=-1, le=1)
    """Bare cosine of sound and picture in the shared space, at the least. What counts as high depends on the encoders:
    ``agreement.false_accept_rate`` says it without a cosine. None: that decides, and without it agreement is stored, not enforced."""


def judge_file(
    facts: MediaFacts, section_seconds: float | None, shortest_clip_seconds: float, settings: ProbeSettings
) -> Verdict:
    """Judges a file by its header. ``section_seconds``: length of the wanted section, None for the whole."""
    video = facts.video
    if video is None:
        return Verdict(Reason.NO_VIDEO, "the file has no moving picture")
    if facts.sound is None:
        return Verdict(Reason.NO_AUDIO, "the file has no sound track")
    if not settings.allow_portrait and video.height > video.width:
        return Verdict(Reason.PORTRAIT, f"{video.width}x{video.height} is higher than wide")
    if settings.min_short_side_px is not None and video.short_side < settings.min_short_side_px:
        return Verdict(
            Reason.TOO_SMALL,
            f"{video.width}x{video.height}: shorter side {video.short_side} px < {settings.min_short_side_px} px",
        )
    seconds = section_seconds or video.duration_seconds or facts.duration_seconds
    shortest = shortest_clip_seconds if settings.min_seconds is None else settings.min_seconds
    if seconds is not None and seconds + 0.05 < shortest:
        return Verdict(Reason.TOO_SHORT, f"{seconds:.2f} s < {shortest:g} s")
    if seconds is not None and settings.max_seconds is not None and seconds > settings.max_seconds:
        return Verdict(Reason.TOO_LONG, f"{seconds:.0f} s > {settings.max_seconds:g} s")
    return KEPT


@dataclass(frozen=True, slots=True)
class Judge:
    """The rules for clips of one build: the recipe's, and what became of its wish for agreement."""

    settings: JudgeSettings
    rule: AgreementRule

    def clip(
        self,
        picture: PictureMeasures,
        sound: SoundMeasures | None,
        agreement: AgreementMeasures | None,
        frame_size: tuple[int, int],
        labels: Sequence[str],
    ) -> Verdict:
        """:func:`judge_clip` for a clip with these labels."""
        return judge_clip(picture, sound, agreement, frame_size, self.settings, self.rule, labels)


def judge_clip(
    picture: PictureMeasures,
    sound: SoundMeasures | None,
    agreement: AgreementMeasures | None,
    frame_size: tuple[int, int],
    settings: JudgeSettings,
    rule: AgreementRule | None = None,
    labels: Sequence[str] = (),
) -> Verdict:
    """Judges a clip by its measures. ``frame_size`` is (width, height) as displayed. The first rule that says no names the reason.

    ``rule`` is what is asked of agreement; None: the bare cosine of the settings. It comes last, so that a clip that
    DISAGREES passes every other rule.
    """
    rules = [_picture_rules(picture, frame_size, settings), _sound_rules(sound, settings)]
    for verdict in (verdict for group in rules for verdict in group if not verdict.kept):
        return verdict
    return judge_agreement(agreement, rule or bare_cosine(settings), labels)


def bare_cosine(settings: JudgeSettings) -> AgreementRule:
    """The rule that the settings alone make."""
    return AgreementRule(
        min_agreement=settings.min_agreement, origin=None if settings.min_agreement is None else "recipe"
    )


def judge_agreement(agreement: AgreementMeasures | None, rule: AgreementRule, labels: Sequence[str] = ()) -> Verdict:
    """Judges by agreement alone. One that was not measured is not high enough, where any is asked."""
    limit = rule.limit(labels)
    verdict = _at_least(Reason.DISAGREES, "agreement", agreement.agreement if agreement else None, limit)
    if verdict.kept or not rule.words():
        return verdict
    own = [label for label in labels if rule.per_class.get(label) == limit]
    return Verdict(verdict.reason, f"{verdict.detail} ({rule.words()}{f' of {own[0]}' if own else ''})")


def passes_other_rules(reason: Reason | None) -> bool:
    """Whether agreement is all that can be said against a clip by itself. Duplicates and clips beyond a class's share stay in, so
    that rules across the dataset do not move the threshold; one whose cut failed as well."""
    return reason in (None, Reason.DISAGREES, Reason.DUPLICATE, Reason.CLASS_FULL, Reason.SOURCE_FULL)


def _at_most(reason: Reason, name: str, value: float, limit: float | None) -> Verdict:
    return KEPT if limit is None or value <= limit else Verdict(reason, f"{name} {value:g} > {limit:g}")


def _at_least(reason: Reason, name: str, value: float | None, limit: float | None) -> Verdict:
    if limit is None or (value is not None and value >= limit):
        return KEPT
    return Verdict(reason, f"{name} {'not measurable' if value is None else f'{value:g}'} < {limit:g}")


def _picture_rules(picture: PictureMeasures, frame_size: tuple[int, int], settings: JudgeSettings) -> Iterator[Verdict]:
    yield _at_most(Reason.BLACK, "black_share", picture.black_share, settings.max_black_share)
    yield _at_most(Reason.WHITE, "white_share", picture.white_share, settings.max_white_share)
    yield _at_least(Reason.FLAT, "luma_std", picture.luma_std, settings.min_luma_std)
    yield _at_most(Reason.STILL, "still_share", picture.still_share, settings.max_still_share)
    yield _at_least(Reason.STILL, "motion", picture.motion, settings.min_motion)
    yield _at_least(Reason.BLURRED, "sharpness", picture.sharpness, settings.min_sharpness)
    width, height = frame_size
    bars = picture.bars
    left = (width - bars.left - bars.right) * (height - bars.top - bars.bottom) / (width * height)
    yield _at_least(
        Reason.CROPPED_TOO_SMALL, "share of the picture between its bars", round(left, 4), settings.min_cropped_share
    )


def _sound_rules(sound: SoundMeasures | None, settings: JudgeSettings) -> Iterator[Verdict]:
    if sound is None:
        yield Verdict(Reason.SOUND_MISSING, "no sound was decoded")
        return
    yield _at_least(Reason.SOUND_MISSING, "covered_share", sound.covered_share, settings.min_covered_share)
    yield _at_most(Reason.SILENT, "silent_share", sound.silent_share, settings.max_silent_share)
    yield _at_least(Reason.QUIET, "loudness_lufs", sound.loudness_lufs, settings.min_loudness_lufs)
    yield _at_most(Reason.CLIPPED_SOUND, "clipped_share", sound.clipped_share, settings.max_clipped_share)
    yield _at_most(Reason.DC_OFFSET, "dc_offset", sound.dc_offset, settings.max_dc_offset)
    yield _at_most(Reason.SPEECH, "speech_share", sound.speech_share, settings.max_speech_share)
    yield _at_most(Reason.MUSIC, "music_share", sound.music_share, settings.max_music_share)
