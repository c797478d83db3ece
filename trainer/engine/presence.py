"""Checks, before any work, that every file that a fit reads exists with the size in its manifest. A stage may start days after the
command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.dataset.manifest import Manifest, ShardRecord, dataset_root
from pipeline.errors import DataError, ShardError
from pipeline.runtime.remote import Remote, Retries
from trainer.engine.run import FitDataset
from trainer.streaming.shards import chosen_rendition, local_folder

LOG = logging.getLogger(__name__)

SPLITS = ("train", "validation")
"""The splits that a fit reads."""
NUM_ASKING = 16
"""Parallel requests to the server of a remote dataset."""
MAX_SHOWN = 5


def check_present(
    datasets: Iterable[FitDataset], sides_px: Sequence[int | None], *, upscale: bool, retries: Retries
) -> None:
    """Raises DataError, with the names of the files, if tars or indexes are missing or have another size.

    ``sides_px`` are the sides of the pictures that the stages read, which decide the renditions; None: any rendition. Files of other
    renditions are checked only on local disks, and reported as a warning.
    """
    problems: list[str] = []
    for dataset in datasets:
        manifest, root = dataset.manifest, dataset_root(dataset.mix.location)
        shards = [shard for shard in manifest.shards if shard.split in SPLITS]
        names = {name for side in sides_px for name in _renditions(manifest, side, upscale=upscale)}
        needed = [shard for shard in shards if shard.rendition in names]
        if missing := _missing(root, needed, retries):
            shown = [f"  {problem}" for problem in missing[:MAX_SHOWN]]
            more = [f"  and {len(missing) - MAX_SHOWN} more"] if len(missing) > MAX_SHOWN else []
            problems += [
                f"{root}: {len(missing)} of {2 * len(needed)} files are not as its manifest says",
                *shown,
                *more,
            ]
        elif local_folder(root) is not None:
            others = _missing(root, [shard for shard in shards if shard.rendition not in names], retries)
            if others:
                LOG.warning(
                    "%s: %d files that this fit does not read are not as its manifest says: %s",
                    root,
                    len(others),
                    others[0],
                )
    if problems:
        remedy = "copy them there again, or build the dataset again"
        raise DataError("\n".join([*problems, f"This fit reads them: {remedy}"]))


def _renditions(manifest: Manifest, side_px: int | None, *, upscale: bool) -> list[str]:
    """Names of the renditions that may be read for pictures of this side. Raises DataError if none is large enough."""
    if side_px is None:
        return [rendition.name for rendition in manifest.renditions]
    return [chosen_rendition(manifest, side_px, upscale=upscale).name]


def _missing(root: str, shards: Sequence[ShardRecord], retries: Retries) -> list[str]:
    """The problems with the files of these shards, one line each, sorted by path."""
    wanted: dict[str, int | None] = {}
    for shard in shards:
        wanted |= {shard.path: shard.num_bytes, shard.index_path: None}
    folder = local_folder(root)
    if folder is not None:
        problems = [_compared(name, size, lambda name: _local_bytes(folder / name)) for name, size in wanted.items()]
    elif wanted:
        size_of = Remote(root, retries).num_bytes
        with ThreadPoolExecutor(NUM_ASKING) as pool:
            problems = list(pool.map(lambda each: _compared(each[0], each[1], size_of), wanted.items()))
    else:
        problems = []
    return sorted(problem for problem in problems if problem)


def _local_bytes(path: Path) -> int:
    """Size of a file that can be opened. Raises ShardError for any other."""
    try:
        if not path.is_file():
            raise ShardError("missing", "is missing")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise ShardError("unreadable", f"cannot be read: {error.strerror or error}") from error


def _compared(name: str, wanted: int | None, size_of: Callable[[str], int | None]) -> str:
    """The problem with a file, or an empty text. ``wanted``: its size in bytes; None: any size above 0."""
    try:
        size = size_of(name)
    except ShardError as error:
        return f"{name} {error}"
    if size is None or size == wanted or (wanted is None and size > 0):
        return ""
    return f"{name} has {size:,} bytes" + (f", not {wanted:,}" if wanted is not None else "")
