"""The order in which samples are read: a function of the seed and the epoch, whoever reads and however many they are.

It needs no more of a dataset than the number of samples in each of its shards. A dataset is read in rounds, one after another; a
round takes every sample once. With weight 1 a round is an epoch; with weight 2.5 an epoch takes two rounds and a half, and the next
one goes on where it ended.

    shards of a round, shuffled      3 0 6 | 1 5 2 | 4        in windows of so many shards
    samples of a window, shuffled    . . . . . . . . . .      so that shards are read nearly one after another
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
    """One sample to be read: where it stands, and which time it is read."""

    dataset: int
    shard: int
    index: int
    """Within the shard."""
    round: int
    """How many rounds through the dataset went before: random crops depend on it."""


class EpochOrder:
    """The samples of one epoch, in order. Holds 12 bytes for each."""

    def __init__(self, samples: Ints, rounds: npt.NDArray[np.int32], firsts: Ints, starts: Ints) -> None:
        self._samples, self._rounds, self._firsts, self._starts = samples, rounds, firsts, starts

    def __len__(self) -> int:
        return len(self._samples)

    def refs(self, start: int, stop: int) -> tuple[Ref, ...]:
        """The samples ``[start, stop)`` of the epoch."""
        found = []
        for sample, number in zip(self._samples[start:stop], self._rounds[start:stop], strict=True):
            shard = int(np.searchsorted(self._firsts, sample, "right")) - 1
            dataset = int(np.searchsorted(self._starts, shard, "right")) - 1
            found.append(
                Ref(dataset, shard - int(self._starts[dataset]), int(sample - self._firsts[shard]), int(number))
            )
        return tuple(found)


class Order:
    """Plans epochs over several datasets.

    ``shard_sizes`` holds the number of samples of each shard, by dataset; every shard has at least one.
    ``weights``: how often an epoch reads each sample of that dataset, on average; an epoch takes
    ``max(1, round(weight * samples))`` of it. ``window`` is a number of shards.
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
        """Samples that an epoch takes of each dataset."""

    @property
    def num_samples(self) -> int:
        """Samples of one epoch, of all datasets together."""
        return sum(self.taken)

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of epoch 0, 1, ...

        Shuffled datasets are interleaved evenly: every stretch of the epoch holds them in the proportion of the whole.
        Others follow one another.
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
        """Samples of one dataset in one epoch, numbered over all datasets, and the round of each."""
        total, taken = int(self._sizes[dataset].sum()), self.taken[dataset]
        begin, end = epoch * taken, (epoch + 1) * taken
        samples, rounds = [], []
        for number in range(begin // total, -(-end // total)):
            part = self._round(dataset, number)[max(begin - number * total, 0) : end - number * total]
            samples.append(part)
            rounds.append(np.full(len(part), number, np.int32))
        return np.concatenate(samples), np.concatenate(rounds)

    def _round(self, dataset: int, number: int) -> Ints:
        """Every sample of the dataset once, numbered over all datasets."""
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
    """A number that looks random for each number: the output function of SplitMix64 (Steele, Lea, Flood 2014, fig. 16).

    Written out here because numpy may change the streams of its own generators from one version to the next.
    """
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
