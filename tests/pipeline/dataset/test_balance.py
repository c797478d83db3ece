"""Caps by class and by source."""

from __future__ import annotations

import random

from pipeline.dataset.balance import BalanceItem, BalanceSettings, balance
from pipeline.schema import Reason


def test_no_cap_rejects_nothing():
    assert balance([BalanceItem("a_0", "a", ("rain",))] * 3, BalanceSettings()) == {}


def test_the_best_of_a_class_stay():
    clips = [BalanceItem(f"s{i}_0", f"s{i}", ("rain",), (float(i),)) for i in range(6)]
    clips += [BalanceItem("other_0", "other", ("fire",)), BalanceItem("none_0", "none")]
    verdicts = balance(clips, BalanceSettings(max_clips_per_class=2))
    assert list(verdicts) == ["s0_0", "s1_0", "s2_0", "s3_0"]
    assert verdicts["s0_0"].reason is Reason.CLASS_FULL
    assert verdicts["s0_0"].detail == "class rain has its 2 clips already"


def test_a_source_gives_its_best_and_leaves_room_in_the_class():
    clips = [BalanceItem(f"long_{i}", "long", ("rain",), (9.0 + i,)) for i in range(5)]
    clips += [BalanceItem(f"short_{i}", "short", ("rain",), (1.0,)) for i in range(2)]
    verdicts = balance(clips, BalanceSettings(max_clips_per_class=4, max_clips_per_source=2))
    assert {key: verdict.reason for key, verdict in verdicts.items()} == dict.fromkeys(
        ("long_0", "long_1", "long_2"), Reason.SOURCE_FULL
    )
    assert verdicts["long_0"].detail == "source long has its 2 clips already"


def test_a_clip_of_two_classes_needs_room_in_both():
    clips = [
        BalanceItem("a_0", "a", ("rain",), (3.0,)),
        BalanceItem("b_0", "b", ("rain", "wind"), (2.0,)),
        BalanceItem("c_0", "c", ("wind", "wind"), (1.0,)),
    ]
    verdicts = balance(clips, BalanceSettings(max_clips_per_class=1))
    assert list(verdicts) == ["b_0"]


def test_equals_are_chosen_by_a_hash_not_by_the_order_of_arrival():
    clips = [BalanceItem(f"s{i:02d}_0", f"s{i:02d}", ("rain",)) for i in range(50)]
    settings = BalanceSettings(max_clips_per_class=10)
    expected = balance(clips, settings)
    random.Random(1).shuffle(clips)
    assert balance(clips, settings) == expected
    stay = sorted({item.key for item in clips} - set(expected))
    assert len(stay) == 10
    assert stay != [f"s{i:02d}_0" for i in range(10)]
    assert balance(clips, BalanceSettings(max_clips_per_class=10, seed=1)) != expected
