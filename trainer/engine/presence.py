"""Whether every file that a fit would read is there, with the size that its manifest records. Asked before any work: a stage may
begin days after the command.
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
"""What a fit reads."""
NUM_ASKING = 16
"""Requests at the same time, of a dataset elsewhere."""
MAX_SHOWN = 5


def check_present(
    datasets: Iterable[FitDataset], sides_px: Sequence[int | None], *, upscale: bool, retries: Retries
) -> None:
    """Raises DataError, naming files, where tars or indexes are missing or of another size.

    ``sides_px``: sides of the pictures that are read, which decide the renditions; None: any rendition may be. Files of other
    renditions are looked at on this machine's disks alone, and only warned of.
    """
    problems: list[str] = []
    for dataset in datasets:
        manifest, root = dataset.manifest, dataset_root(dataset.mix.location)
        shards = [shard for shard in manifest.shards if shard.split in SPLITS]
        names = {name for side in sides_px for name in _renditions(manifest, side, upscale=upscale)}
        read = [shard for shard in shards if shard.rendition in names]
        if missing := _missing(root, read, retries):
            shown = [f"  {problem}" for problem in missing[:MAX_SHOWN]]
            more = [f"  and {len(missing) - MAX_SHOWN} more"] if len(missing) > MAX_SHOWN else []
            problems += [f"{root}: {len(missing)} of {2 * len(read)} files are not as its manifest says", *shown, *more]
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
    """Names of those that may be read for pictures of that side. Raises DataError."""
    if side_px is None:
        return [rendition.name for rendition in manifest.renditions]
    return [chosen_rendition(manifest, side_px, upscale=upscale).name]


def _missing(root: str, shards: Sequence[ShardRecord], retries: Retries) -> list[str]:
    """What is wrong with the files of some shards, by path."""
    wanted: dict[str, int | None] = {}
    for shard in shards:
        wanted |= {shard.path: shard.num_bytes, shard.index_path: None}
    folder = local_folder(root)
    if folder is not None:
        found = [_compared(name, size, lambda name: _local_bytes(folder / name)) for name, size in wanted.items()]
    elif wanted:
        size_of = Remote(root, retries).num_bytes
        with ThreadPoolExecutor(NUM_ASKING) as pool:
            found = list(pool.map(lambda each: _compared(each[0], each[1], size_of), wanted.items()))
    else:
        found = []
    return sorted(problem for problem in found if problem)


def _local_bytes(path: Path) -> int:
    """Raises ShardError."""
    try:
        if not path.is_file():
            raise ShardError("missing", "is missing")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise ShardError("unreadable", f"cannot be read: {error.strerror or error}") from error


def _compared(name: str, wanted: int | None, size_of: Callable[[str], int | None]) -> str:
    """Empty: it is there. ``wanted``: bytes; None: any but none."""
    try:
        size = size_of(name)
    except ShardError as error:
        return f"{name} {error}"
    if size is None or size == wanted or (wanted is None and size > 0):
        return ""
    return f"{name} has {size:,} bytes" + (f", not {wanted:,}" if wanted is not None else "")
