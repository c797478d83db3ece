"""Readers of the small datasets of :mod:`tests.datasets`."""

from __future__ import annotations

from pathlib import Path

from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

SETTINGS = ReaderSettings(picture_px=48, window_seconds=1.0, batch_size=8, num_workers=0, shuffle_shards=2)
SMALL = SETTINGS.model_copy(update={"num_frames": 1, "mel": False, "window_seconds": 0.2})
"""For tests that look at keys only."""


def reader(
    folder: Path | str, settings: ReaderSettings = SMALL, *, rank: int = 0, num_ranks: int = 1, shuffle: bool = True
) -> Reader:
    mix = [DatasetMix(location=str(folder))]
    return Reader(mix, settings, split="train", seed=3, rank=rank, num_ranks=num_ranks, shuffle=shuffle)
