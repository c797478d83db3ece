"""Batches: what one holds, and how a worker makes one of a list of samples to read.

Shape suffixes: B samples; T frames, C=3 colours, H, W pixels; N samples of sound; M mel bands, T mel frames.
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


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's slice of a global batch. It is shorter by the samples that could not be read, down to none at all: then its tensors
    have no rows, and their other sides as always.
    """

    keys: tuple[str, ...]
    datasets: tuple[str, ...]
    """Name of the dataset of each sample: two may hold the same key."""
    source_ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    captions: tuple[str | None, ...]
    frames_BTCHW: Tensor
    """RGB, uint8."""
    sounds_BN: Tensor
    """Mono, float32, at 44.1 kHz."""
    mels_BMT: Tensor | None
    """``pipeline.encoders.mel``; None where they are not wanted."""
    seconds_B: Tensor
    """Length of the real sound in each window, float32; silence follows it."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """Something that could not be read, and was left out."""

    dataset: str
    shard: str
    """Path or URL."""
    key: str | None
    """None: the shard itself is at fault."""
    member: str | None
    """``flac``, ``json``, ``mp4``, ``tar`` (what holds them); for a shard ``index`` or None."""
    reason: str

    def __str__(self) -> str:
        what = f"{self.key}.{self.member}" if self.key else "shard" if self.member is None else f"shard's {self.member}"
        return f"{self.shard}: {what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a worker made of its task."""

    batch: Batch
    bad: tuple[ReadFailure, ...]
    """One for each sample that is not in the batch."""


class Work(torch.utils.data.Dataset[ReadResult]):
    """Makes batches of tasks, in whichever process it is."""

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
        frames_BTCHW = torch.empty((count, chosen.num_frames, 3, side, side), dtype=torch.uint8)
        sounds_BN = torch.empty((count, decoder.num_sound_samples))
        mels_BMT = torch.empty((count, *decoder.mel_shape)) if chosen.mel else None
        for row, (_, sample) in enumerate(samples):
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
        )


def watch_parent(worker: int) -> None:
    """Begins in each worker. A process that was killed cannot end its workers, and torch's own watch looks at who forked them: here
    a server process, which stays as long as they do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name=f"parent-of-reader-{worker}", daemon=True).start()
