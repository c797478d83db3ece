"""Shards: WebDataset tars of the kept clips, each with an index of its members. The same clips give the same bytes.

    shards/<rendition>/<split>-000000.tar           <key>.flac .json .mp4, and .picture.npy .sound.npy if embedded
    shards/<rendition>/<split>-000000.index.json    offset and size of every member

All renditions hold the same keys in the same order, cut into shards at the same places.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.dataset.manifest import ShardRecord, canonical_json
from pipeline.runtime.folder import Folder
from pipeline.runtime.hashing import HashingReader, HashingWriter
from pipeline.schema import stable_hash
from pipeline.settings import Settings

LOG = logging.getLogger(__name__)

FOLDER = "shards"
_NAME = re.compile(
    rf"(?P<folder>{FOLDER}/[A-Za-z0-9_-]+)/"
    r"(?P<unfinished>\.)?(?P<name>[A-Za-z0-9_-]+-\d{6})\.(tar|index\.json)(?(unfinished)\.[0-9a-f]{8}\.part)"
)
MAX_NAMED = 5
"""How many files that no build wrote are named in the log."""
LAYOUT = 1
"""Version of the layout: raised when the bytes of a shard change for the same samples."""


class ShardSettings(Settings):
    """How samples are packed."""

    max_bytes: int = Field(default=1 << 30, ge=1)
    """Most bytes of samples in one shard of the largest rendition. A larger sample has a shard of its own."""
    max_samples: int = Field(default=10_000, ge=1)
    """Most samples in one shard."""
    seed: int = 0
    """Changes the order of the samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A kept clip as the plan of the shards needs it."""

    key: str
    split: str
    num_bytes: int
    """Size of all its members in the largest rendition."""
    content_id: str
    """Identifies the bytes of all its members in all renditions. A shard is written again if one of these ids changes."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard of every rendition."""

    split: str
    index: int
    samples: tuple[Sample, ...]

    @property
    def file_name(self) -> str:
        return f"{self.split}-{self.index:06d}.tar"

    def path(self, rendition: str) -> str:
        """Relative to the dataset's folder."""
        return f"{FOLDER}/{rendition}/{self.file_name}"

    def plan_hash(self, rendition: str) -> str:
        """Hash of what determines the bytes of the tar."""
        contents = (part for sample in self.samples for part in (sample.key, sample.content_id))
        return stable_hash("shard", LAYOUT, rendition, self.split, *contents, length=32)


@dataclass(frozen=True, slots=True)
class SampleContent:
    """The members of one sample in one rendition."""

    mp4: bytes
    flac: bytes
    record: Mapping[str, Any]
    """Becomes ``<key>.json``, with the key added."""
    picture: NDArray[Any] | None = None
    """Embedding, shape (D,), stored as float16."""
    sound: NDArray[Any] | None = None
    """Embedding, shape (D,), stored as float16."""


def plan_shards(
    samples: Iterable[Sample], settings: ShardSettings, withdrawn: Iterable[Sample] = ()
) -> list[ShardPlan]:
    """Shards of all splits, sorted by split and index. The samples of a split are shuffled by the seed.

    ``withdrawn`` samples keep their places as gaps, so that the other shards do not change. A shard of gaps only is left out.
    """
    by_split: dict[str, list[Sample]] = {}
    withdrawn_keys: set[str] = set()
    for sample in withdrawn:
        by_split.setdefault(sample.split, []).append(sample)
        withdrawn_keys.add(sample.key)
    for sample in samples:
        by_split.setdefault(sample.split, []).append(sample)
    plans: list[ShardPlan] = []
    for split, members in sorted(by_split.items()):
        members.sort(key=lambda sample: (stable_hash("order", settings.seed, sample.key), sample.key))
        for index, group in enumerate(_filled(members, settings)):
            staying = tuple(sample for sample in group if sample.key not in withdrawn_keys)
            if staying:
                plans.append(ShardPlan(split, index, staying))
    return plans


def _filled(samples: Sequence[Sample], settings: ShardSettings) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        if group and (num_bytes + sample.num_bytes > settings.max_bytes or len(group) == settings.max_samples):
            yield group
            group, num_bytes = [], 0
        group.append(sample)
        num_bytes += sample.num_bytes
    if group:
        yield group


def member_names(has_embeddings: bool) -> tuple[str, ...]:
    """Names of a sample's members in a shard, after ``<key>.``, in their order."""
    return ("flac", "json", "mp4", *(("picture.npy", "sound.npy") if has_embeddings else ()))


def write_shard(plan: ShardPlan, rendition: str, folder: Folder, load: Callable[[str], SampleContent]) -> ShardRecord:
    """Writes the tar and its index below the dataset's ``folder``, each atomically; returns the manifest's record.

    ``load`` gives the members of a sample by its key; one sample is in memory at a time. An existing shard of the same plan is
    not written again. Raises ValueError for a sample with an empty member or an embedding that is not finite in float16.
    """
    done = existing_shard(plan, rendition, folder)
    if done is not None:
        return done
    path = plan.path(rendition)
    index: list[dict[str, Any]] = []
    with folder.writing(path) as file:
        out = HashingWriter(file)
        # tarfile instead of webdataset's writer, which for the same bytes would load torch into the build (2 s, 600 MB)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for sample in plan.samples:
                places: dict[str, list[int]] = {}
                for name, data in _members(sample.key, load(sample.key)):
                    member = tarfile.TarInfo(f"{sample.key}.{name}")
                    member.size, member.mode = len(data), 0o444
                    tar.addfile(member, io.BytesIO(data))
                    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    places[name] = [tar.offset - padded, len(data)]
                index.append({"key": sample.key, "content_id": sample.content_id, "members": places})
        # Removed before the tar gets its name: an index of another plan must never be beside this tar.
        folder.remove(_index_path(path))
    record = ShardRecord(
        path=path,
        rendition=rendition,
        split=plan.split,
        num_samples=len(plan.samples),
        num_bytes=out.num_bytes,
        sha256=out.sha256,
    )
    summary = {"layout": LAYOUT, "plan_hash": plan.plan_hash(rendition), "shard": record.model_dump(), "samples": index}
    folder.write_bytes(record.index_path, canonical_json(summary))
    return record


def existing_shard(plan: ShardPlan, rendition: str, folder: Folder) -> ShardRecord | None:
    """The record of this plan's shard if the shard exists and is complete, else None."""
    path = plan.path(rendition)
    summary = read_index(folder, path)
    try:
        if summary is None or summary["plan_hash"] != plan.plan_hash(rendition):
            return None
        record = ShardRecord.model_validate(summary["shard"])
        with folder.open(path) as tar:
            if tar.seek(0, io.SEEK_END) != record.num_bytes or record.path != path:
                return None
        return record if _is_untouched(folder, record) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_index(folder: Folder, path: str) -> dict[str, Any] | None:
    """The index of the tar at ``path``: a dict with ``shard``, ``plan_hash`` and ``samples``. None: missing, damaged, or of another
    layout."""
    try:
        summary = json.loads(folder.read_bytes(_index_path(path)))
        return summary if summary["layout"] == LAYOUT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_untouched(folder: Folder, record: ShardRecord) -> bool:
    """Whether the tar was not written to after its index was, by their times of change; if these do not prove it, by its SHA-256."""
    # equal times prove nothing: the clock of a file system may have a resolution of 10 ms
    if folder.changed_seconds(record.path) < folder.changed_seconds(record.index_path):
        return True
    with folder.open(record.path) as tar:
        reader = HashingReader(tar)
        reader.drain()
    if reader.sha256 != record.sha256:
        return False
    folder.touch(record.index_path)  # a copied dataset, for example: the next run need not read the tar again
    return True


def remove_other_shards(folder: Folder, records: Iterable[ShardRecord], earlier: Iterable[str] = ()) -> list[str]:
    """Removes the shards of earlier builds that are not among the records, and folders that become empty; returns the removed paths.

    ``earlier``: paths of tars that a build is known to have written. Other shards are recognised by their names and their index.
    All other files stay, and the log names them.
    """
    wanted = {path for record in records for path in (record.path, record.index_path)}
    known = {path for tar in earlier for path in (tar, _index_path(tar))}
    others = [path for path in folder.walk(FOLDER) if path not in wanted]
    ours = [path for path in others if path in known or _is_ours(folder, path)]
    # the tars first: if this is interrupted, a tar without its index would not be recognised any more
    folder.remove_for_good(path for path in ours if path.endswith(".tar"))
    folder.remove_for_good(path for path in ours if not path.endswith(".tar"))
    folder.remove_empty_folders(FOLDER)
    if left := sorted(set(others) - set(ours)):
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        LOG.warning(
            "%s: these files were not written by a build and stay: %s%s", folder, ", ".join(left[:MAX_NAMED]), more
        )
    return ours


def _is_ours(folder: Folder, path: str) -> bool:
    """Whether a file is a shard, an index, or an unfinished file of one of these."""
    match = _NAME.fullmatch(path)
    if match is None:
        return False
    tar = f"{match['folder']}/{match['name']}.tar"
    summary = read_index(folder, tar)
    return match["unfinished"] is not None or (summary is not None and _path_in(summary) == tar)


def _path_in(summary: Mapping[str, Any]) -> str | None:
    shard = summary.get("shard")
    return shard.get("path") if isinstance(shard, dict) else None


def _index_path(path: str) -> str:
    return path.removesuffix(".tar") + ".index.json"


def _members(key: str, content: SampleContent) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, sorted by name."""
    for name, data in (("mp4", content.mp4), ("flac", content.flac)):
        if not data:
            raise ValueError(f"sample {key}: its {name} is empty")
    yield "flac", content.flac
    yield "json", canonical_json({**content.record, "key": key})
    yield "mp4", content.mp4
    for name, embedding in (("picture", content.picture), ("sound", content.sound)):
        if embedding is not None:
            yield f"{name}.npy", _npy(embedding, f"sample {key}: its {name} embedding")


def _npy(embedding: NDArray[Any], what: str) -> bytes:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(embedding, np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{what} is not finite in float16")
    buffer = io.BytesIO()
    np.save(buffer, half, allow_pickle=False)
    return buffer.getvalue()
