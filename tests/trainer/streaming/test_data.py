"""The reader: the same samples in the same order for anyone, and resumed exactly."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from tests.datasets import Clip, build_dataset, key_of, number_shown
from tests.trainer.streaming.readers import SETTINGS, SMALL, reader
from trainer.streaming.reader import Batch, DatasetMix, Reader, ReaderSettings


def with_workers(settings: ReaderSettings, number: int) -> ReaderSettings:
    return settings.model_copy(update={"num_workers": number})


def told(batch: Batch) -> list[tuple[str, str]]:
    """Key and digest of everything else, for each sample."""
    assert batch.mels_BMT is not None
    parts = (batch.frames_BTCHW, batch.sounds_BN, batch.mels_BMT, batch.seconds_B)
    digests = [
        hashlib.sha256(b"".join(part[row].numpy().tobytes() for part in parts)).hexdigest() for row in range(len(batch))
    ]
    return list(zip(batch.keys, digests, strict=True))


def epochs(of: Reader, number: int) -> list[list[list[tuple[str, str]]]]:
    """Told samples, by epoch and batch."""
    try:
        return [[told(batch) for batch in of] for _ in range(number)]
    finally:
        of.close()


@pytest.fixture(scope="module")
def alone(numbered: Path) -> list[list[list[tuple[str, str]]]]:
    """Two epochs as one rank without workers reads them."""
    return epochs(reader(numbered, SETTINGS), 2)


# 3 processes may be more than this machine has cores.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 1), (1, 3), (2, 0), (2, 1), (8, 0), (8, 1)])
def test_any_number_of_ranks_and_workers_reads_the_same_samples_in_the_same_order(
    numbered: Path, alone: list[list[list[tuple[str, str]]]], num_ranks: int, num_workers: int
):
    assert [len(batch) for batch in alone[0]] == [8] * 5
    assert alone[0] != alone[1]
    settings = with_workers(SETTINGS, num_workers)
    ranks = [epochs(reader(numbered, settings, rank=rank, num_ranks=num_ranks), 2) for rank in range(num_ranks)]
    for epoch in range(2):
        together = [[sample for rank in ranks for sample in rank[epoch][batch]] for batch in range(5)]
        assert together == alone[epoch]
        assert all(len(batch) == 8 // num_ranks for rank in ranks for batch in rank[epoch])


@pytest.mark.parametrize(("last_batch", "lengths"), [("keep", [8, 8, 8, 8, 8, 3]), ("drop", [8, 8, 8, 8, 8])])
def test_every_rank_has_as_many_batches_and_the_last_one_is_dropped_or_short(
    numbered: Path, last_batch: str, lengths: list[int]
):
    settings = SMALL.model_copy(update={"last_batch": last_batch})
    ranks = [[len(batch) for batch in reader(numbered, settings, rank=rank, num_ranks=8)] for rank in range(8)]
    assert [len(rank) for rank in ranks] == [len(lengths)] * 8 == [len(reader(numbered, settings, num_ranks=8))] * 8
    assert [sum(rank[batch] for rank in ranks) for batch in range(len(lengths))] == lengths


def test_without_shuffle_every_sample_comes_once_in_the_order_of_the_shards(numbered: Path):
    keys = [key for batch in reader(numbered, shuffle=False) for key in batch.keys]
    assert keys == [key_of(index) for index in range(43)]


def test_one_small_shard_serves_more_ranks_and_workers_than_it_has_samples(tmp_path: Path, clips: list[Clip]):
    build_dataset(tmp_path, clips, [5])
    settings = with_workers(SETTINGS.model_copy(update={"last_batch": "keep"}), 1)
    ranks = []
    for rank in range(8):
        one = reader(tmp_path, settings, rank=rank, num_ranks=8)
        ranks.append(list(one))
        one.close()
    assert [len(rank) for rank in ranks] == [1] * 8
    assert sorted(key for (batch,) in ranks for key in batch.keys) == [key_of(index) for index in range(5)]
    empty = next(batch for (batch,) in ranks if len(batch) == 0)
    assert empty.frames_BTCHW.shape == (0, 5, 3, 48, 48)
    assert empty.sounds_BN.shape == (0, 44_100)
    assert empty.mels_BMT is not None and empty.mels_BMT.shape == (0, 128, 87)
    assert empty.seconds_B.shape == (0,)


@pytest.mark.parametrize(("before", "after"), [((2, 1), (1, 0)), ((1, 0), (8, 0)), ((1, 1), (2, 1))])
def test_a_state_saved_in_mid_epoch_is_gone_on_with_exactly(
    numbered: Path, alone: list[list[list[tuple[str, str]]]], before: tuple[int, int], after: tuple[int, int]
):
    first = reader(numbered, with_workers(SETTINGS, before[1]), num_ranks=before[0])
    batches = iter(first)
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    assert (state["epoch"], state["batch"]) == (0, 3)

    rest: list[list[tuple[str, str]]] = [[] for _ in range(2 + 5)]
    for rank in range(after[0]):
        second = reader(numbered, with_workers(SETTINGS, after[1]), rank=rank, num_ranks=after[0])
        second.load_state_dict(state)
        for place, batch in enumerate(itertools.chain(*epochs(second, 2))):
            rest[place] += batch
    assert rest == alone[0][3:] + alone[1]


def test_the_state_at_the_end_of_an_epoch_begins_the_next(numbered: Path, alone: list[list[list[tuple[str, str]]]]):
    first = reader(numbered, SETTINGS)
    assert len(list(first)) == 5
    second = reader(numbered, SETTINGS)
    second.load_state_dict(first.state_dict())
    assert [told(batch) for batch in second] == alone[1]


def test_a_loop_that_is_left_early_is_gone_on_with(numbered: Path, alone: list[list[list[tuple[str, str]]]]):
    one = reader(numbered, with_workers(SETTINGS, 1))
    got = []
    for batch in one:
        got.append(told(batch))
        if len(got) == 2:
            break
    got += [told(batch) for batch in one]
    one.close()
    got += [told(batch) for batch in one]  # closed, and used again
    one.close()
    assert got == alone[0] + alone[1]


def test_two_readers_do_not_disturb_each_other(numbered: Path, alone: list[list[list[tuple[str, str]]]]):
    one, other = reader(numbered, with_workers(SETTINGS, 1)), reader(numbered, SETTINGS)
    pairs = [(told(a), told(b)) for a, b in zip(one, other, strict=True)]
    one.close()
    assert pairs == [(batch, batch) for batch in alone[0]]


def test_a_second_loop_ends_the_first(numbered: Path):
    one = reader(numbered)
    first = iter(one)
    next(first)
    next(iter(one))
    with pytest.raises(RuntimeError, match="another loop"):
        next(first)


def test_reading_draws_nothing_from_the_random_numbers_of_the_training(numbered: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = reader(numbered, with_workers(SMALL, 1))
    list(one)
    one.close()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"batch_size": 4}, "batch_size was 8 and is 4"), ({"shuffle_shards": 5}, "shuffle_shards was 2 and is 5")],
)
def test_a_state_of_another_order_is_refused(numbered: Path, changed: dict[str, int], message: str):
    state = reader(numbered).state_dict()
    with pytest.raises(DataError, match=message):
        reader(numbered, SMALL.model_copy(update=changed)).load_state_dict(state)


def test_a_state_serves_the_same_dataset_elsewhere_and_in_another_rendition_but_no_other_dataset(
    numbered: Path, tmp_path: Path, clips: list[Clip]
):
    state = reader(numbered).state_dict()
    build_dataset(tmp_path / "same", clips, [10, 3, 12, 1, 17])
    moved = reader(tmp_path / "same", SMALL.model_copy(update={"picture_px": 96}))
    moved.load_state_dict(state)
    build_dataset(tmp_path / "other", clips, [10, 3, 12, 1, 17], first=1)
    with pytest.raises(DataError, match=r"other\) has changed: its 43 clips are not the same ones"):
        reader(tmp_path / "other").load_state_dict(state)


def test_datasets_are_mixed_by_weight_even_with_the_same_keys(tmp_path: Path, clips: list[Clip]):
    build_dataset(tmp_path / "a", clips, [4, 4], name="a")
    build_dataset(tmp_path / "b", clips, [6, 6], name="b")
    mix = [DatasetMix(location=str(tmp_path / "a"), weight=1.5), DatasetMix(location=str(tmp_path / "b"))]
    settings = SMALL.model_copy(update={"num_frames": 5, "window_seconds": 1.0})
    one = Reader(mix, settings, split="train", seed=3)
    assert (one.num_samples, len(one)) == (24, 3)
    batches = [batch for _ in range(2) for batch in one]
    read = Counter(pair for batch in batches for pair in zip(batch.datasets, batch.keys, strict=True))
    assert read == {("a", key_of(i)): 3 for i in range(8)} | {("b", key_of(i)): 2 for i in range(12)}
    assert all(Counter(batch.datasets) == {"a": 4, "b": 4} for batch in batches)
    looks: dict[tuple[str, str], list[list[int]]] = {}
    for batch in batches:
        for row, pair in enumerate(zip(batch.datasets, batch.keys, strict=True)):
            looks.setdefault(pair, []).append([number_shown(picture) for picture in batch.frames_BTCHW[row].numpy()])
    assert all(len({tuple(numbers) for numbers in seen}) == len(seen) for seen in looks.values())  # never cropped alike


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_read_as_asked_is_refused_by_name(numbered: Path):
    with pytest.raises(DataError, match="batch_size 8 cannot be shared equally by 3 ranks"):
        reader(numbered, num_ranks=3)
    with pytest.raises(DataError, match="no sample of split 'test'; its splits are: train"):
        Reader([DatasetMix(location=str(numbered))], SMALL, split="test", seed=0)
    with pytest.raises(DataError, match="43 samples in an epoch: not one batch of 64"):
        reader(numbered, SMALL.model_copy(update={"batch_size": 64}))
    with pytest.raises(DataError, match="name at least one"):
        Reader([], SMALL, split="train", seed=0)


def test_the_next_epoch_is_read_ahead_in_training_only_and_its_order_stays(numbered: Path):
    for shuffle in (True, False):
        ahead = reader(numbered, with_workers(SETTINGS, 2), shuffle=shuffle)
        assert ahead.reads_ahead is shuffle
        found = epochs(ahead, 3)
        assert (ahead.epoch, ahead.batch) == (2, len(ahead))
        ahead.close()
        for epoch in range(3):
            anew = reader(numbered, SETTINGS, shuffle=shuffle)
            anew.load_state_dict({**anew.state_dict(), "epoch": epoch})
            assert epochs(anew, 1) == [found[epoch]]
