"""The order: every sample as often as it should, in places that seed and epoch decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from trainer.streaming.order import Order, Ref, scattered

SIZES = [10, 3, 12, 1, 17]


def order(
    sizes: list[list[int]], weights: list[float] | None = None, *, shuffle: bool = True, window: int = 2, seed: int = 7
) -> Order:
    return Order(sizes, weights or [1.0] * len(sizes), seed=seed, shuffle=shuffle, window=window)


def epoch(of: Order, number: int) -> list[Ref]:
    return list(of.epoch(number).refs(0, of.num_samples))


def places(refs: list[Ref]) -> list[tuple[int, int, int]]:
    return [(ref.dataset, ref.shard, ref.index) for ref in refs]


ALL = [(0, shard, index) for shard, size in enumerate(SIZES) for index in range(size)]


def test_an_epoch_holds_every_sample_once_and_no_two_epochs_or_seeds_are_alike():
    epochs = [places(epoch(order([SIZES]), number)) for number in range(3)]
    assert [sorted(one) for one in epochs] == [ALL] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert places(epoch(order([SIZES]), 1)) == epochs[1]
    assert places(epoch(order([SIZES], seed=8), 0)) != epochs[0]


def test_the_order_stays_the_same_from_version_to_version():
    refs = epoch(order([[3, 2, 4]], seed=0), 0)
    assert [(ref.shard, ref.index) for ref in refs] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (0, 2),
        (1, 1),
        (2, 2),
        (2, 3),
        (2, 0),
        (2, 1),
    ]
    # SplitMix64 of seed 0: its first three numbers, as published with the generator
    assert [int(n) for n in scattered(np.arange(1, 4), 0)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_without_shuffle_the_order_is_that_of_the_shards():
    plain = order([SIZES, [2]], shuffle=False)
    assert places(epoch(plain, 0)) == places(epoch(plain, 5)) == [*ALL, (1, 0, 0), (1, 0, 1)]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_samples_are_mixed_within_a_window_of_shards_only(window: int):
    assert (
        list(stretches([ref.shard for ref in epoch(order([SIZES], window=window), 0)]))
        == {
            1: [1] * 5,
            2: [2, 2, 1],
            5: [5],
        }[window]
    )


def stretches(shards: list[int]) -> Iterator[int]:
    """Cuts the order wherever every shard that was begun is at its end; how many shards lie in each part."""
    begun: set[int] = set()
    left = 0
    for shard in shards:
        left += (0 if shard in begun else SIZES[shard]) - 1
        begun.add(shard)
        if left == 0:
            yield len(begun)
            begun = set()


def test_a_weight_says_how_often_a_sample_is_read():
    mixed = order([[6, 4], [5, 3], [20]], [2.5, 1.0, 0.25])
    assert mixed.taken == (25, 8, 5)
    counts = [Counter(places(epoch(mixed, number))) for number in range(4)]
    assert {count for place, count in counts[0].items() if place[0] == 0} == {2, 3}
    two = counts[0] + counts[1]
    assert {two[place] for place in two if place[0] == 0} == {5}
    assert {one[place] for one in counts for place in one if place[0] == 1} == {1}
    four = sum(counts, Counter())
    assert [four[2, 0, index] for index in range(20)] == [1] * 20


def test_a_round_goes_on_in_the_next_epoch_and_is_what_random_crops_hang_on():
    refs = epoch(order([[4]], [2.5]), 1)
    assert [ref.round for ref in refs] == [2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    assert {ref.round for ref in epoch(order([SIZES]), 6)} == {6}


def test_datasets_are_interleaved_evenly():
    datasets = [ref.dataset for ref in epoch(order([[300], [100]]), 0)]
    for start in range(0, 400, 40):
        assert Counter(datasets[start : start + 40]) == {0: 30, 1: 10}


def test_a_part_of_an_epoch_is_that_part():
    whole = order([SIZES, [9, 9]])
    refs = epoch(whole, 3)
    assert list(whole.epoch(3).refs(11, 29)) == refs[11:29]
    assert whole.epoch(3).refs(5, 5) == ()
