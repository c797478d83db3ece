"""Batches: what a batch holds, and how a worker reads the samples of one.

Shape suffixes: B samples; T frames, K neighbouring frames, C=3 colours, H, W pixels; N samples of sound; M mel bands, T mel frames.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.utils.data
from torch import Tensor

from pipeline.encoders.device import one_thread
from pipeline.errors import ShardError
from pipeline.runtime.remote import Retries
from trainer.streaming.cache import ShardCache
from trainer.streaming.order import Ref
from trainer.streaming.sample import Decoded, RandomChoices, SampleDecoder, SampleError, SampleSettings
from trainer.streaming.shards import ShardReader, SplitShards
from trainer.streaming.stop_signals import outlive_stop_signals


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's slice of a global batch.

    Samples that could not be read are left out, so a slice may be shorter, or empty. An empty slice has tensors with 0 rows; their
    other sides are the usual ones.
    """

    keys: tuple[str, ...]
    datasets: tuple[str, ...]
    """Name of the dataset of each sample: two may hold the same key."""
    source_ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    captions: tuple[str | None, ...]
    frames_BTCHW: Tensor
    """RGB, uint8. T is 0 where the settings ask for no pictures."""
    sounds_BN: Tensor
    """Mono, float32, at 44.1 kHz."""
    mels_BMT: Tensor | None
    """Log-mel spectrograms (``pipeline.encoders.mel``). None: the settings do not ask for them."""
    seconds_B: Tensor
    """Length of the sound in each window, in seconds, float32; the rest of the window is silence."""
    bursts_BKCHW: Tensor | None = None
    """Neighbouring frames, RGB, uint8. None: the settings do not ask for them."""
    burst_starts_B: Tensor | None = None
    """Number of the first of them, counted from the window's start at ``burst_fps``, int64."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """A sample or a shard that could not be read."""

    dataset: str
    shard: str
    """Path or URL."""
    key: str | None
    """Key of the sample. None: the whole shard cannot be read."""
    member: str | None
    """The damaged member: ``flac``, ``json``, ``mp4``, or ``tar`` for the part of the tar that holds them. For shards ``index`` or None."""
    reason: str

    def __str__(self) -> str:
        what = f"{self.key}.{self.member}" if self.key else "shard" if self.member is None else f"shard's {self.member}"
        return f"{self.shard}: {what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a worker returns for one task: the batch, and what it could not read."""

    batch: Batch
    bad: tuple[ReadFailure, ...]
    """One entry for each sample of the task that is not in the batch."""


class Work(torch.utils.data.Dataset[ReadResult]):
    """Reads and decodes the samples of a task. Runs in a worker process, or in the training process without workers."""

    def __init__(
        self,
        datasets: Sequence[SplitShards],
        settings: SampleSettings,
        retries: Retries,
        cache: ShardCache | None,
        *,
        seed: int,
        shuffle: bool,
    ) -> None:
        self._names = tuple(dataset.name for dataset in datasets)
        self._settings, self._seed, self._shuffle = settings, seed, shuffle
        self._shards = ShardReader(datasets, retries, cache)
        self._decoder = SampleDecoder(settings)

    def close(self) -> None:
        self._shards.close()

    def __getitem__(self, task: tuple[Ref, ...]) -> ReadResult:
        with one_thread():
            return self._outcome(task)

    def _outcome(self, task: Sequence[Ref]) -> ReadResult:
        samples: list[tuple[str, Decoded]] = []
        bad: list[ReadFailure] = []
        for ref in task:
            name, where = self._names[ref.dataset], self._shards.where(ref.dataset, ref.shard)
            key = None
            try:
                place, data = self._shards.read(ref.dataset, ref.shard, ref.index)
                key = place.key
                draw = RandomChoices(self._seed, ref.round, key, self._shuffle)
                samples.append((name, self._decoder.decode(place, data, draw)))
            except ShardError as error:
                bad.append(ReadFailure(name, where, None, "index" if error.code == "index" else None, str(error)))
            except SampleError as error:
                bad.append(ReadFailure(name, where, key, error.code, str(error)))
        return ReadResult(self._batched(samples), tuple(bad))

    def _batched(self, samples: Sequence[tuple[str, Decoded]]) -> Batch:
        count, chosen, decoder = len(samples), self._settings, self._decoder
        side = chosen.picture_px
        frames_BTCHW = torch.empty((count, decoder.num_pictures, 3, side, side), dtype=torch.uint8)
        sounds_BN = torch.empty((count, decoder.num_sound_samples))
        mels_BMT = torch.empty((count, *decoder.mel_shape)) if chosen.mel else None
        bursts_BKCHW = burst_starts_B = None
        if decoder.num_in_burst:
            bursts_BKCHW = torch.empty((count, decoder.num_in_burst, 3, side, side), dtype=torch.uint8)
            burst_starts_B = torch.tensor([sample.burst_start for _, sample in samples], dtype=torch.int64)
        for row, (_, sample) in enumerate(samples):
            if bursts_BKCHW is not None:
                bursts_BKCHW[row] = torch.from_numpy(sample.burst_KCHW)
            frames_BTCHW[row] = torch.from_numpy(sample.frames_TCHW)
            sounds_BN[row] = torch.from_numpy(sample.sound_N)
            if mels_BMT is not None and sample.mel_MT is not None:
                mels_BMT[row] = sample.mel_MT
        return Batch(
            keys=tuple(sample.key for _, sample in samples),
            datasets=tuple(name for name, _ in samples),
            source_ids=tuple(sample.source_id for _, sample in samples),
            labels=tuple(sample.labels for _, sample in samples),
            captions=tuple(sample.caption for _, sample in samples),
            frames_BTCHW=frames_BTCHW,
            sounds_BN=sounds_BN,
            mels_BMT=mels_BMT,
            seconds_B=torch.tensor([sample.seconds for _, sample in samples], dtype=torch.float32),
            bursts_BKCHW=bursts_BKCHW,
            burst_starts_B=burst_starts_B,
        )


def watch_parent(worker: int) -> None:
    """Ends this worker process when the process that reads from it ends, and not before; called in each worker at its start.

    A killed process cannot end its workers. torch's own watchdog looks at the process that forked the worker: with forkserver that is
    the server, which lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    outlive_stop_signals()
    threading.Thread(target=watch, name=f"parent-of-reader-{worker}", daemon=True).start()
