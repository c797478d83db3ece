"""Calibration: which pairs are wrong ones, thresholds that keep their promise on clips of known construction, and refusals."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.agreement.calibration import Calibration, calibrate, read_calibration
from pipeline.agreement.pairs import MAX_PAIRS, ClipPool, draw_scores, pass_shares
from pipeline.errors import CalibrationError, ManifestError
from pipeline.judge.agreement_rule import AgreementRule

WIDTH = 16
Clips = tuple[NDArray[np.float64], NDArray[np.float64], list[str], list[tuple[str, ...]]]


def clips(num_sources: int, *, classes: int = 4, seed: int = 0, per_source: int = 1, noise: float = 0.8) -> Clips:
    """Picture and sound lie around the direction of their class, an axis of the space."""
    rng = np.random.default_rng(seed)
    pictures, sounds, sources, labels = [], [], [], []
    for source, _ in itertools.product(range(num_sources), range(per_source)):
        for rows in (pictures, sounds):
            rows.append(np.eye(WIDTH)[source % classes] + noise * rng.standard_normal(WIDTH) / np.sqrt(WIDTH))
        sources.append(f"s{source}")
        labels.append((f"class{source % classes}",))
    return np.stack(pictures), np.stack(sounds), sources, labels


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(*clips(120), "pair-1")


def test_wrong_pairs_differ_in_source_and_in_every_class() -> None:
    picture, sound, _, _ = clips(6)
    sources = ["a", "a", "b", "c", "d", "e"]
    labels = [("rain",), ("rain",), ("rain", "wind"), ("wind",), ("sea",), ("sea",)]
    drawn = draw_scores(picture, sound, sources, labels).scores
    found = set(zip(drawn.pictures.tolist(), drawn.sounds.tolist(), strict=True))
    apart = {(0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (1, 5), (2, 4), (2, 5), (3, 4), (3, 5)}
    assert found == apart | {(j, i) for i, j in apart}
    first = next(i for i in range(len(drawn.pictures)) if (drawn.pictures[i], drawn.sounds[i]) == (0, 3))
    cosine = picture[0] @ sound[3] / np.linalg.norm(picture[0]) / np.linalg.norm(sound[3])
    assert drawn.mismatched[first] == pytest.approx(cosine, abs=1e-6)
    assert drawn.matched[5] == pytest.approx(
        picture[5] @ sound[5] / np.linalg.norm(picture[5]) / np.linalg.norm(sound[5]), abs=1e-6
    )


def test_of_many_clips_a_sample_of_pairs_is_drawn_the_same_each_time() -> None:
    many = clips(600)
    first, second = draw_scores(*many).scores, draw_scores(*many).scores
    assert len(first.mismatched) == MAX_PAIRS
    assert np.array_equal(first.mismatched, second.mismatched)
    assert (first.pictures % 4 != first.sounds % 4).all()


@pytest.mark.parametrize(
    ("labels", "independent"),
    [
        ("aabb", 4),  # a-b, b-a, each once as picture and once as sound
        ("aaab", 2),  # b's picture and b's sound find a partner, the others none
        ("abcd", 4),
        ("aaaa", 0),
    ],
)
def test_independent_pairs_use_no_source_twice(labels: str, independent: int) -> None:
    picture, sound, sources, _ = clips(4)
    drawn = draw_scores(picture, sound, sources, list(labels))
    assert drawn.num_independent == independent
    pairs = list(zip(drawn.scores.pictures.tolist(), drawn.scores.sounds.tolist(), strict=True))
    most = max(  # by trying all
        (
            len(chosen)
            for size in range(5)
            for chosen in itertools.combinations(pairs, size)
            if len({i for i, _ in chosen}) == len({j for _, j in chosen}) == size
        ),
        default=0,
    )
    assert most == independent


def test_the_threshold_keeps_its_promise_on_clips_it_has_not_seen(calibration: Calibration) -> None:
    unseen = draw_scores(*clips(400, seed=7))
    for rate in (0.02, 0.05, 0.1, 0.2):
        threshold = calibration.threshold(rate)
        true, wrong = pass_shares(unseen, AgreementRule(min_agreement=threshold))
        point = calibration.point(rate)
        assert wrong == pytest.approx(rate, abs=0.4 * rate)
        assert point.false_accept_low <= wrong <= point.false_accept_high
        assert point.true_accept_low <= true <= point.true_accept_high
        assert point.threshold_low < threshold < point.threshold_high
    assert calibration.auc_low < calibration.auc < calibration.auc_high
    assert calibration.threshold(0.2) < calibration.threshold(0.05)


def test_known_scores_give_known_numbers() -> None:
    """Six sources each of two classes; a picture and a sound agree by 0.8 in their class, and by 0.6 or 0 across."""
    towards = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    across = np.array([[0.8, 0.6, 0], [0.0, 0.8, 0.6]])
    rows = np.repeat([0, 1], 6)
    found = calibrate(towards[rows], across[rows], [str(i) for i in range(12)], list("aaaaaabbbbbb"), "pair-1")
    assert (found.num_clips, found.num_sources, found.num_classes) == (12, 12, 2)
    assert (found.num_wrong_pairs, found.num_independent_pairs) == (72, 12)
    assert found.auc == 1.0
    half = found.point(0.5)  # sounds of class b have 0 with pictures of a, sounds of a have 0.6 with pictures of b
    assert (half.threshold, half.true_accept_rate) == (pytest.approx(0.3, abs=1e-5), 1.0)
    assert found.threshold(0.1) == pytest.approx(0.6, abs=2e-5)
    assert found.threshold(0.1) > 0.6


def test_between_stored_points_the_curve_is_straight_over_the_logarithm(calibration: Calibration) -> None:
    low, high = calibration.point(0.05), calibration.point(0.07)
    middle = calibration.point(np.sqrt(0.05 * 0.07))
    assert middle.threshold == pytest.approx((low.threshold + high.threshold) / 2, abs=1e-5)
    assert calibration.threshold(0.99) == calibration.threshold(0.9)


def test_a_rate_that_so_few_pairs_cannot_tell_is_refused_with_the_number_needed() -> None:
    found = calibrate(*clips(24), "pair-1")
    assert found.points[0].false_accept_rate == 0.05
    with pytest.raises(CalibrationError, match=r"0\.01 needs at least 100 .*has 24.*ask for 0\.05 or more"):
        found.threshold(0.01)


def test_classes_with_enough_pairs_have_thresholds_of_their_own() -> None:
    picture, sound, sources, labels = clips(120, classes=3)
    sound[np.arange(120) % 3 == 1] += 0.5 * np.eye(WIDTH)[2]  # the sounds of class1 are like the pictures of class2
    few = [("rare",) if i in (0, 3) else own for i, own in enumerate(labels)]
    found = calibrate(picture, sound, sources, few, "pair-1")
    assert sorted(found.per_class) == ["class0", "class1", "class2"]
    assert found.threshold(0.1, "class2") > found.threshold(0.1) > found.threshold(0.1, "class0")
    assert found.threshold(0.1, "rare") == found.threshold(0.1, "unheard of") == found.threshold(0.1)
    drawn = draw_scores(picture, sound, sources, few)
    rule = found.rule(0.1, per_class=True, origin="own clips")
    of_class2 = np.asarray([few[i] == ("class2",) for i in drawn.scores.pictures])
    assert np.mean(drawn.scores.mismatched[of_class2] >= rule.limit(["class2"])) == pytest.approx(0.1, abs=0.002)
    assert found.per_class["class2"].num_independent_pairs == 40
    assert found.threshold(0.01, "class2") == found.threshold(0.01)  # 40 pairs cannot tell of 1 %, all of them can


def test_of_several_labels_the_strictest_counts() -> None:
    rule = AgreementRule(min_agreement=0.3, per_class={"rain": 0.1, "wind": 0.2})
    assert rule.limit(["rain", "wind"]) == 0.2
    assert rule.limit(["rain", "sea"]) == 0.1
    assert rule.limit(["sea"]) == rule.limit() == 0.3


def test_without_labels_wrong_pairs_differ_by_source_alone() -> None:
    picture, sound, sources, _ = clips(20, per_source=2)
    found = calibrate(picture, sound, sources, [None] * 40, "pair-1")
    assert (found.num_classes, found.num_wrong_pairs, found.num_independent_pairs) == (0, 40 * 38, 20)
    assert found.per_class == {}


def test_clips_without_direction_or_among_labelled_ones_without_label_are_left_out() -> None:
    picture, sound, sources, labels = clips(30)
    picture[3], sound[4] = 0, 0
    found = calibrate(picture, sound, sources, [() if i == 5 else own for i, own in enumerate(labels)], "pair-1")
    assert (found.num_clips, found.num_left_out) == (27, 3)


def test_too_few_pairs_are_refused_with_the_number_there_and_the_number_needed() -> None:
    with pytest.raises(
        CalibrationError, match=r"9 clips of 9 sources \(4 classes\) give 9 wrong pairs .* 10 are needed"
    ):
        calibrate(*clips(9), "pair-1")
    picture, sound, sources, _ = clips(30)
    with pytest.raises(
        CalibrationError, match=r"all 30 clips .* class 'sea': .*at least 10 sources of two or more classes"
    ):
        calibrate(picture, sound, sources, ["sea"] * 30, "pair-1")
    with pytest.raises(CalibrationError, match=r"30 clips of 1 sources"):
        calibrate(picture, sound, ["s"] * 30, [None] * 30, "pair-1")
    with pytest.raises(CalibrationError, match="0 clips of 0 sources"):
        calibrate(picture[:0], sound[:0], [], [], "pair-1")


def test_arrays_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    picture, sound, sources, labels = clips(12)
    with pytest.raises(ValueError, match=r"\(12, 16\), \(12, 15\)"):
        calibrate(picture, sound[:, :15], sources, labels, "pair-1")
    with pytest.raises(ValueError, match="11 labels"):
        calibrate(picture, sound, sources, labels[1:], "pair-1")
    sound[7, 3] = np.nan
    with pytest.raises(ValueError, match="sound embedding of clip 7 is not finite"):
        calibrate(picture, sound, sources, labels, "pair-1")


def test_a_calibration_survives_its_json(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(calibration.to_json())
    assert read_calibration(str(path)) == calibration
    assert read_calibration(f"file://{path}").calibration_id == calibration.calibration_id
    values = json.loads(path.read_bytes())
    values["points"][3]["threshold"] += 0.01
    assert Calibration.from_json(json.dumps(values).encode()).calibration_id != calibration.calibration_id


def test_what_is_no_calibration_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    def written(text: str) -> str:
        (tmp_path / "a.json").write_text(text)
        return str(tmp_path / "a.json")

    with pytest.raises(CalibrationError, match=r"nowhere\.json: it cannot be read"):
        read_calibration(str(tmp_path / "nowhere.json"))
    with pytest.raises(CalibrationError, match="nothere://x"):
        read_calibration("nothere://x/y.json")
    with pytest.raises(CalibrationError, match="not JSON"):
        read_calibration(written("{"))
    with pytest.raises(CalibrationError, match=r"a\.json cannot be read as a calibration:.*\n.*"):
        read_calibration(written("[1]"))
    values = calibration.model_dump(mode="json")
    with pytest.raises(CalibrationError, match="encoder_id: Field required"):
        read_calibration(written(json.dumps({k: v for k, v in values.items() if k != "encoder_id"})))
    with pytest.raises(CalibrationError, match="false_accept_rate must rise"):
        read_calibration(written(json.dumps({**values, "points": values["points"][::-1]})))
    with pytest.raises(CalibrationError, match="points"):
        read_calibration(written(json.dumps({**values, "points": []})))
    with pytest.raises(ManifestError, match="schema version"):
        read_calibration(written('{"format": "hearscape-dataset"}'))


def test_the_pool_keeps_a_sample_that_the_order_does_not_move() -> None:
    keys = [f"k{i:05d}" for i in range(5000)]
    chosen = []
    for order in (keys, keys[::-1]):
        pool = ClipPool(size=100)
        for key in order:
            pool.add(key, key[:3], ("sea",))
        chosen.append(pool.clips())
    assert list(chosen[0]) == list(chosen[1]) == sorted(chosen[0])
    assert len(chosen[0]) == 100
    assert 1500 < np.mean([int(key[1:]) for key in chosen[0]]) < 3500
    small = ClipPool(size=100)
    small.add("k", "s", ())
    assert small.clips() == {"k": ("s", ())}
