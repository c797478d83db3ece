"""Splits: by source, stable, related clips together."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pydantic import ValidationError

from pipeline.dataset.split import SplitItem, SplitSettings, assign_splits
from pipeline.errors import UserError

SETTINGS = SplitSettings(train=0.8, validation=0.1, test=0.1)


def items(num_sources: int, clips: int = 2) -> list[SplitItem]:
    return [SplitItem(f"s{s:05d}_{c}", f"s{s:05d}") for s in range(num_sources) for c in range(clips)]


def test_fractions_come_out_and_clips_of_a_source_stay_together():
    splits = assign_splits(items(5000), (), SETTINGS)
    counts = Counter(splits.of.values())
    assert sum(counts.values()) == 10_000
    assert abs(counts["train"] - 8000) < 200
    assert abs(counts["validation"] - 1000) < 150
    assert abs(counts["test"] - 1000) < 150
    assert all(splits.of[f"s{s:05d}_0"] == splits.of[f"s{s:05d}_1"] for s in range(5000))
    assert list(splits.of) == sorted(splits.of)


def test_the_draw_is_the_same_in_every_run_and_order():
    shuffled = items(200)
    random.Random(0).shuffle(shuffled)
    splits = assign_splits(shuffled, (), SETTINGS)
    assert splits == assign_splits(items(200), (), SETTINGS)
    assert [k for k, split in splits.of.items() if split == "test"][:4] == [
        "s00013_0",
        "s00013_1",
        "s00035_0",
        "s00035_1",
    ]
    assert splits != assign_splits(items(200), (), SplitSettings(train=0.8, validation=0.1, test=0.1, seed=1))


def test_added_sources_move_nobody():
    before = assign_splits(items(300), (), SETTINGS).of
    after = assign_splits(items(600), (), SETTINGS).of
    assert {key: after[key] for key in before} == before


def test_a_smaller_test_share_moves_clips_out_of_test_only():
    before = assign_splits(items(2000), (), SETTINGS).of
    after = assign_splits(items(2000), (), SplitSettings(train=0.85, validation=0.1, test=0.05)).of
    assert {before[key] for key in before if after[key] == "test"} == {"test"}


def test_related_clips_and_one_video_share_a_split():
    clips = items(300, clips=1)
    related = [(f"s{s:05d}_0", f"s{s + 1:05d}_0", f"s{s + 2:05d}_0") for s in range(0, 300, 3)]
    splits = assign_splits(clips, related, SETTINGS).of
    assert all(len({splits[key] for key in group}) == 1 for group in related)
    assert len(set(splits.values())) == 3
    videos = [SplitItem(item.key, item.source_id, video_id=f"v{i // 5}") for i, item in enumerate(clips)]
    by_video = assign_splits(videos, (), SETTINGS).of
    assert all(len({by_video[item.key] for item in videos[i : i + 5]}) == 1 for i in range(0, 300, 5))


def test_relations_reach_through_clips_that_are_not_kept():
    clips = [SplitItem("a_0", "a", wanted="test"), SplitItem("b_0", "b")]
    splits = assign_splits(clips, [("a_0", "gone_0"), ("b_0", "gone_0")], SETTINGS)
    assert splits.of == {"a_0": "test", "b_0": "test"}


def test_the_list_decides_and_the_most_held_out_wins():
    clips = [
        SplitItem("a_0", "a", wanted="train"),
        SplitItem("b_0", "b", wanted="validation"),
        SplitItem("c_0", "c"),
        SplitItem("d_0", "d", wanted="test"),
    ]
    alone = assign_splits(clips, (), SplitSettings(train=1, validation=0, test=0))
    assert alone.of == {"a_0": "train", "b_0": "validation", "c_0": "train", "d_0": "test"}
    assert alone.conflicts == ()
    tied = assign_splits(clips, [("a_0", "b_0"), ("b_0", "c_0")], SETTINGS)
    assert tied.of == {"a_0": "validation", "b_0": "validation", "c_0": "validation", "d_0": "test"}
    assert [(conflict.split, conflict.moved) for conflict in tied.conflicts] == [("validation", ("a",))]


@pytest.mark.parametrize("only", ["train", "validation", "test"])
def test_one_split_can_take_all(only: str):
    shares = dict.fromkeys(("train", "validation", "test"), 0.0) | {only: 1.0}
    assert set(assign_splits(items(500), (), SplitSettings(**shares)).of.values()) == {only}


def test_wrong_settings_and_names_are_refused():
    with pytest.raises(ValidationError, match=r"must add up to 1, got 1\.1"):
        SplitSettings(train=0.9, validation=0.1, test=0.1)
    with pytest.raises(UserError, match="source a: split 'dev' is none of test, validation, train"):
        assign_splits([SplitItem("a_0", "a", wanted="dev")], (), SETTINGS)
