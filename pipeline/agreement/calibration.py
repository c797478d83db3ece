"""Calibration: measures the agreement of wrong pairs, so that a wanted share of false accepts gives a threshold.

A true pair is a clip's picture with its own sound. A wrong pair is its picture with the sound of a clip of another source and class.

Shape suffixes: N clips, D width of the space, M wrong pairs.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Sequence

import fsspec
import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.pairs import DrawnPairs, Label, draw_scores
from pipeline.agreement.roc import Floats, auc, intervals, threshold_at
from pipeline.dataset.manifest import FORMAT as MANIFEST_FORMAT
from pipeline.dataset.manifest import manifest_path, read_manifest
from pipeline.errors import CalibrationError
from pipeline.judge.agreement_rule import Calibration, ClassCalibration, ClassPoint, RocPoint

__all__ = ["Calibration", "calibrate", "calibration_of", "read_calibration"]

MIN_INDEPENDENT_PAIRS = 10
"""Fewest independent pairs of a calibration. With fewer, not even a false-accept rate of 10 % could be estimated."""
RATES = tuple(
    round(mantissa * 10.0**power, 6)
    for power in (-4, -3, -2, -1)
    for mantissa in ((1, 1.5, 2, 3, 4, 5, 7) if power < -1 else (1, 1.5, 2, 3, 4, 5, 7, 9))
)
"""False-accept rates of the stored points. Between them the curve is interpolated linearly over the logarithm of the rate."""


def calibrate(
    picture_ND: NDArray[np.floating],
    sound_ND: NDArray[np.floating],
    sources: Sequence[str],
    labels: Sequence[Label],
    encoder_id: str,
    seed: int = 0,
) -> Calibration:
    """Compares the scores of true and of wrong pairs. Row i of every argument is clip i; the vectors need not have length 1.

    Clips with an embedding of length 0 are left out, and clips without a label if others have one. If no clip has a label, wrong
    pairs differ by source only. The result depends on the rows and ``seed`` only.

    Raises CalibrationError if there are too few sources or classes, and ValueError for arrays of different lengths or not finite.
    """
    return calibration_of(draw_scores(picture_ND, sound_ND, sources, labels, seed), encoder_id, seed)


def calibration_of(drawn: DrawnPairs, encoder_id: str, seed: int = 0) -> Calibration:
    """The calibration from these pairs. Raises CalibrationError if there are too few."""
    scores = drawn.scores
    _check_enough(drawn)
    rates = [rate for rate in RATES if rate >= 1 / drawn.num_independent - 1e-9]
    thresholds = [threshold_at(scores.mismatched, rate) for rate in rates]
    bounds = intervals(scores, np.asarray(rates), np.asarray(thresholds), seed)
    points = [
        RocPoint(
            **_point(scores.matched, rate, threshold),
            **_low_and_high("threshold", bounds.thresholds[:, i].clip(-1, 1)),
            **_low_and_high("false_accept", bounds.false_accepts[:, i]),
            **_low_and_high("true_accept", bounds.true_accepts[:, i]),
        )
        for i, (rate, threshold) in enumerate(zip(rates, thresholds, strict=True))
    ]
    return Calibration(
        encoder_id=encoder_id,
        num_clips=len(scores.matched),
        num_sources=drawn.num_sources,
        num_classes=len(frozenset().union(*drawn.labels)),
        num_wrong_pairs=len(scores.mismatched),
        num_independent_pairs=drawn.num_independent,
        num_left_out=drawn.num_left_out,
        auc=_rounded(auc(scores.matched, scores.mismatched)),
        auc_low=_rounded(bounds.auc[0]),
        auc_high=_rounded(bounds.auc[1]),
        points=tuple(points),
        per_class=_per_class(drawn),
    )


def read_calibration(location: str) -> Calibration:
    """Reads the calibration at a path or URL: a JSON of its own, or in a dataset's manifest, which its folder names as well.

    Raises CalibrationError or ManifestError.
    """
    path = manifest_path(location)
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise CalibrationError(f"calibration {path}: it cannot be read: {error}") from error
    try:
        values = json.loads(content)
    except ValueError as error:
        raise CalibrationError(f"calibration {path}: it is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != MANIFEST_FORMAT:
        return Calibration.from_json(content, f"calibration {path}")
    calibration = read_manifest(path).calibration
    if calibration is None:
        folder = posixpath.dirname(path) or "."
        raise CalibrationError(
            f"{path} has no calibration: run python -m pipeline.agreement calibrate {folder} --write, which adds it or says what is missing"
        )
    return calibration


def _check_enough(drawn: DrawnPairs) -> None:
    if drawn.num_independent >= MIN_INDEPENDENT_PAIRS and len(drawn.scores.mismatched):
        return
    classes = Counter(label for own in drawn.labels for label in own)
    if len(classes) == 1:
        raise CalibrationError(
            f"all {len(drawn.labels)} clips to calibrate on are of the class {next(iter(classes))!r}: a wrong pair has the sound of "
            f"another class, so at least {MIN_INDEPENDENT_PAIRS} sources of two or more classes are needed"
        )
    raise CalibrationError(
        f"too few pairs to calibrate on: {len(drawn.labels)} clips of {drawn.num_sources} sources "
        f"({len(classes)} classes) give {drawn.num_independent} wrong pairs in which no source occurs twice, and "
        f"{MIN_INDEPENDENT_PAIRS} are needed for a false-accept rate of 10 % (20 for 5 %, 100 for 1 %: one divided by the rate)"
    )


def _per_class(drawn: DrawnPairs) -> dict[str, ClassCalibration]:
    scores = drawn.scores
    source_N = scores.sources
    calibrations = {}
    for label in sorted(frozenset().union(*drawn.labels)):
        inside = np.asarray([label in own for own in drawn.labels])
        own_sources, other_sources = set(source_N[inside].tolist()), set(source_N[~inside].tolist())
        num_independent = min(len(own_sources), len(other_sources - own_sources))
        wrong = scores.mismatched[inside[scores.pictures]]
        if num_independent < MIN_INDEPENDENT_PAIRS or not len(wrong):
            continue
        rates = [rate for rate in RATES if rate >= 1 / num_independent - 1e-9]
        true = scores.matched[inside]
        points = [ClassPoint(**_point(true, rate, threshold_at(wrong, rate))) for rate in rates]
        calibrations[label] = ClassCalibration(
            num_clips=len(true),
            num_independent_pairs=num_independent,
            auc=_rounded(auc(true, wrong)),
            points=tuple(points),
        )
    return calibrations


def _point(matched: Floats, rate: float, threshold: float) -> dict[str, float]:
    passing = float(np.mean(matched >= threshold))
    return {"false_accept_rate": rate, "threshold": _rounded(threshold), "true_accept_rate": _rounded(passing)}


def _low_and_high(name: str, low_high: Floats) -> dict[str, float]:
    return {f"{name}_low": _rounded(low_high[0]), f"{name}_high": _rounded(low_high[1])}


def _rounded(value: float) -> float:
    """Rounds away the last bits, which differ between machines, so that manifests are equal."""
    return round(float(value), 6)
