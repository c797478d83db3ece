"""Finds samples in datasets: shards by the manifest, samples by a shard's index, and reads the bytes of one sample.

The members of a sample follow one another in the tar, so that one sample is one range of bytes. On a local disk that range is read.
Elsewhere it is one range request, or with a cache a read from the copy of the shard.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.manifest import Manifest, Rendition, ShardRecord, dataset_root, join, read_manifest
from pipeline.errors import DataError, ShardError
from pipeline.runtime.remote import Remote, Retries
from pipeline.schema import stable_hash
from trainer.streaming.cache import ShardCache

LOG = logging.getLogger(__name__)

BLOCK_BYTES = 512
"""Block size of a tar: members start and end at multiples of it."""
READ_MEMBERS = ("flac", "json", "mp4")
"""The members that are read. They come first in a sample, in this order; the embeddings after them are not read."""
OPEN_FILES = 64
OPEN_INDEXES = 128
FAILED_FOR_SECONDS = 60.0
"""How long a shard that could not be read is not tried again: each of its samples would wait for the same retries."""


@dataclass(frozen=True, slots=True)
class SplitShards:
    """The shards of one split of a dataset, in one rendition."""

    name: str
    root: str
    """Folder or URL that the paths of the shards are relative to."""
    rendition: str
    shards: tuple[ShardRecord, ...]
    identity: str
    """A hash of the samples, the same for every location and rendition of the dataset."""

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def local_root(self) -> Path | None:
        """The folder on this machine's disks. None: the dataset is elsewhere."""
        return local_folder(self.root)


def local_folder(root: str) -> Path | None:
    """The folder of a path or ``file://`` URL. None: any other URL."""
    if "://" not in root:
        return Path(root)
    return Path(root.removeprefix("file://")) if root.startswith("file:///") else None


def open_dataset(location: str, split: str, picture_px: int, *, upscale: bool, retries: Retries) -> SplitShards:
    """The shards of a split, from the manifest at a path or URL. Raises ManifestError, or DataError for a split without samples."""
    manifest = read_manifest(location, retries)
    rendition = chosen_rendition(manifest, picture_px, upscale=upscale)
    shards = manifest.shards_of(rendition.name, split)
    if not shards:
        splits = ", ".join(manifest.splits) or "none"
        raise DataError(f"{location}: it has no sample of split {split!r}; its splits are: {splits}")
    everything = sorted((s.path, s.sha256) for s in manifest.shards if s.split == split)
    return SplitShards(manifest.name, dataset_root(location), rendition.name, shards, stable_hash(split, everything))


def chosen_rendition(manifest: Manifest, picture_px: int, *, upscale: bool) -> Rendition:
    """The smallest rendition with a short side of at least ``picture_px``; else the rendition that keeps the sources' own sizes.

    Raises DataError if there is neither; with ``upscale`` the largest rendition is taken then.
    """
    sized = sorted((r.short_side_px, r.name) for r in manifest.renditions if r.short_side_px is not None)
    unsized = [r for r in manifest.renditions if r.short_side_px is None]
    by_name = {r.name: r for r in manifest.renditions}
    for short_side_px, name in sized:
        if short_side_px >= picture_px:
            return by_name[name]
    if unsized:
        return unsized[0]
    if upscale:
        return by_name[sized[-1][1]]
    sizes = ", ".join(f"{name} ({px} px)" for px, name in sized)
    raise DataError(
        f"dataset {manifest.name}: no rendition is large enough for pictures of {picture_px} px; there are: {sizes}. "
        "Lower picture_px, allow upscale, or build a larger rendition"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The bytes ``[start, end)`` of one sample in its shard, tar headers included."""

    key: str
    start: int
    end: int


def places_in(index: bytes, record: ShardRecord) -> list[Place]:
    """The place of each sample of a shard, read from its index. Raises ShardError for an index that is damaged or of another build."""
    try:
        summary = json.loads(index)
        if summary["shard"]["sha256"] != record.sha256:
            raise ShardError("index", "its index belongs to another build of the shard")
        places, end = [], 0
        for sample in summary["samples"]:
            spans = [(int(offset), int(offset) + int(size)) for offset, size in sample["members"].values()]
            wanted = [int(sum(sample["members"][name])) for name in READ_MEMBERS]
            places.append(Place(str(sample["key"]), end, _whole_blocks(max(wanted))))
            end = _whole_blocks(max(stop for _, stop in spans))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ShardError("index", f"its index is damaged ({type(error).__name__}: {error})") from error
    if len(places) != record.num_samples or any(p.end <= p.start or p.end > record.num_bytes for p in places):
        raise ShardError("index", f"its index does not fit it: {len(places)} samples of {record.num_samples}")
    return places


def _whole_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


class ShardReader:
    """Reads the bytes of samples. Files and connections are opened when a process first needs them."""

    def __init__(self, datasets: Sequence[SplitShards], retries: Retries, cache: ShardCache | None) -> None:
        self._datasets, self._retries, self._cache = datasets, retries, cache
        self._remotes: dict[str, Remote] = {}
        self._places: OrderedDict[str, list[Place]] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._failed: dict[str, tuple[float, ShardError]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_datasets": self._datasets, "_retries": self._retries, "_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_datasets"], state["_retries"], state["_cache"])  # type: ignore[misc]

    def close(self) -> None:
        """Closes the files. The reader can be used again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def where(self, dataset: int, shard: int) -> str:
        """Path or URL of a shard."""
        split_shards = self._datasets[dataset]
        return join(split_shards.root, split_shards.shards[shard].path)

    def read(self, dataset: int, shard: int, index: int) -> tuple[Place, bytes]:
        """Place and bytes of a sample; fewer bytes if the shard ends early.

        Raises ShardError when the shard or its index cannot be read.
        """
        where = self.where(dataset, shard)
        when, error = self._failed.get(where, (0.0, None))
        if error is not None and time.monotonic() - when < FAILED_FOR_SECONDS:
            raise error
        split_shards = self._datasets[dataset]
        record = split_shards.shards[shard]
        try:
            place = self._placed(split_shards, record)[index]
            return place, self._bytes(split_shards, record, place)
        except ShardError as failure:
            self._failed[where] = (time.monotonic(), failure)
            raise

    def _placed(self, dataset: SplitShards, record: ShardRecord) -> list[Place]:
        """The places of a shard's samples, from its index; the last ``OPEN_INDEXES`` indexes stay in memory."""
        where = join(dataset.root, record.index_path)
        places = self._places.get(where)
        if places is None:
            if dataset.local_root is not None:
                try:
                    index = (dataset.local_root / record.index_path).read_bytes()
                except OSError as error:
                    raise ShardError("index", f"its index cannot be read: {error}") from error
            else:
                index = self._remote(dataset).read(record.index_path)
            places = places_in(index, record)
        self._places[where] = places
        self._places.move_to_end(where)
        if len(self._places) > OPEN_INDEXES:
            self._places.popitem(last=False)
        return places

    def _bytes(self, dataset: SplitShards, record: ShardRecord, place: Place) -> bytes:
        if dataset.local_root is not None:
            return self._pread(dataset.local_root / record.path, place)
        remote = self._remote(dataset)
        if self._cache is not None:
            copy = self._cache.open(record, lambda start, end: remote.read(record.path, start, end))
            if copy is not None:
                with copy:
                    return _ranged(copy.fileno(), place)
        return remote.read(record.path, place.start, place.end)

    def _remote(self, dataset: SplitShards) -> Remote:
        if dataset.root not in self._remotes:
            self._remotes[dataset.root] = Remote(dataset.root, self._retries)
        return self._remotes[dataset.root]

    def _pread(self, path: Path, place: Place) -> bytes:
        name = str(path)
        try:
            if name not in self._files:
                self._files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.move_to_end(name)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            return _ranged(self._files[name], place)
        except OSError as error:
            raise ShardError("unreadable", f"it cannot be read: {error.strerror}") from error


def _ranged(file: int, place: Place) -> bytes:
    return os.pread(file, place.end - place.start, place.start)
