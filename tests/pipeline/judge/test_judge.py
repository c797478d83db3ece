"""Every rule, just on both sides of its limit."""

from dataclasses import replace

import pytest

from pipeline.judge.agreement_rule import AgreementRule
from pipeline.judge.rules import Judge, JudgeSettings, ProbeSettings, judge_clip, judge_file
from pipeline.media.facts import MediaFacts, SoundFacts, VideoFacts
from pipeline.schema import AgreementMeasures, PictureMeasures, Reason, SoundMeasures, Verdict

VIDEO = VideoFacts("h264", 1280, 720, 25.0, 30.0, 0, 1.0, "yuv420p", is_hdr=False, interlaced=False)
FACTS = MediaFacts("mov", 30.0, VIDEO, SoundFacts("aac", 48_000, 2, 30.0))
PICTURE = PictureMeasures(250, 120, 40, 0.0, 0.0, 5.0, 0.0, 0.01, 0, 0, 0, 0, "")
SOUND = SoundMeasures(-25.0, -3.0, 1.0, 0.0, 0.0, 0.0, False, 0.0, 0.0, "")


def judge(settings: JudgeSettings | None = None, *, agreement: float | None = None, **changes: object) -> Verdict:
    picture = replace(PICTURE, **{name: value for name, value in changes.items() if hasattr(PICTURE, name)})
    sound = replace(SOUND, **{name: value for name, value in changes.items() if hasattr(SOUND, name)})
    agrees = None if agreement is None else AgreementMeasures("e", agreement, agreement)
    return judge_clip(picture, sound, agrees, (1280, 720), settings or JudgeSettings())


@pytest.mark.parametrize(
    ("measure", "good", "bad", "reason"),
    [
        ("black_share", 0.96, 0.97, Reason.BLACK),
        ("white_share", 0.5, 0.51, Reason.WHITE),
        ("luma_std", 4.0, 3.9, Reason.FLAT),
        ("still_share", 0.8, 0.81, Reason.STILL),
        ("motion", 0.4, 0.39, Reason.STILL),
        ("sharpness", 0.0003, 0.00029, Reason.BLURRED),
        ("bar_top_px", 431, 433, Reason.CROPPED_TOO_SMALL),
        ("covered_share", 0.95, 0.94, Reason.SOUND_MISSING),
        ("silent_share", 0.8, 0.81, Reason.SILENT),
        ("loudness_lufs", -55.0, -55.1, Reason.QUIET),
        ("loudness_lufs", -10.0, None, Reason.QUIET),
        ("clipped_share", 0.02, 0.021, Reason.CLIPPED_SOUND),
        ("dc_offset", 0.05, 0.051, Reason.DC_OFFSET),
        ("speech_share", 0.3, 0.31, Reason.SPEECH),
        ("music_share", 0.05, 0.051, Reason.MUSIC),
    ],
)
def test_each_rule_has_its_limit(measure: str, good: float, bad: float | None, reason: Reason) -> None:
    assert judge(**{measure: good}) == Verdict()
    verdict = judge(**{measure: bad})
    assert verdict.reason is reason
    assert (
        "not measurable" in verdict.detail if bad is None else f"{bad:g}" in verdict.detail or measure == "bar_top_px"
    )


def test_none_switches_a_rule_off() -> None:
    everything_off = JudgeSettings.model_validate(dict.fromkeys(JudgeSettings.model_fields))
    assert judge(
        everything_off, black_share=1.0, silent_share=1.0, speech_share=1.0, motion=0.0, loudness_lufs=None
    ).kept


def test_the_first_rule_that_says_no_names_the_reason() -> None:
    assert judge(speech_share=0.9, silent_share=0.9).reason is Reason.SILENT


def test_agreement_is_enforced_only_when_asked() -> None:
    assert judge(agreement=-1.0).kept
    strict = JudgeSettings(min_agreement=0.2)
    assert judge(strict, agreement=0.2).kept
    assert judge(strict, agreement=0.19) == Verdict(Reason.DISAGREES, "agreement 0.19 < 0.2")
    assert judge(strict).reason is Reason.DISAGREES


def test_a_calibrated_rule_says_what_it_promises() -> None:
    rule = AgreementRule(min_agreement=0.19, per_class={"rain": 0.3}, false_accept_rate=0.05, origin="packaged")
    judge = Judge(JudgeSettings(), rule)

    def of(value: float | None, *labels: str, sound: SoundMeasures = SOUND) -> Verdict:
        agrees = None if value is None else AgreementMeasures("e", value, value)
        return judge.clip(PICTURE, sound, agrees, (1280, 720), labels)

    assert of(0.19).kept
    assert of(0.11) == Verdict(Reason.DISAGREES, "agreement 0.11 < 0.19 (false accepts 5 %)")
    assert of(0.25, "sea").kept
    assert of(0.25, "sea", "rain") == Verdict(Reason.DISAGREES, "agreement 0.25 < 0.3 (false accepts 5 % of rain)")
    assert of(0.3, "rain").kept
    assert of(None).detail == "agreement not measurable < 0.19 (false accepts 5 %)"
    assert of(0.11, sound=replace(SOUND, speech_share=0.9)).reason is Reason.SPEECH


def test_a_rule_that_asks_nothing_takes_the_place_of_the_settings() -> None:
    """Where the threshold is found at the end, clips are not judged by agreement before."""
    agrees = AgreementMeasures("e", -1.0, -1.0)
    assert judge_clip(PICTURE, SOUND, agrees, (1280, 720), JudgeSettings(), AgreementRule()).kept


def test_a_clip_without_decoded_sound_is_rejected() -> None:
    assert judge_clip(PICTURE, None, None, (1280, 720), JudgeSettings()).reason is Reason.SOUND_MISSING


def file(settings: ProbeSettings | None = None, section: float | None = None, **changes: object) -> Verdict:
    return judge_file(replace(FACTS, video=replace(VIDEO, **changes)), section, 5.0, settings or ProbeSettings())


def test_the_header_rules_out_what_it_can() -> None:
    assert file().kept
    assert judge_file(replace(FACTS, video=None), None, 5.0, ProbeSettings()).reason is Reason.NO_VIDEO
    assert judge_file(replace(FACTS, sound=None), None, 5.0, ProbeSettings()).reason is Reason.NO_AUDIO
    assert file(width=720, height=1280).reason is Reason.PORTRAIT
    assert file(ProbeSettings(allow_portrait=True), width=720, height=1280).kept
    assert file(width=640, height=358) == Verdict(Reason.TOO_SMALL, "640x358: shorter side 358 px < 360 px")
    assert file(duration_seconds=4.9).reason is Reason.TOO_SHORT
    assert file(section=4.0).reason is Reason.TOO_SHORT
    assert file(ProbeSettings(max_seconds=20)).reason is Reason.TOO_LONG
    assert file(ProbeSettings(max_seconds=20), section=10.0).kept
