"""The order in which samples are read. It depends on the seed and the epoch only, not on the number of ranks and workers.

All that is needed of a dataset is the number of samples in each shard. A dataset is read in rounds; a round reads every sample once.
With weight 1 an epoch is one round. With weight 2.5 an epoch is two and a half rounds, and the next epoch continues the half round.

    shards of a round, shuffled      3 0 6 | 1 5 2 | 4        cut into windows of a few shards
    samples of a window, shuffled    . . . . . . . . . .      so that only a window's shards are open at a time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import stable_hash

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ref:
    """One sample to read: its position, and the round that reads it."""

    dataset: int
    shard: int
    index: int
    """Within the shard."""
    round: int
    """Number of complete rounds through the dataset before this one. Random crops depend on it."""


class EpochOrder:
    """The samples of one epoch, in order. It takes 12 bytes a sample."""

    def __init__(self, samples: Ints, rounds: npt.NDArray[np.int32], firsts: Ints, starts: Ints) -> None:
        self._samples, self._rounds, self._firsts, self._starts = samples, rounds, firsts, starts

    def __len__(self) -> int:
        return len(self._samples)

    def refs(self, start: int, stop: int) -> tuple[Ref, ...]:
        """The samples ``[start, stop)`` of the epoch."""
        refs = []
        for sample, number in zip(self._samples[start:stop], self._rounds[start:stop], strict=True):
            shard = int(np.searchsorted(self._firsts, sample, "right")) - 1
            dataset = int(np.searchsorted(self._starts, shard, "right")) - 1
            refs.append(
                Ref(dataset, shard - int(self._starts[dataset]), int(sample - self._firsts[shard]), int(number))
            )
        return tuple(refs)


class Order:
    """Plans epochs over several datasets.

    ``shard_sizes``: number of samples in each shard of each dataset, 1 or more. ``weights``: how often an epoch reads each sample of
    the dataset, on average; an epoch reads ``max(1, round(weight * samples))`` of its samples. ``window``: number of shards whose
    samples are mixed.
    """

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        *,
        seed: int,
        shuffle: bool,
        window: int,
    ) -> None:
        assert len(shard_sizes) == len(weights) and all(len(sizes) for sizes in shard_sizes) and window > 0
        self._sizes = [np.asarray(sizes, np.int64) for sizes in shard_sizes]
        self._seed, self._shuffle, self._window = seed, shuffle, window
        self._starts = np.cumsum([0, *(len(sizes) for sizes in self._sizes)])[:-1]
        self._firsts = np.cumsum([0, *np.concatenate(self._sizes)])[:-1]
        totals = [int(sizes.sum()) for sizes in self._sizes]
        self.taken = tuple(max(1, round(weight * total)) for weight, total in zip(weights, totals, strict=True))
        """Number of samples that an epoch reads of each dataset."""

    @property
    def num_samples(self) -> int:
        """Number of samples in one epoch, over all datasets."""
        return sum(self.taken)

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of epoch 0, 1, ...

        With ``shuffle`` the datasets are interleaved evenly: every part of the epoch holds them in the same proportion. Without it
        they follow one another.
        """
        parts = [self._taken(dataset, epoch) for dataset in range(len(self._sizes))]
        samples = np.concatenate([part[0] for part in parts])
        rounds = np.concatenate([part[1] for part in parts])
        if self._shuffle and len(parts) > 1:
            places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.taken])
            even = np.argsort(places, kind="stable")
            samples, rounds = samples[even], rounds[even]
        return EpochOrder(samples, rounds, self._firsts, self._starts)

    def _taken(self, dataset: int, epoch: int) -> tuple[Ints, npt.NDArray[np.int32]]:
        """The samples of one dataset in one epoch, numbered over all datasets, and the round of each."""
        total, taken = int(self._sizes[dataset].sum()), self.taken[dataset]
        begin, end = epoch * taken, (epoch + 1) * taken
        samples, rounds = [], []
        for number in range(begin // total, -(-end // total)):
            part = self._round(dataset, number)[max(begin - number * total, 0) : end - number * total]
            samples.append(part)
            rounds.append(np.full(len(part), number, np.int32))
        return np.concatenate(samples), np.concatenate(rounds)

    def _round(self, dataset: int, number: int) -> Ints:
        """Every sample of the dataset once, in the order of a round, numbered over all datasets."""
        sizes, start = self._sizes[dataset], int(self._starts[dataset])
        first = int(self._firsts[start])
        if not self._shuffle:
            return first + np.arange(sizes.sum(), dtype=np.int64)
        key = int(stable_hash("order", self._seed, dataset, number), 16)
        place_of_shard = np.argsort(np.argsort(scattered(np.arange(len(sizes)), key), kind="stable"), kind="stable")
        windows = np.repeat(place_of_shard // self._window, sizes)
        chances = scattered(len(sizes) + np.arange(len(windows)), key)
        return first + np.lexsort((chances, windows)).astype(np.int64)


def scattered(numbers: Ints, key: int) -> npt.NDArray[np.uint64]:
    """A pseudo-random 64-bit number for each number: the output function of SplitMix64 (Steele, Lea and Flood 2014, figure 16).

    numpy's generators are not used, because numpy may change their streams between versions.
    """
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
