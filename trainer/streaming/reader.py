"""The reader: batches of frames, sound and mel, streamed from the shards of one or more datasets.

The order of an epoch is cut into global batches, and each global batch into one slice for each rank. The samples and their order are
therefore the same for any number of ranks and workers, and every rank gets the same number of batches.

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
from trainer.streaming.dataset_changes import dataset_changes, described
from trainer.streaming.order import EpochOrder, Order, Ref
from trainer.streaming.sample import SampleSettings
from trainer.streaming.shards import SplitShards, open_dataset
from trainer.streaming.stop_signals import start_fork_server

LOG = logging.getLogger(__name__)

STATE_VERSION = 1

__all__ = ["Batch", "DatasetMix", "ReadFailure", "Reader", "ReaderSettings"]


class ReaderSettings(SampleSettings):
    """How samples are read, and what is read of each."""

    batch_size: int = Field(default=64, ge=1)
    """Samples in one global batch, over all ranks. A multiple of the number of ranks."""
    last_batch: Literal["drop", "keep"] | None = None
    """What happens to the samples after the last full batch of an epoch. drop: they are left out. keep: they make a shorter batch, in which
    some ranks may have no sample. None: drop when shuffling (each epoch drops other samples), else keep."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that read and decode, for each rank. 0: the training process reads, and waits while it does."""
    start_workers: Literal["forkserver", "spawn", "fork"] = "forkserver"
    """How the worker processes are started. ``fork`` is fastest, but may hang in a process that has threads."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches that each worker prepares ahead of the training."""
    shuffle_shards: int = Field(default=16, ge=1)
    """Number of shards whose samples are mixed; the order of the shards is random in any case. 1: the fewest open shards. The number of
    all shards: every order of samples is possible."""
    cache_dir: str | None = None
    """Folder on a local disk for copies of remote shards. None: no copies; each sample is one range request, so that every epoch
    downloads the samples again. Datasets on local disks are never copied."""
    cache_bytes: int = Field(default=50 << 30, ge=1)
    """Largest total size of the copies, in bytes. The ``shuffle_shards`` shards that are mixed must fit."""
    bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of a rank's samples in one epoch that may be unreadable. More of them end the run. Unreadable samples are left out, never
    replaced."""
    bad_samples: int = Field(default=10, ge=0)
    """Number of a rank's samples in one epoch that may be unreadable even if that is more than ``bad_share``; never more than half of
    them."""
    retries: Retries = Retries()
    """How often, and after what waits, a request to a server is repeated."""


class DatasetMix(Settings):
    """One dataset of a mix, with its weight."""

    location: str
    """Folder or manifest of the dataset: a path, an HTTP address, or any URL that fsspec can open."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often an epoch reads each sample of the dataset, on average. 1: once. 2.5: twice, and one half of the samples a third time; the
    next epoch reads the other half a third time. 0.25: a quarter of the samples, so that four epochs read each once."""


class Reader:
    """Batches of one rank, epoch after epoch.

        for batch in reader:    # starts at the current position, ends with the epoch; the next loop reads the next epoch
            ...

    A loop that ends early is continued by the next loop. Settings are documented in ReaderSettings and DatasetMix. ``rank`` is one of
    ``num_ranks`` processes that train together; each has its own reader with otherwise equal arguments.

    Raises DataError or ManifestError when the datasets do not fit the settings or cannot be opened. Iterating raises DataError when
    more samples are unreadable than the settings allow, or when a worker was killed.
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
        """Epoch of the next batch, from 0."""
        self.batch = 0
        """Number of batches of this epoch that were returned."""
        self.num_bad = 0
        """Number of samples of this epoch that this rank could not read."""
        self._bad: dict[ReadFailure, int] = {}
        self.datasets = tuple(
            open_dataset(mix.location, split, settings.picture_px, upscale=settings.upscale, retries=settings.retries)
            for mix in datasets
        )
        """The shards that are read of each dataset of the mix."""
        self._order = Order(
            [[shard.num_samples for shard in dataset.shards] for dataset in self.datasets],
            [mix.weight for mix in datasets],
            seed=seed,
            shuffle=shuffle,
            window=settings.shuffle_shards,
        )
        self._planned: tuple[int, EpochOrder] | None = None
        self._described = described(self.datasets, [mix.weight for mix in datasets])
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
        """The workers' results from the current position on. None: the workers have no tasks."""
        self._num_loops = 0
        """Loops that were started, plus calls that make an open loop invalid."""

    def _last_batch(self, shuffle: bool) -> str:
        return self.settings.last_batch or ("drop" if shuffle else "keep")

    def __len__(self) -> int:
        """Number of batches in an epoch; the same on every rank."""
        whole, rest = divmod(self._order.num_samples, self.settings.batch_size)
        return whole + (rest > 0 and self._identity["last_batch"] == "keep")

    @property
    def num_samples(self) -> int:
        """Number of samples that an epoch reads, over all ranks, unreadable ones included."""
        return min(self._order.num_samples, len(self) * self.settings.batch_size)

    @property
    def bad(self) -> tuple[tuple[ReadFailure, int], ...]:
        """All that this rank could not read so far, over all epochs, and how many times a sample was left out because of it."""
        return tuple(self._bad.items())

    def __iter__(self) -> Iterator[Batch]:
        if self.batch >= len(self):
            self.epoch, self.batch, self.num_bad = self.epoch + 1, 0, 0
        self._num_loops += 1
        this_loop = self._num_loops
        while self.batch < len(self):
            # _outcomes is None until the batch is counted: after an error the next loop starts new workers' tasks at this position
            outcomes = iter(self._started()) if self._outcomes is None else self._outcomes
            self._outcomes = None
            outcome = self._next(outcomes)
            if this_loop != self._num_loops:
                raise RuntimeError(
                    "this loop over the reader is no longer valid: another loop was started, or the reader was closed or reset"
                )
            self._count(outcome.bad)
            self.batch += 1
            if self.reads_ahead or self.batch < len(self):
                self._outcomes = outcomes
            yield outcome.batch
            if this_loop != self._num_loops:
                raise RuntimeError(
                    "this loop over the reader is no longer valid: another loop was started, or the reader was closed or reset"
                )

    @property
    def reads_ahead(self) -> bool:
        """Whether workers start on the next epoch before this one ends. True when shuffling, which is training."""
        return bool(self._identity["shuffle"])

    def state_dict(self) -> dict[str, Any]:
        """The position after the last returned batch; batches that workers have prepared do not count.

        Plain values, equal on all ranks. The state of one rank serves every rank, and any other number of ranks and workers.
        """
        position = {"version": STATE_VERSION, "epoch": self.epoch, "batch": self.batch}
        return {**position, **self._identity, "described": self._described}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the position. Raises DataError for the state of other datasets or settings, because their order of samples differs."""
        others = [
            self._differs(name, state.get(name), value)
            for name, value in {"version": STATE_VERSION, **self._identity}.items()
            if state.get(name) != value and name != "datasets"
        ]
        remedy = "Use the former settings"
        if state.get("datasets") != self._identity["datasets"]:
            others += self._dataset_changes(state)
            remedy = "Put back the datasets as they were"
        if others:
            raise DataError(
                f"the saved position is one in another order of samples: {'; '.join(others)}. {remedy}, or start anew"
            )
        self.epoch, self.batch, self.num_bad = int(state["epoch"]), int(state["batch"]), 0
        self._num_loops += 1
        self._outcomes = None

    def _differs(self, name: str, was: object, is_: object) -> str:
        unequal = name == "batch_size" and isinstance(was, int) and was % self.num_ranks
        return f"{name} was {was!r} and is {is_!r}" + (
            f"; {self.num_ranks} ranks cannot share {was} equally" if unequal else ""
        )

    def _dataset_changes(self, state: Mapping[str, Any]) -> list[str]:
        try:
            return dataset_changes(state["described"], self._described)
        except (KeyError, TypeError):  # earlier versions did not describe them
            folders = ", ".join(dataset.root for dataset in self.datasets)
            return [f"the datasets or their weights have changed; they are now: {folders}"]

    def close(self) -> None:
        """Ends the workers and closes the files. The reader can be used again."""
        self._num_loops += 1
        self._loader = self._outcomes = None
        self._work.close()

    def order_of(self, epoch: int) -> EpochOrder:
        """The samples of an epoch, in order, over all ranks."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._order.epoch(epoch))
        return self._planned[1]

    def _started(self) -> DataLoader[ReadResult]:
        if self._loader is None:
            number = self.settings.num_workers
            if number and self.settings.start_workers == "forkserver":
                torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
                start_fork_server()
            self._loader = DataLoader(
                self._work,
                batch_size=None,
                sampler=self._tasks,
                num_workers=number,
                collate_fn=_unchanged,
                worker_init_fn=watch_parent if number else None,
                multiprocessing_context=self.settings.start_workers if number else None,
                prefetch_factor=self.settings.prefetch_batches if number else None,
                persistent_workers=number > 0,
                generator=torch.Generator(),  # DataLoader draws a seed: not from the generator of the training
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
                f"a process that reads samples was killed ({error}), most often because memory ran out. Lower num_workers, "
                "prefetch_batches or batch_size, or make /dev/shm larger; the reader keeps its position"
            ) from error

    def _count(self, bad: Sequence[ReadFailure]) -> None:
        """Counts and logs unreadable samples. Raises DataError when there are too many."""
        for failure in bad:
            if failure not in self._bad:
                LOG.warning("left out: %s", failure)
            self._bad[failure] = self._bad.get(failure, 0) + 1
        self.num_bad += len(bad)
        share = math.ceil(self.num_samples / self.num_ranks)
        few = min(self.settings.bad_samples, math.ceil(share / 2))
        allowed = max(few, math.floor(self.settings.bad_share * share))
        if bad and self.num_bad > allowed:
            raise DataError(
                f"{self.num_bad} samples of epoch {self.epoch} could not be read on rank {self.rank}, of {share} that it is to read; "
                f"bad_share and bad_samples allow {allowed}. The first that could not be read:\n  "
                + "\n  ".join(f"{failure} ({times} times)" for failure, times in list(self._bad.items())[:10])
            )


def _unchanged(result: Any) -> Any:
    """The collate function of the loader: a task's result is a batch already."""
    return result


class _Tasks(Sampler[tuple[Ref, ...]]):
    """This rank's slices, from the reader's position to the end of the epoch; if the reader reads ahead, of all later epochs too."""

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
        from trainer.streaming.torchcodec_frames import check_device  # noqa: PLC0415 (torchcodec may not be installed)

        check_device(settings.decoder_device)


def _cache(datasets: Sequence[SplitShards], settings: ReaderSettings) -> ShardCache | None:
    """The cache, or None if it is off or all datasets are local.

    Raises DataError when the shards that are mixed do not fit into it: each would be fetched again and again.
    """
    remote = [dataset for dataset in datasets if dataset.local_root is None]
    if settings.cache_dir is None or not remote:
        return None
    shard_sizes = [sorted((shard.num_bytes for shard in dataset.shards), reverse=True) for dataset in remote]
    needed = sum(sum(sizes[: settings.shuffle_shards]) for sizes in shard_sizes)
    if needed > settings.cache_bytes:
        raise DataError(
            f"cache_bytes: {settings.cache_bytes} bytes are too few for the shards that are mixed ({needed} bytes): "
            f"raise it, lower shuffle_shards ({settings.shuffle_shards}), or set cache_dir to None"
        )
    cache = ShardCache(Path(settings.cache_dir).expanduser(), settings.cache_bytes)
    cache.prepare()
    return cache
