"""Judges files and clips by their measures: kept or rejected, and why. Pure functions, so that judging again needs no decoding."""

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
    """Limits for the header of a file, checked before any decoding."""

    min_short_side_px: int | None = Field(360, gt=0)
    """Smallest length of the shorter side of the displayed picture, in pixels. None: no limit."""
    allow_portrait: bool = False
    """Whether pictures that are higher than wide are kept."""
    min_seconds: float | None = Field(None, ge=0)
    """Shortest length of the video. None: the length of the shortest clip."""
    max_seconds: float | None = Field(4 * 3600, gt=0)
    """Longest length of the video, or of its wanted section. None: no limit."""


class JudgeSettings(Settings):
    """Limits for a clip."""

    max_black_share: float | None = Field(0.96, ge=0, le=1)
    """Largest share of black frames (mean luma below 12 of 255). It is high because a storm at night is black except for its lightning.
    None: no limit."""
    max_white_share: float | None = Field(0.5, ge=0, le=1)
    """Largest share of white frames. None: no limit."""
    min_luma_std: float | None = Field(4.0, ge=0)
    """Smallest contrast: standard deviation of luma, 0..255. None: no limit."""
    max_still_share: float | None = Field(0.8, ge=0, le=1)
    """Largest share of time in which the picture does not change. It rejects slide shows and photographs with sound. None: no limit."""
    min_motion: float | None = Field(0.4, ge=0)
    """Smallest mean change of luma (0..255) in 0.2 s. It rejects end cards and photographs that are slowly zoomed. None: no limit."""
    min_sharpness: float | None = Field(0.0003, ge=0)
    """Smallest sharpness: variance of the Laplacian of luma divided by the variance of luma, at 360 lines. Soft footage has 0.001, sharp
    footage 0.01 and more. None: no limit."""
    min_cropped_share: float | None = Field(0.4, ge=0, le=1)
    """Smallest share of the picture between its black bars. None: no limit."""
    min_covered_share: float | None = Field(0.95, ge=0, le=1)
    """Smallest share of the clip that has sound. None: no limit."""
    max_silent_share: float | None = Field(0.8, ge=0, le=1)
    """Largest share of the clip below -60 dBFS. None: no limit."""
    min_loudness_lufs: float | None = -55.0
    """Smallest integrated loudness in LUFS. None: no limit."""
    max_clipped_share: float | None = Field(0.02, ge=0, le=1)
    """Largest share of samples that are clipped at full scale. None: no limit."""
    max_dc_offset: float | None = Field(0.05, ge=0, le=1)
    """Largest absolute mean of the sound, as a share of full scale. None: no limit."""
    max_speech_share: float | None = Field(0.3, ge=0, le=1)
    """Largest share of the clip with speech. None: no limit."""
    max_music_share: float | None = Field(0.05, ge=0, le=1)
    """Largest estimated share of the clip with music. On recordings of nature the estimate is below 0.03. None: no limit."""
    min_agreement: float | None = Field(None, ge=-1, le=1)
    """Smallest cosine of sound and picture in the shared space. Which cosines are high depends on the encoders;
    ``agreement.false_accept_rate`` sets the threshold independently of them. None: ``agreement.false_accept_rate`` decides, and if that
    is None, too, agreement is stored and not enforced."""


def judge_file(
    facts: MediaFacts, section_seconds: float | None, shortest_clip_seconds: float, settings: ProbeSettings
) -> Verdict:
    """Judges a file by its header. ``section_seconds``: length of the wanted section. None: the whole file."""
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
    """The rules for the clips of one build: the recipe's limits, and the resolved rule of agreement."""

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
    """Judges a clip by its measures. ``frame_size``: (width, height) as displayed. The first rule that rejects it gives the reason.

    ``rule``: the rule of agreement. None: the cosine of the settings. It is applied last, so that a clip with the reason DISAGREES
    passes all other rules.
    """
    rules = [_picture_rules(picture, frame_size, settings), _sound_rules(sound, settings)]
    for verdict in (verdict for group in rules for verdict in group if not verdict.kept):
        return verdict
    return judge_agreement(agreement, rule or bare_cosine(settings), labels)


def bare_cosine(settings: JudgeSettings) -> AgreementRule:
    """The rule of agreement with the cosine of the settings."""
    return AgreementRule(
        min_agreement=settings.min_agreement, origin=None if settings.min_agreement is None else "recipe"
    )


def judge_agreement(agreement: AgreementMeasures | None, rule: AgreementRule, labels: Sequence[str] = ()) -> Verdict:
    """Judges by agreement only. Without a measured agreement a clip is rejected if there is a threshold."""
    limit = rule.limit(labels)
    verdict = _at_least(Reason.DISAGREES, "agreement", agreement.agreement if agreement else None, limit)
    if verdict.kept or not rule.words():
        return verdict
    own = [label for label in labels if rule.per_class.get(label) == limit]
    return Verdict(verdict.reason, f"{verdict.detail} ({rule.words()}{f' of {own[0]}' if own else ''})")


def passes_other_rules(reason: Reason | None) -> bool:
    """Whether a clip with this reason passes all its own rules except that of agreement. Duplicates and clips over a cap do: rules over
    the whole dataset must not change the threshold. ``reason`` is None for a kept clip and for one whose cut failed."""
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
