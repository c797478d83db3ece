"""Curves, areas and thresholds against sums worked by hand, and intervals against the truth of simulated worlds."""

import numpy as np
import pytest

from pipeline.agreement.roc import PairScores, auc, intervals, threshold_at


def test_the_area_is_the_share_of_pairs_in_the_right_order_ties_counting_half() -> None:
    matched, mismatched = np.array([0.9, 0.5, 0.4]), np.array([0.5, 0.1, 0.4, 0.3])
    wins = [(t > w) + 0.5 * (t == w) for t in matched for w in mismatched]
    assert sum(wins) == 4 + 3.5 + 2.5  # 0.9 beats all; 0.5 ties once; 0.4 ties once and loses once
    assert auc(matched, mismatched) == pytest.approx(sum(wins) / 12, abs=1e-12)
    assert auc(mismatched, matched) == pytest.approx(1 - sum(wins) / 12, abs=1e-12)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.1, 0.95),  # one of ten passes: between 1.0 and 0.9
        (0.199, 0.95),
        (0.2, 0.85),
        (0.5, 0.55),
        (0.05, 1.00001),  # none may pass
        (1.0, 0.1),
    ],
)
def test_the_threshold_lies_between_the_last_that_passes_and_the_first_that_does_not(
    rate: float, threshold: float
) -> None:
    scores = np.random.default_rng(1).permutation(np.arange(1, 11) / 10)
    assert threshold_at(scores, rate) == pytest.approx(threshold, abs=1e-12)
    assert np.mean(scores >= threshold_at(scores, rate)) <= rate


def test_equal_scores_pass_together_or_not_at_all() -> None:
    scores = np.array([0.1] * 5 + [0.5] * 4 + [0.9])
    assert threshold_at(scores, 0.3) == pytest.approx(0.7)
    assert threshold_at(scores, 0.5) == pytest.approx(0.3)


def test_scores_that_are_missing_or_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wrong pairs, all finite; got 0"):
        auc(np.ones(3), np.zeros(0))
    with pytest.raises(ValueError, match="scores of true pairs, all finite"):
        auc(np.array([np.nan]), np.ones(2))


def world(rng: np.random.Generator, num_sources: int, clips_per_source: int = 3) -> PairScores:
    """Sources whose clips share most of their score, and whose sounds are more or less like all pictures."""
    source = np.repeat(np.arange(num_sources), clips_per_source)
    matched = (1.2 + rng.normal(size=num_sources))[source] + 0.3 * rng.normal(size=len(source))
    picture, sound = (grid.ravel() for grid in np.indices((len(source), len(source))))
    apart = source[picture] != source[sound]
    picture, sound = picture[apart], sound[apart]
    like = 0.5 * rng.normal(size=num_sources)
    wrong = like[source[picture]] + like[source[sound]] + 0.7 * rng.normal(size=len(picture))
    return PairScores(matched, source, wrong, picture, sound)


@pytest.mark.slow
def test_intervals_cover_the_truth_in_simulation() -> None:
    truth = world(np.random.default_rng(999), 400, 1)
    area = auc(truth.matched, truth.mismatched)
    covered = []
    for seed in range(40):
        scores = world(np.random.default_rng(seed), 24)
        cut = threshold_at(scores.mismatched, 0.1)
        found = intervals(scores, np.array([0.1]), np.array([cut]))
        truths = (
            (found.auc, area),
            (found.thresholds[:, 0], threshold_at(truth.mismatched, 0.1)),
            (found.false_accepts[:, 0], np.mean(truth.mismatched >= cut)),
            (found.true_accepts[:, 0], np.mean(truth.matched >= cut)),
        )
        covered.append([low <= value <= high for (low, high), value in truths])
        naive = 1.96 * np.sqrt(area * (1 - area) / len(scores.matched))
        assert found.auc[1] - found.auc[0] < 6 * naive  # and they still say something
    assert (np.mean(covered, axis=0) >= 0.85).all(), np.mean(covered, axis=0)


def test_what_is_told_apart_without_a_fault_is_not_called_certain() -> None:
    source = np.arange(12)
    picture, sound = np.array([(i, j) for i in range(12) for j in range(12) if i != j]).T
    scores = PairScores(np.full(12, 0.9), source, np.linspace(0, 0.1, len(picture)), picture, sound)
    found = intervals(scores, np.array([0.1]), np.array([0.5]))
    assert found.auc == pytest.approx([12 / (12 + 1.96**2), 1.0], abs=1e-3)  # Wilson's interval for 12 of 12
    assert found.true_accepts[:, 0] == pytest.approx([12 / (12 + 1.96**2), 1.0], abs=1e-3)
