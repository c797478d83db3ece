"""How well a score separates true pairs from wrong ones: area under the ROC curve, thresholds, and intervals from resampled sources.

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
"""Number of standard deviations around the mean that contain this share of a normal distribution."""


def auc(matched: Floats, mismatched: Floats) -> float:
    """Area under the curve: the probability that a true pair scores higher than a wrong one, ties counting half. It is U / (N M) of Mann
    and Whitney (1947). Raises ValueError if a set of scores is empty or not finite."""
    _check(matched, mismatched)
    ordered = np.sort(mismatched)
    below = np.searchsorted(ordered, matched, "left") + np.searchsorted(ordered, matched, "right")
    return float(below.mean() / 2 / len(ordered))


def threshold_at(mismatched: Floats, false_accept_rate: float) -> float:
    """A threshold that at most this share of wrong pairs reaches: halfway between the lowest score that passes and the next lower one."""
    ordered = np.sort(mismatched)
    num_refused = len(ordered) - int(np.floor(false_accept_rate * len(ordered) + 1e-9))
    if num_refused <= 0:
        return float(ordered[0])
    highest = ordered[num_refused - 1]
    above = np.searchsorted(ordered, highest, "right")
    return float(highest + 1e-5 if above == len(ordered) else (highest + ordered[above]) / 2)


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of true and of wrong pairs, with the clips that they are of."""

    matched: Floats
    """Score of each true pair, shape (N,)."""
    sources: Indices
    """Number of each clip's source, 0..S-1, shape (N,)."""
    mismatched: Floats
    """Score of each wrong pair, shape (M,)."""
    pictures: Indices
    """Clip whose picture each wrong pair has, 0..N-1, shape (M,)."""
    sounds: Indices
    """Clip whose sound each wrong pair has, 0..N-1, shape (M,)."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Low and high ends of 95 % intervals: shape (2,) for the area, (2, R) for the others."""

    auc: Floats
    thresholds: Floats
    false_accepts: Floats
    true_accepts: Floats


def intervals(scores: PairScores, rates_R: Floats, thresholds_R: Floats, seed: int = 0) -> Intervals:
    """95 % intervals of the area, of the thresholds for ``rates_R``, and of the shares that pass ``thresholds_R``, for other sources.

    Sources are resampled as a whole, with replacement, and a wrong pair is weighted by the product of the numbers of draws of its two
    sources (Owen 2007, "The pigeonhole bootstrap"), because clips of one source, and pairs that share a source, are not independent.
    The interval of the share of true pairs is at least as wide as Wilson's for S independent pairs.
    """
    num_sources = int(scores.sources.max()) + 1
    order = np.argsort(scores.mismatched, kind="stable")
    wrong = scores.mismatched[order]
    picture_source, sound_source = scores.sources[scores.pictures[order]], scores.sources[scores.sounds[order]]
    by_score = np.argsort(scores.matched, kind="stable")
    true, true_source = scores.matched[by_score], scores.sources[by_score]
    below, upto = np.searchsorted(wrong, true, "left"), np.searchsorted(wrong, true, "right")
    wrong_passing, true_passing = np.searchsorted(wrong, thresholds_R), np.searchsorted(true, thresholds_R)
    rng = np.random.default_rng(seed)
    areas, cuts, false_shares, true_shares = [], [], [], []
    for _ in range(NUM_RESAMPLES):
        weight_S = np.bincount(rng.integers(0, num_sources, num_sources), minlength=num_sources).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(weight_S[picture_source] * weight_S[sound_source])])
        true_sums = np.concatenate([[0.0], np.cumsum(weight_S[true_source])])
        if sums[-1] == 0:  # all drawn sources are of one class
            continue
        areas.append(weight_S[true_source] @ (sums[below] + sums[upto]) / 2 / sums[-1] / true_sums[-1])
        passing = np.searchsorted(sums, sums[-1] * (1 - rates_R) - 1e-9)
        cuts.append(wrong[np.minimum(passing, len(wrong) - 1)])
        false_shares.append(1 - sums[wrong_passing] / sums[-1])
        true_shares.append(1 - true_sums[true_passing] / true_sums[-1])
    false_share, true_share = 1 - wrong_passing / len(wrong), 1 - true_passing / len(true)
    true_ends = _interval(true_shares, true_share, num_sources)
    wilson = wilson_interval(true_share, num_sources)
    area = np.asarray(auc(scores.matched, scores.mismatched))
    area_ends = _interval(areas, area, num_sources)
    is_extreme = area in (0.0, 1.0)  # then all resamples give the same area, and their interval has no width
    return Intervals(
        wilson_interval(area, num_sources) if is_extreme else area_ends.clip(0, 1),
        _interval(cuts, thresholds_R, num_sources),
        _interval(false_shares, false_share, num_sources).clip(0, 1),
        np.stack([np.minimum(true_ends[0], wilson[0]), np.maximum(true_ends[1], wilson[1])]).clip(0, 1),
    )


def _interval(resamples_B: list[Floats], estimate: Floats, num_sources: int) -> Floats:
    """Percentiles of the resamples, widened for few sources: by the ratio of the quantiles of Student's t (by the series of Fisher and
    Cornish, 1960) and of the normal distribution, and by sqrt(S / (S - 1)), as resamples of S sources vary less than new ones."""
    outside = (1 - CONFIDENCE) / 2
    free = max(num_sources - 1, 1)
    student = (
        NORMAL + (NORMAL**3 + NORMAL) / (4 * free) + (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / (96 * free**2)
    )
    wider = student / NORMAL * np.sqrt(num_sources / free)
    ends: Floats = estimate + wider * (np.quantile(np.asarray(resamples_B), [outside, 1 - outside], axis=0) - estimate)
    return ends


def wilson_interval(share: Floats, number: int) -> Floats:
    """Wilson's interval (1927) for a share of ``number`` cases. Unlike that of resamples it has a width at shares of 0 and 1."""
    middle = (share + NORMAL**2 / (2 * number)) / (1 + NORMAL**2 / number)
    half = NORMAL / (1 + NORMAL**2 / number) * np.sqrt(share * (1 - share) / number + NORMAL**2 / (4 * number**2))
    return np.stack([middle - half, middle + half])


def _check(matched: Floats, mismatched: Floats) -> None:
    for name, scores in (("true", matched), ("wrong", mismatched)):
        if scores.size == 0 or not np.isfinite(scores).all():
            raise ValueError(f"there must be scores of {name} pairs, all finite; got {scores.size}")
