"""Resolves the recipe's settings for agreement into a rule with thresholds, from the calibration that they name or imply."""

from __future__ import annotations

from pipeline.agreement.calibration import Calibration, read_calibration
from pipeline.agreement.measures import AgreementSettings
from pipeline.encoders.pair import packaged_calibration
from pipeline.errors import CalibrationError
from pipeline.judge.agreement_rule import AgreementRule, Origin
from pipeline.judge.rules import JudgeSettings, bare_cosine

ORIGINS: dict[Origin, str] = {
    "recipe": "judge.min_agreement",
    "packaged": "the packaged pair's calibration",
    "calibration": "the calibration that agreement.calibration names",
    "own clips": "calibrated on this dataset's own clips",
}


def rule_before_build(wanted: AgreementSettings, judge: JudgeSettings, encoder_id: str | None) -> AgreementRule:
    """The rule that is known before any clip is measured. It has no threshold if the dataset's own clips must be calibrated on first.

    Raises CalibrationError for a calibration of other encoders, one that has too few pairs for the wanted rate, or one that cannot
    be read.
    """
    if wanted.false_accept_rate is None or encoder_id is None:
        return bare_cosine(judge)
    if wanted.calibration is not None:
        calibration = read_calibration(wanted.calibration)
        if calibration.encoder_id != encoder_id:
            raise CalibrationError(
                f"agreement.calibration: {wanted.calibration} was made with the encoders {calibration.encoder_id}, the recipe's are "
                f"{encoder_id}: a threshold holds for its encoders only. Name the calibration of these, or leave it out to "
                "calibrate on the dataset's own clips"
            )
        return _rule(calibration, wanted, "calibration")
    packaged = packaged_calibration()
    if packaged is not None and (calibration := read_calibration(str(packaged))).encoder_id == encoder_id:
        return _rule(calibration, wanted, "packaged")
    return AgreementRule()


def rule_of_own_clips(wanted: AgreementSettings, calibration: Calibration) -> AgreementRule:
    """The rule from the calibration on the dataset's own clips. Raises CalibrationError if it has too few pairs for the wanted rate."""
    return _rule(calibration, wanted, "own clips")


def _rule(calibration: Calibration, wanted: AgreementSettings, origin: Origin) -> AgreementRule:
    assert wanted.false_accept_rate is not None
    try:
        return calibration.rule(wanted.false_accept_rate, per_class=wanted.per_class, origin=origin)
    except CalibrationError as error:
        raise CalibrationError(f"agreement.false_accept_rate, by {ORIGINS[origin]}: {error}") from error


def rule_line(wanted: AgreementSettings, rule: AgreementRule, *, has_encoders: bool) -> str:
    """The rule as a line of text."""
    if not has_encoders:
        return "agreement: not measured, the recipe names no encoders"
    if rule.min_agreement is None:
        if wanted.false_accept_rate is None:
            return (
                "agreement: stored, not enforced; agreement.false_accept_rate or judge.min_agreement would enforce it"
            )
        return (
            f"agreement: false accepts {100 * wanted.false_accept_rate:g} %, at a threshold that is calibrated on this dataset's own clips "
            "at the end of the build; until then every clip that passes the other rules is cut"
        )
    class_limits = "".join(f", {label} {limit:.4g}" for label, limit in sorted(rule.per_class.items()))
    rate = f"{rule.words()}; " if rule.words() else ""
    return f"agreement: {rule.min_agreement:.4g} or more{class_limits} ({rate}{ORIGINS[rule.origin or 'recipe']})"
