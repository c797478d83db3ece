"""Refuses a fit on several datasets if one trains on a video that another holds out. Each build splits its own sources only."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.dataset.manifest import dataset_root
from pipeline.dataset.tables import SAMPLES_NAME, read_table
from pipeline.errors import DataError, ManifestError, OutputError
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.remote_folder import read_folder
from pipeline.schema import State
from trainer.engine.run import FitDataset

logger = logging.getLogger(__name__)

NUM_NAMED = 3


def check_disjoint(datasets: Sequence[FitDataset]) -> None:
    """Raises DataError if one dataset trains on a video that another holds out. Videos are compared by the SHA-256 of their files.

    A dataset whose table of samples is missing or cannot be read is logged as a warning and not compared.
    """
    if len(datasets) < 2:
        return
    learned: dict[str, FitDataset] = {}
    held_out: dict[str, FitDataset] = {}
    urls: dict[str, str] = {}
    for dataset in datasets:
        for sha256, url, split in _videos(dataset):
            urls.setdefault(sha256, url)
            (learned if split == "train" else held_out)[sha256] = dataset
    if shared := sorted(learned.keys() & held_out.keys()):
        first = shared[0]
        first_urls = ", ".join(urls[sha256] for sha256 in shared[:NUM_NAMED])
        raise DataError(
            f"{len(shared)} videos are trained on in one dataset and held out in another, so that validation would flatter: {first_urls}"
            f"{', ...' if len(shared) > NUM_NAMED else ''}; the first in {learned[first].mix.location} and {held_out[first].mix.location}. "
            "Build both with the same [split], list the split of these sources in the source lists, or leave one out with its weight at 0"
        )


def _videos(dataset: FitDataset) -> set[tuple[str, str, str]]:
    """SHA-256, URL and split of every video with a kept clip."""
    videos = set()
    failures: tuple[type[Exception], ...] = (ManifestError, OutputError, *reading_failures())
    try:
        folder = read_folder(dataset_root(dataset.mix.location))
        for batch in read_table(folder, SAMPLES_NAME, ["video_sha256", "url", "split", "state"]):
            videos |= {
                (row["video_sha256"], row["url"], row["split"])
                for row in batch.to_pylist()
                if row["state"] == State.KEPT and row["video_sha256"] and row["split"]
            }
    except failures as error:
        logger.warning(
            "%s: its %s cannot be read (%s): it is not checked whether it holds out videos that another dataset trains on",
            dataset.mix.location,
            SAMPLES_NAME,
            error,
        )
    return videos
