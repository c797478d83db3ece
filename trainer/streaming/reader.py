"""The reader: batches of frames, sound and mel, streamed from the shards of one or more datasets.

The order of an epoch is cut into global batches, and each global batch into one slice for each rank. So the samples and their order
are the same for any number of ranks and workers, and every rank has the same number of batches.

    epoch        |  global batch 0   |  global batch 1   |  global batch 2   | rest
    2 ranks      |  rank 0 | rank 1  |  rank 0 | rank 1  |  rank 0 | rank 1  |
    2 workers       w 0       w 0       w 1       w 1       w 0       w 0
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Sampler

from pipeline.errors import DataError
from pipeline.runtime.remote import Retries
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.streaming.batches import Batch, ReadFailure, ReadResult, Work, watch_parent
from trainer.streaming.cache import ShardCache
from trainer.streaming.order import EpochOrder, Order, Ref
from trainer.streaming.sample import SampleSettings
from trainer.streaming.shards import SplitShards, open_dataset

LOG = logging.getLogger(__name__)

STATE_VERSION = 1

__all__ = ["Batch", "DatasetMix", "ReadFailure", "Reader", "ReaderSettings"]


class ReaderSettings(SampleSettings):
    """How samples are read, and what is taken of each."""

    batch_size: int = Field(default=64, ge=1)
    """Samples of one global batch: of all ranks together. A multiple of the number of ranks."""
    last_batch: Literal["drop", "keep"] | None = None
    """What becomes of the samples after the last full batch of an epoch: left out, or a batch that is shorter, in which some ranks may
    have no sample. None: dropped when shuffling (another rest each time), kept when not."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that read and decode, for each rank; 0: none, the reading is done while the training waits."""
    start_workers: Literal["forkserver", "spawn", "fork"] = "forkserver"
    """How they begin. ``fork`` is quickest, but may hang in a process that has threads."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches that each worker has ready ahead of the training."""
    shuffle_shards: int = Field(default=16, ge=1)
    """Shards whose samples are mixed with each other; the shards themselves are in random order. One: the fewest shards are open at a
    time; as many as there are: every order is possible."""
    cache_dir: str | None = None
    """Folder on a local disk for copies of remote shards. None: no copies, each sample is one request for a range of bytes, which moves
    no byte twice in an epoch but all of them in each. Datasets on local disks are always read where they lie."""
    cache_bytes: int = Field(default=50 << 30, ge=1)
    """Most bytes that the copies may take. It must hold the shards that are mixed with each other."""
    bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of a rank's samples in one epoch that may be unreadable before the run is given up. They are left out, never replaced."""
    bad_samples: int = Field(default=10, ge=0)
    """Number of a rank's samples in one epoch that may be unreadable even where that is more than ``bad_share``; never more than half."""
    retries: Retries = Retries()
    """What is done when a server does not answer as it should."""


class DatasetMix(Settings):
    """One dataset of a mix."""

    location: str
    """Its folder or manifest: a path, an HTTP address, or any URL that fsspec knows."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often an epoch reads each of its samples, on average. 1: once. 2.5: twice, and half of them a third time, another half in the
    next epoch. 0.25: a quarter of them, so that four epochs go through it once."""


class Reader:
    """Batches of one rank, epoch after epoch.

        for batch in reader:    # goes on where it stands, and ends with the epoch; the next loop is the next epoch
            ...

    A loop that is left early is gone on with by the next one. Settings are as documented in ReaderSettings and DatasetMix;
    ``rank`` is one of ``num_ranks`` processes that train together, each with its own reader and equal arguments.

    Raises DataError or ManifestError when the datasets cannot be read as asked; while iterating, DataError when more samples are
    bad than the settings allow, or when a worker was killed.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetMix],
        settings: ReaderSettings,
        *,
        split: str,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        shuffle: bool = True,
    ) -> None:
        _check(datasets, settings, rank, num_ranks)
        self.settings, self.rank, self.num_ranks = settings, rank, num_ranks
        self.epoch = 0
        """The epoch of the next batch."""
        self.batch = 0
        """Batches of that epoch which were handed out."""
        self.num_bad = 0
        """Samples of this epoch that this rank could not read."""
        self._bad: dict[ReadFailure, int] = {}
        self.datasets = tuple(
            open_dataset(mix.location, split, settings.picture_px, upscale=settings.upscale, retries=settings.retries)
            for mix in datasets
        )
        """What is read: split and rendition of each dataset of the mix."""
        self._order = Order(
            [[shard.num_samples for shard in dataset.shards] for dataset in self.datasets],
            [mix.weight for mix in datasets],
            seed=seed,
            shuffle=shuffle,
            window=settings.shuffle_shards,
        )
        self._planned: tuple[int, EpochOrder] | None = None
        parts = [(dataset.identity, mix.weight) for dataset, mix in zip(self.datasets, datasets, strict=True)]
        self._identity = {
            "datasets": stable_hash(*parts),
            "split": split,
            "seed": seed,
            "shuffle": shuffle,
            "batch_size": settings.batch_size,
            "shuffle_shards": settings.shuffle_shards,
            "last_batch": self._last_batch(shuffle),
        }
        if len(self) == 0:
            raise DataError(
                f"split {split!r} has {self._order.num_samples} samples in an epoch: not one batch of {settings.batch_size}; "
                "lower batch_size, or set last_batch to 'keep'"
            )
        self._tasks = _Tasks(self)
        self._work = Work(
            self.datasets, settings, settings.retries, _cache(self.datasets, settings), seed=seed, shuffle=shuffle
        )
        self._loader: DataLoader[ReadResult] | None = None
        self._outcomes: Iterator[ReadResult] | None = None
        """What the workers have ready and at work, from where the reader stands on. None: nothing."""
        self._walks = 0

    def _last_batch(self, shuffle: bool) -> str:
        return self.settings.last_batch or ("drop" if shuffle else "keep")

    def __len__(self) -> int:
        """Batches of an epoch; the same on every rank."""
        whole, rest = divmod(self._order.num_samples, self.settings.batch_size)
        return whole + (rest > 0 and self._identity["last_batch"] == "keep")

    @property
    def num_samples(self) -> int:
        """Samples that an epoch hands out, on all ranks together, bad ones included."""
        return min(self._order.num_samples, len(self) * self.settings.batch_size)

    @property
    def bad(self) -> tuple[tuple[ReadFailure, int], ...]:
        """Everything that this rank could not read so far, in all epochs, with how often a sample was left out for it."""
        return tuple(self._bad.items())

    def __iter__(self) -> Iterator[Batch]:
        if self.batch >= len(self):
            self.epoch, self.batch, self.num_bad = self.epoch + 1, 0, 0
        self._walks += 1
        walk = self._walks
        while self.batch < len(self):
            # not kept meanwhile: whatever goes wrong, the next loop begins anew where this one stands
            outcomes = iter(self._started()) if self._outcomes is None else self._outcomes
            self._outcomes = None
            outcome = self._next(outcomes)
            if walk != self._walks:
                raise RuntimeError(
                    "another loop over this reader was begun, or it was closed, while this one was going on"
                )
            self._count(outcome.bad)
            self.batch += 1
            if self.reads_ahead or self.batch < len(self):
                self._outcomes = outcomes
            yield outcome.batch
            if walk != self._walks:
                raise RuntimeError(
                    "another loop over this reader was begun, or it was closed, while this one was going on"
                )

    @property
    def reads_ahead(self) -> bool:
        """Whether workers begin the next epoch while this one is not over: where epochs follow each other, in training."""
        return bool(self._identity["shuffle"])

    def state_dict(self) -> dict[str, Any]:
        """Where the reader stands: after the last batch that was handed out, whatever the workers have ready. Plain values,
        the same on every rank: one rank's state serves all, and any other number of ranks and workers.
        """
        return {"version": STATE_VERSION, "epoch": self.epoch, "batch": self.batch, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there. Raises DataError when the state is of other datasets or settings, which order otherwise."""
        others = [
            "the datasets or their weights have changed"
            if name == "datasets"
            else f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in {"version": STATE_VERSION, **self._identity}.items()
            if state.get(name) != value
        ]
        if others:
            raise DataError(
                f"the reader's saved state is of another order: {'; '.join(others)}. Use what it was saved with, or start anew"
            )
        self.epoch, self.batch, self.num_bad = int(state["epoch"]), int(state["batch"]), 0
        self._walks += 1
        self._outcomes = None

    def close(self) -> None:
        """Ends the workers and closes the files. The reader can be used again."""
        self._walks += 1
        self._loader = self._outcomes = None
        self._work.close()

    def order_of(self, epoch: int) -> EpochOrder:
        """What an epoch reads, in order, on all ranks together."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._order.epoch(epoch))
        return self._planned[1]

    def _started(self) -> DataLoader[ReadResult]:
        if self._loader is None:
            number = self.settings.num_workers
            if number and self.settings.start_workers == "forkserver":
                torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
            self._loader = DataLoader(
                self._work,
                batch_size=None,
                sampler=self._tasks,
                num_workers=number,
                collate_fn=_as_it_is,
                worker_init_fn=watch_parent if number else None,
                multiprocessing_context=self.settings.start_workers if number else None,
                prefetch_factor=self.settings.prefetch_batches if number else None,
                persistent_workers=number > 0,
                generator=torch.Generator(),  # its own, so that reading draws nothing from the training's
            )
        return self._loader

    def _next(self, outcomes: Iterator[ReadResult]) -> ReadResult:
        try:
            return next(outcomes)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise DataError(
                f"a process that reads samples was killed ({error}): most often for want of memory. Lower num_workers, "
                "prefetch_batches or batch_size, or give /dev/shm more room; the reader's state is kept"
            ) from error

    def _count(self, bad: Sequence[ReadFailure]) -> None:
        for one in bad:
            if one not in self._bad:
                LOG.warning("left out: %s", one)
            self._bad[one] = self._bad.get(one, 0) + 1
        self.num_bad += len(bad)
        share = math.ceil(self.num_samples / self.num_ranks)
        few = min(self.settings.bad_samples, math.ceil(share / 2))
        allowed = max(few, math.floor(self.settings.bad_share * share))
        if bad and self.num_bad > allowed:
            raise DataError(
                f"{self.num_bad} samples of epoch {self.epoch} could not be read on rank {self.rank}, of {share} that it is to read; "
                f"bad_share and bad_samples allow {allowed}. The first of all that were met:\n  "
                + "\n  ".join(f"{one} ({times} times)" for one, times in list(self._bad.items())[:10])
            )


def _as_it_is(outcome: Any) -> Any:
    return outcome


class _Tasks(Sampler[tuple[Ref, ...]]):
    """A rank's slice of every batch from where the reader stands to the end of the epoch; without end where the reader reads ahead."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[tuple[Ref, ...]]:
        reader = self._reader
        epoch, first, size = reader.epoch, reader.batch, reader.settings.batch_size
        while True:
            order = reader.order_of(epoch)
            for batch in range(first, len(reader)):
                start, stop = batch * size, min((batch + 1) * size, reader.num_samples)
                cuts = [start + (stop - start) * rank // reader.num_ranks for rank in (reader.rank, reader.rank + 1)]
                yield order.refs(*cuts)
            if not reader.reads_ahead:
                return
            epoch, first = epoch + 1, 0


def _check(datasets: Sequence[DatasetMix], settings: ReaderSettings, rank: int, num_ranks: int) -> None:
    if not datasets:
        raise DataError("no dataset is named: name at least one")
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} is not one of {num_ranks}")
    if settings.batch_size % num_ranks:
        raise DataError(
            f"batch_size {settings.batch_size} cannot be shared equally by {num_ranks} ranks: choose a multiple of {num_ranks}"
        )
    if settings.decoder == "torchcodec":
        from trainer.streaming.torchcodec_frames import check_device  # noqa: PLC0415 (few use it)

        check_device(settings.decoder_device)


def _cache(datasets: Sequence[SplitShards], settings: ReaderSettings) -> ShardCache | None:
    """The cache, if there is use for it. Raises DataError when it cannot hold what is mixed, and would fetch it again and again."""
    remote = [dataset for dataset in datasets if dataset.local_root is None]
    if settings.cache_dir is None or not remote:
        return None
    sizes = [sorted((shard.num_bytes for shard in dataset.shards), reverse=True) for dataset in remote]
    needed = sum(sum(of_one[: settings.shuffle_shards]) for of_one in sizes)
    if needed > settings.cache_bytes:
        raise DataError(
            f"cache_bytes: {settings.cache_bytes} bytes do not hold the shards that are mixed with each other ({needed} bytes): "
            f"raise it, lower shuffle_shards ({settings.shuffle_shards}), or set cache_dir to None"
        )
    cache = ShardCache(Path(settings.cache_dir).expanduser(), settings.cache_bytes)
    cache.prepare()
    return cache
