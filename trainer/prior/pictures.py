"""Reads batches of pictures from a folder, in the form of the reader's batches: each picture is a clip of one frame.

The order depends only on the seed and the epoch. Each batch is divided into one slice for each rank.

Shape suffixes: B pictures, T = 1 frame, C = 3 colours, H W rows and columns.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.schema import stable_hash, unit_interval
from trainer.streaming.batches import Batch, ReadFailure

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
BATCHES_AHEAD = 2
NUM_THREADS = 4
"""Threads that decode; OpenCV releases the interpreter's lock."""
BAD_SHARE = 0.1
"""Share of the pictures of an epoch that may be unreadable. More of them end the fit."""


class PictureFolder:
    """Batches of one rank, epoch after epoch, with the interface of ``trainer.streaming.reader.Reader``.

    Unreadable pictures, and pictures with a short side below ``side_px`` (unless ``upscale``), are left out and listed in ``bad``; the
    batch is then shorter. Raises DataError for a folder with fewer pictures than a batch, and during iteration if too many pictures of
    an epoch are bad.
    """

    def __init__(
        self,
        folder: Path,
        *,
        side_px: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        shuffle: bool = True,
        upscale: bool = False,
    ) -> None:
        self.folder, self.side_px, self.batch_size, self.upscale = folder, side_px, batch_size, upscale
        self.seed, self.rank, self.num_ranks, self.shuffle = seed, rank, num_ranks, shuffle
        self.epoch = self.batch = 0
        """Epoch and number of the next batch."""
        self._bad: dict[ReadFailure, int] = {}
        self._order: tuple[int, Sequence[str]] | None = None
        """The last epoch whose order was computed, and that order."""
        if batch_size % num_ranks:
            raise DataError(f"batch_size {batch_size} cannot be shared equally by {num_ranks} ranks")
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.names = sorted(path.relative_to(folder).as_posix() for path in paths)
        if not len(self):
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(
                f"{folder} has {len(self.names)} pictures ({kinds}) in it and below: not one batch of {batch_size}; "
                f"lower prior.batch_size, or name another folder"
            )
        self._identity = {
            "pictures": stable_hash(*self.names),
            "seed": seed,
            "batch_size": batch_size,
            "shuffle": shuffle,
        }

    def __len__(self) -> int:
        """Number of batches in an epoch: full batches only when shuffling, else also the last, shorter one."""
        num_batches = len(self.names) / self.batch_size
        return math.floor(num_batches) if self.shuffle else math.ceil(num_batches)

    @property
    def bad(self) -> tuple[tuple[ReadFailure, int], ...]:
        """All that this rank could not read so far, and how many times a picture was left out because of it."""
        return tuple(self._bad.items())

    def __iter__(self) -> Iterator[Batch]:
        if self.batch >= len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        num_bad = 0
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pictures") as pool:
            pending: list[list[Future[NDArray[np.uint8] | ReadFailure]]] = []
            slices = iter(list(self._slices()))
            epoch = self.epoch
            try:
                while True:
                    for names in islice(slices, BATCHES_AHEAD + 1 - len(pending)):
                        pending.append([pool.submit(self._read, name, epoch) for name in names])
                    if not pending:
                        return
                    results = [future.result() for future in pending.pop(0)]
                    failures = [result for result in results if isinstance(result, ReadFailure)]
                    num_bad += self._count(failures, num_bad)
                    names = self._names_of(epoch, self.batch)
                    self.batch += 1
                    pictures = [
                        (name, result)
                        for name, result in zip(names, results, strict=True)
                        if not isinstance(result, ReadFailure)
                    ]
                    yield self._batch(pictures)
            finally:
                for future in (future for futures in pending for future in futures):
                    future.cancel()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last returned batch; the same on every rank."""
        return {"epoch": self.epoch, "batch": self.batch, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the position. Raises DataError for the state of other pictures or another order."""
        others = [name for name, value in self._identity.items() if state.get(name) != value]
        if others:
            raise DataError(
                f"{self.folder}: the saved state has other {', '.join(others)}. Restore the former settings and files, or start anew"
            )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def close(self) -> None:
        """Does nothing: no file is open between two batches."""

    def _slices(self) -> Iterator[Sequence[str]]:
        for batch in range(self.batch, len(self)):
            yield self._names_of(self.epoch, batch)

    def _names_of(self, epoch: int, batch: int) -> Sequence[str]:
        """The names of this rank's slice of a batch."""
        start, end = batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.names))
        own_start, own_end = (start + (end - start) * rank // self.num_ranks for rank in (self.rank, self.rank + 1))
        return self._order_of(epoch)[own_start:own_end]

    def _order_of(self, epoch: int) -> Sequence[str]:
        if not self.shuffle:
            return self.names
        if self._order is None or self._order[0] != epoch:
            order = list(self.names)
            random.Random(stable_hash("pictures", self.seed, epoch)).shuffle(order)
            self._order = (epoch, order)
        return self._order[1]

    def _read(self, name: str, epoch: int) -> NDArray[np.uint8] | ReadFailure:
        """(3, side, side) RGB: scaled to the short side, and cropped on the long side: at random when shuffling, else in the middle."""
        path = self.folder / name
        try:
            data = np.frombuffer(path.read_bytes(), np.uint8)
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        except (OSError, cv2.error) as error:
            return self._unreadable(name, str(error))
        if picture is None:
            return self._unreadable(name, "it is damaged or not a picture")
        short = min(picture.shape[:2])
        if short < self.side_px and not self.upscale:
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            return self._unreadable(name, f"it is {size}, smaller than {self.side_px} px; set reader.upscale to use it")
        height, width = (max(self.side_px, round(self.side_px * length / short)) for length in picture.shape[:2])
        if short != self.side_px:
            interpolation = cv2.INTER_AREA if short > self.side_px else cv2.INTER_CUBIC
            picture = cv2.resize(picture, (width, height), interpolation=interpolation)
        position = unit_interval("crop", self.seed, epoch, name) if self.shuffle else 0.5
        left, top = round(position * (width - self.side_px)), round(position * (height - self.side_px))
        square = picture[top : top + self.side_px, left : left + self.side_px, ::-1]
        return np.ascontiguousarray(square.transpose(2, 0, 1)).astype(np.uint8, copy=False)

    def _unreadable(self, name: str, reason: str) -> ReadFailure:
        return ReadFailure(self.folder.name, str(self.folder), name, "picture", reason)

    def _count(self, failures: Sequence[ReadFailure], num_before: int) -> int:
        """Counts and logs unreadable pictures, and returns their number. Raises DataError if this epoch has too many.

        ``num_before``: number of unreadable pictures earlier in the epoch.
        """
        for failure in failures:
            if failure not in self._bad:
                logger.warning("left out: %s", failure)
            self._bad[failure] = self._bad.get(failure, 0) + 1
        num_own = math.ceil(len(self.names) / self.num_ranks)
        num_bad = num_before + len(failures)
        if failures and num_bad > max(1, math.floor(BAD_SHARE * num_own)):
            raise DataError(
                f"{num_bad} of {num_own} pictures below {self.folder} could not be used, more than {BAD_SHARE:.0%}. "
                "The first:\n  " + "\n  ".join(str(failure) for failure in list(self._bad)[:10])
            )
        return len(failures)

    def _batch(self, pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> Batch:
        frames = [torch.from_numpy(picture)[None] for _, picture in pictures]
        empty = torch.zeros(0, 1, 3, self.side_px, self.side_px, dtype=torch.uint8)
        count = len(pictures)
        return Batch(
            keys=tuple(name for name, _ in pictures),
            datasets=(self.folder.name,) * count,
            source_ids=tuple(name for name, _ in pictures),
            labels=((),) * count,
            captions=(None,) * count,
            frames_BTCHW=torch.stack(frames) if frames else empty,
            sounds_BN=torch.zeros(count, 0),
            mels_BMT=None,
            seconds_B=torch.zeros(count),
        )
