"""Calibration: what agreement a wrong pair of picture and sound reaches, so that a wanted share of false accepts becomes a threshold.

True pairs are a clip's picture with its own sound; wrong ones its picture with the sound of a clip of another source and another class.

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
from pipeline.agreement.roc import Floats, auc, intervals, roc, threshold_at
from pipeline.dataset.manifest import FORMAT as MANIFEST_FORMAT
from pipeline.dataset.manifest import manifest_path, read_manifest
from pipeline.errors import CalibrationError
from pipeline.judge.agreement_rule import Calibration, ClassCalibration, ClassPoint, RocPoint

__all__ = ["Calibration", "calibrate", "calibration_of", "read_calibration", "roc"]

MIN_INDEPENDENT_PAIRS = 10
"""With fewer, a calibration is refused: not even a false-accept rate of 10 % could be told."""
RATES = tuple(
    round(mantissa * 10.0**power, 6)
    for power in (-4, -3, -2, -1)
    for mantissa in ((1, 1.5, 2, 3, 4, 5, 7) if power < -1 else (1, 1.5, 2, 3, 4, 5, 7, 9))
)
"""False-accept rates of the stored points; between them the curve is straight, over the rate's logarithm."""


def calibrate(
    picture_ND: NDArray[np.floating],
    sound_ND: NDArray[np.floating],
    sources: Sequence[str],
    labels: Sequence[Label],
    encoder_id: str,
    seed: int = 0,
) -> Calibration:
    """Scores true pairs against wrong ones. Row i of all is clip i; the vectors may have any length.

    Clips without direction in the space are left out, and clips without a label where others have one. Without any label, wrong
    pairs differ by source alone. The numbers depend on the rows and ``seed`` alone.

    Raises CalibrationError where there are too few sources or classes, ValueError for arrays that do not fit or are not finite.
    """
    return calibration_of(draw_scores(picture_ND, sound_ND, sources, labels, seed), encoder_id, seed)


def calibration_of(drawn: DrawnPairs, encoder_id: str, seed: int = 0) -> Calibration:
    """The calibration that these pairs make. Raises CalibrationError where there are too few."""
    scores = drawn.scores
    _check_enough(drawn)
    rates = [rate for rate in RATES if rate >= 1 / drawn.num_independent - 1e-9]
    thresholds = [threshold_at(scores.mismatched, rate) for rate in rates]
    found = intervals(scores, np.asarray(rates), np.asarray(thresholds), seed)
    points = [
        RocPoint(
            **_point(scores.matched, rate, threshold),
            **_ends("threshold", found.thresholds[:, i].clip(-1, 1)),
            **_ends("false_accept", found.false_accepts[:, i]),
            **_ends("true_accept", found.true_accepts[:, i]),
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
        auc_low=_rounded(found.auc[0]),
        auc_high=_rounded(found.auc[1]),
        points=tuple(points),
        per_class=_per_class(drawn),
    )


def read_calibration(location: str) -> Calibration:
    """The calibration at a path or URL: its own JSON, or that of a dataset's manifest or folder.

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
            f"{path} holds no calibration: run python -m pipeline.agreement calibrate {folder} --write, which says what is missing"
        )
    return calibration


def _check_enough(drawn: DrawnPairs) -> None:
    if drawn.num_independent >= MIN_INDEPENDENT_PAIRS and len(drawn.scores.mismatched):
        return
    classes = Counter(label for own in drawn.labels for label in own)
    if len(classes) == 1:
        raise CalibrationError(
            f"all {len(drawn.labels)} clips to calibrate on are of the class {next(iter(classes))!r}: a wrong pair has the sound of "
            f"another class, so sources of two classes or more are needed, {MIN_INDEPENDENT_PAIRS} at the least"
        )
    raise CalibrationError(
        f"too few pairs to calibrate on: {len(drawn.labels)} clips of {drawn.num_sources} sources "
        f"({len(classes)} classes) make {drawn.num_independent} wrong pairs in which no source comes twice, and "
        f"{MIN_INDEPENDENT_PAIRS} are needed for a false-accept rate of 10 % (20 for 5 %, 100 for 1 %: one divided by the rate)"
    )


def _per_class(drawn: DrawnPairs) -> dict[str, ClassCalibration]:
    scores, found = drawn.scores, {}
    source_N = scores.sources
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
        found[label] = ClassCalibration(
            num_clips=len(true),
            num_independent_pairs=num_independent,
            auc=_rounded(auc(true, wrong)),
            points=tuple(points),
        )
    return found


def _point(matched: Floats, rate: float, threshold: float) -> dict[str, float]:
    passing = float(np.mean(matched >= threshold))
    return {"false_accept_rate": rate, "threshold": _rounded(threshold), "true_accept_rate": _rounded(passing)}


def _ends(name: str, low_high: Floats) -> dict[str, float]:
    return {f"{name}_low": _rounded(low_high[0]), f"{name}_high": _rounded(low_high[1])}


def _rounded(value: float) -> float:
    """So that the last bits, which differ between machines, do not reach a manifest."""
    return round(float(value), 6)
