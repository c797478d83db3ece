"""How well a score tells true pairs from wrong ones: curve, area, thresholds, and how far other sources would move them. Pure numbers.

Shape suffixes: N clips (true pairs), M wrong pairs, S sources, R rates, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
NORMAL = 1.959964
"""Standard deviations on each side of the mean that hold this share of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Roc:
    """A receiver operating characteristic: for each distinct score, falling, the shares that score as much or more."""

    thresholds: Floats
    false_accept: Floats
    true_accept: Floats
    auc: float


def roc(matched: Floats, mismatched: Floats) -> Roc:
    """The whole curve of two sets of scores. Raises ValueError where one is empty or not finite."""
    _check(matched, mismatched)
    thresholds = np.unique(np.concatenate([matched, mismatched]))[::-1]
    false_accept = 1 - np.searchsorted(np.sort(mismatched), thresholds) / len(mismatched)
    true_accept = 1 - np.searchsorted(np.sort(matched), thresholds) / len(matched)
    return Roc(thresholds, false_accept, true_accept, auc(matched, mismatched))


def auc(matched: Floats, mismatched: Floats) -> float:
    """The chance that a true pair scores higher than a wrong one, ties counting half: U / (N M) of Mann and Whitney (1947)."""
    _check(matched, mismatched)
    ordered = np.sort(mismatched)
    below = np.searchsorted(ordered, matched, "left") + np.searchsorted(ordered, matched, "right")
    return float(below.mean() / 2 / len(ordered))


def threshold_at(mismatched: Floats, false_accept_rate: float) -> float:
    """The score that at most this share of wrong pairs reaches: halfway between the last that may pass and the next."""
    ordered = np.sort(mismatched)
    num_refused = len(ordered) - int(np.floor(false_accept_rate * len(ordered) + 1e-9))
    if num_refused <= 0:
        return float(ordered[0])
    highest = ordered[num_refused - 1]
    above = np.searchsorted(ordered, highest, "right")
    return float(highest + 1e-5 if above == len(ordered) else (highest + ordered[above]) / 2)


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of true pairs and of wrong ones, and whose they are."""

    matched: Floats
    sources: Indices
    """Which source each clip is of, 0..S-1."""
    mismatched: Floats
    pictures: Indices
    """Whose picture each wrong pair has: a clip, 0..N-1."""
    sounds: Indices
    """Whose sound."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Low and high ends, (2,) or (2, R), of 95 % intervals."""

    auc: Floats
    thresholds: Floats
    false_accepts: Floats
    true_accepts: Floats


def intervals(scores: PairScores, rates_R: Floats, thresholds_R: Floats, seed: int = 0) -> Intervals:
    """How far another draw of as many sources would move the area, the thresholds for ``rates_R``, and the shares that pass
    ``thresholds_R``.

    Whole sources are drawn with replacement, and a wrong pair counts as often as its two sources were drawn together
    (Owen 2007, "The pigeonhole bootstrap"): clips of a source, and pairs that share one, are not independent. The share of true
    pairs is no surer than that of as many independent ones.
    """
    num_sources = int(scores.sources.max()) + 1
    order = np.argsort(scores.mismatched, kind="stable")
    wrong = scores.mismatched[order]
    of_picture, of_sound = scores.sources[scores.pictures[order]], scores.sources[scores.sounds[order]]
    by_score = np.argsort(scores.matched, kind="stable")
    true, of_true = scores.matched[by_score], scores.sources[by_score]
    below, upto = np.searchsorted(wrong, true, "left"), np.searchsorted(wrong, true, "right")
    wrong_passing, true_passing = np.searchsorted(wrong, thresholds_R), np.searchsorted(true, thresholds_R)
    rng = np.random.default_rng(seed)
    areas, cuts, false_shares, true_shares = [], [], [], []
    for _ in range(NUM_RESAMPLES):
        weight_S = np.bincount(rng.integers(0, num_sources, num_sources), minlength=num_sources).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(weight_S[of_picture] * weight_S[of_sound])])
        true_sums = np.concatenate([[0.0], np.cumsum(weight_S[of_true])])
        if sums[-1] == 0:  # all drawn sources are of one class
            continue
        areas.append(weight_S[of_true] @ (sums[below] + sums[upto]) / 2 / sums[-1] / true_sums[-1])
        passing = np.searchsorted(sums, sums[-1] * (1 - rates_R) - 1e-9)
        cuts.append(wrong[np.minimum(passing, len(wrong) - 1)])
        false_shares.append(1 - sums[wrong_passing] / sums[-1])
        true_shares.append(1 - true_sums[true_passing] / true_sums[-1])
    found_shares = (1 - wrong_passing / len(wrong), 1 - true_passing / len(true))
    true_ends = _ends(true_shares, found_shares[1], num_sources)
    wilson = _wilson(found_shares[1], num_sources)
    area = np.asarray(auc(scores.matched, scores.mismatched))
    area_ends = _ends(areas, area, num_sources)
    faultless = area in (0.0, 1.0)  # no resample says otherwise, and so they say nothing
    return Intervals(
        _wilson(area, num_sources) if faultless else area_ends.clip(0, 1),
        _ends(cuts, thresholds_R, num_sources),
        _ends(false_shares, found_shares[0], num_sources).clip(0, 1),
        np.stack([np.minimum(true_ends[0], wilson[0]), np.maximum(true_ends[1], wilson[1])]).clip(0, 1),
    )


def _ends(found_B: list[Floats], estimate: Floats, num_sources: int) -> Floats:
    """Percentiles of the resamples, widened for few sources: by Student's t (here by the series of Fisher and Cornish, 1960) in
    place of the normal, and by the spread that resamples of S sources lack."""
    outside = (1 - CONFIDENCE) / 2
    free = max(num_sources - 1, 1)
    student = (
        NORMAL + (NORMAL**3 + NORMAL) / (4 * free) + (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / (96 * free**2)
    )
    wider = student / NORMAL * np.sqrt(num_sources / free)
    ends: Floats = estimate + wider * (np.quantile(np.asarray(found_B), [outside, 1 - outside], axis=0) - estimate)
    return ends


def _wilson(share: Floats, number: int) -> Floats:
    """Wilson's interval (1927) for a share of so many: has a width also at 0 and 1, where resamples have none."""
    middle = (share + NORMAL**2 / (2 * number)) / (1 + NORMAL**2 / number)
    half = NORMAL / (1 + NORMAL**2 / number) * np.sqrt(share * (1 - share) / number + NORMAL**2 / (4 * number**2))
    return np.stack([middle - half, middle + half])


def _check(matched: Floats, mismatched: Floats) -> None:
    for name, scores in (("true", matched), ("wrong", mismatched)):
        if scores.size == 0 or not np.isfinite(scores).all():
            raise ValueError(f"scores of {name} pairs must be finite, and there must be some; got {scores.size}")
