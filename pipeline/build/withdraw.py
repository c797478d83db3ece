"""``python -m pipeline.manifest withdraw manifests/NAME --source ID...``: removes sources from a built dataset, permanently.

It writes in this order, each file atomically: ``withdrawn.json``, the shards that hold clips of these sources, the tables, the
ledger, the manifest, the report; then it removes the sources' files from ``state``. If it is interrupted, the same command or the
next build finishes it. Shards without clips of these sources are not written. Until the manifest is written, the dataset does not
verify.

Decisions over the whole dataset stay until the next build: the calibration, and the rejection of other clips as duplicates of
withdrawn ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.build.state_cleanup import remove_state_files
from pipeline.dataset.funnel import OutcomeCounts
from pipeline.dataset.ledger import LEDGER_NAME, TIMINGS_NAME, ledger_line, line_of, read_lines
from pipeline.dataset.manifest import FileRecord, Manifest, ShardRecord, dataset_root, read_manifest, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardPlan, read_index, remove_other_shards, write_shard
from pipeline.dataset.tables import SAMPLES_NAME, drop_sources, read_table
from pipeline.dataset.withdrawn import (
    JOURNAL_NAME,
    Gap,
    read_withdrawn,
    same_files_note,
    withdrawn_record,
    write_withdrawn,
)
from pipeline.errors import ManifestError, NothingKeptError, UserError
from pipeline.runtime.damage import read_json_whole
from pipeline.runtime.folder import Folder
from pipeline.runtime.output_lock import STATE_NAME, OutputLock
from pipeline.schema import Source, State, source_of_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Result of :func:`withdraw`."""

    num_sources: int
    """All sources that were withdrawn from this dataset until now."""
    num_samples: int
    """Samples of these sources that were in shards."""
    rewritten: tuple[str, ...]
    """Paths of the shards that were rewritten."""
    removed: tuple[str, ...]
    """Paths of the shards that held only samples of withdrawn sources."""
    same_files: tuple[str, ...] = ()
    """Ids of sources that are still in the dataset and whose file is that of a withdrawn source."""


def withdraw(location: str, source_ids: Collection[str]) -> Withdrawal:
    """Withdraws the sources from a dataset, and finishes an interrupted withdrawal. ``location``: folder, URL or manifest.

    Raises ManifestError if there is no such dataset or source, or if a file is damaged; NothingKeptError if no sample would be left;
    OutputError while a build runs there.
    """
    requested = frozenset(source_ids)
    read_manifest(location)  # raises before the lock is taken, which would create a folder
    output = Folder(dataset_root(location))
    with OutputLock(output):
        manifest = read_manifest(location)
        earlier = read_withdrawn(output)
        content_of = _contents(output)
        _check_ids(output, content_of, requested - set(earlier.sources))
        _check_files(output, manifest)
        withdrawn_ids = {*earlier.sources, *source_ids}
        plans = _plan_rewrites(output, manifest.shards, withdrawn_ids)
        if not plans.untouched and not any(_staying(members, withdrawn_ids) for members in plans.affected.values()):
            raise NothingKeptError(f"{output}: no sample would be left. Delete the dataset instead")
        contents = [sha256 for source_id in requested if (sha256 := content_of.get(source_id))]
        withdrawn = earlier.with_more(requested, _gaps(manifest.shards, plans.affected, withdrawn_ids), contents)
        # the journal first: the next build needs it to finish an interrupted withdrawal
        output.write_json(JOURNAL_NAME, plans.content_ids)
        write_withdrawn(withdrawn, output)
        shards, rewritten = _rewrite_shards(output, manifest.shards, plans, withdrawn_ids)
        _write_rest(output, manifest, shards, withdrawn_ids)
        removed = plans.affected.keys() - set(rewritten)
        remove_other_shards(output, shards, [shard.path for shard in manifest.shards])
        _remake_report(output)
        remove_state_files(output, withdrawn_ids)
        output.remove(JOURNAL_NAME)
    same_files = _sources_with_files(output, withdrawn.contents)
    return Withdrawal(len(withdrawn.sources), len(withdrawn.gaps), tuple(rewritten), tuple(sorted(removed)), same_files)


def _contents(output: Folder) -> dict[str, str]:
    """SHA-256 of the file of each source in the ledger, by source id. Empty: the source has no file."""
    return {entry["source_id"]: str(entry.get("content_sha256") or "") for entry in _lines(output, LEDGER_NAME)}


def _sources_with_files(output: Folder, contents: Collection[str]) -> tuple[str, ...]:
    """Ids of the sources in the ledger whose file has one of these SHA-256. Withdrawn sources have no file there."""
    hashes = frozenset(contents)
    return tuple(sorted(source_id for source_id, sha256 in _contents(output).items() if sha256 in hashes))


def _check_ids(output: Folder, known: Collection[str], source_ids: Collection[str]) -> None:
    if unknown := sorted(set(source_ids) - set(known)):
        raise ManifestError(
            f"{output} has no source of the id {', '.join(map(repr, unknown))}: nothing was withdrawn. "
            f"`python -m pipeline.ledger show {output} LINK` shows the id of a link"
        )


Members = dict[str, dict[str, int]]
"""Sizes of members: key of the sample -> name of the member -> bytes, in the order of the tar."""


@dataclass(slots=True)
class _ShardPlans:
    """Which shards must be rewritten."""

    untouched: dict[str, ShardRecord]
    """Records of the other shards by path, from their indexes: an interrupted run may have rewritten them."""
    affected: dict[str, Members]
    """Samples of the shards that must be rewritten, by path."""
    content_ids: dict[str, str]
    """Content id of each sample of these shards, by key, from the indexes. They are stored in a journal: an interruption can leave a
    rewritten shard without its index."""


def _plan_rewrites(output: Folder, shards: Sequence[ShardRecord], withdrawn_ids: Collection[str]) -> _ShardPlans:
    """Divides the shards into those with and without samples of withdrawn sources."""
    # if the journal is missing or damaged, shards without an index get no content ids, and the next build rewrites them
    plans = _ShardPlans({}, {}, read_json_whole(output, JOURNAL_NAME, dict) or {})
    for shard in shards:
        index = read_index(output, shard.path)
        if index is None:
            plans.affected[shard.path] = _members_in_tar(output, shard)
            continue
        if all(source_of_key(sample["key"]) not in withdrawn_ids for sample in index["samples"]):
            plans.untouched[shard.path] = ShardRecord.model_validate(index["shard"])
            continue
        plans.affected[shard.path] = {
            sample["key"]: {name: place[1] for name, place in sample["members"].items()} for sample in index["samples"]
        }
        plans.content_ids |= {sample["key"]: sample.get("content_id", "") for sample in index["samples"]}
    return plans


def _members_in_tar(output: Folder, shard: ShardRecord) -> Members:
    sizes: Members = {}
    try:
        with output.open(shard.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                sizes.setdefault(key, {})[name] = member.size
    except (tarfile.TarError, OSError) as error:
        raise _shard_error(output, shard, error) from error
    return sizes


def _shard_error(output: Folder, shard: ShardRecord, error: Exception) -> ManifestError:
    return ManifestError(
        f"{output}/{shard.path} cannot be read ({error or type(error).__name__}): run the build again, which writes it again, "
        "then this command"
    )


def _staying(members: Members, withdrawn_ids: Collection[str]) -> list[str]:
    """Keys of the samples that are not of withdrawn sources."""
    return [key for key in members if source_of_key(key) not in withdrawn_ids]


def _gaps(shards: Sequence[ShardRecord], affected: Mapping[str, Members], withdrawn_ids: Collection[str]) -> list[Gap]:
    """The withdrawn samples, with their splits and sizes. Of several renditions, the largest counts."""
    sizes: dict[str, tuple[str, int, int]] = {}  # split, bytes of the FLAC, bytes of the largest mp4
    for shard in shards:
        for key, members in affected.get(shard.path, {}).items():
            if source_of_key(key) in withdrawn_ids:
                largest = max(members["mp4"], sizes[key][2] if key in sizes else 0)
                sizes[key] = (shard.split, members["flac"], largest)
    return [Gap(key=key, split=split, num_bytes=flac + mp4) for key, (split, flac, mp4) in sizes.items()]


def _rewrite_shards(
    output: Folder, shards: Sequence[ShardRecord], plans: _ShardPlans, withdrawn_ids: Collection[str]
) -> tuple[list[ShardRecord], list[str]]:
    """The records of the shards that stay, and the paths of those that were rewritten."""
    staying: list[ShardRecord] = []
    rewritten: list[str] = []
    for shard in shards:
        if shard.path in plans.untouched:
            staying.append(plans.untouched[shard.path])
            continue
        keys = _staying(plans.affected[shard.path], withdrawn_ids)
        if not keys:
            continue
        number = int(shard.path.rpartition("-")[2].partition(".")[0])
        samples = tuple(Sample(key, shard.split, 0, plans.content_ids.get(key, "")) for key in keys)
        plan = ShardPlan(shard.split, number, samples)
        try:
            file = output.open(shard.path)
        except OSError as error:
            raise _shard_error(output, shard, error) from error
        try:
            with file, tarfile.open(fileobj=file, mode="r:") as tar:
                staying.append(write_shard(plan, shard.rendition, output, _Samples(tar).load))
        except (tarfile.TarError, EOFError, KeyError, ValueError, RecursionError) as error:
            raise _shard_error(output, shard, error) from error
        rewritten.append(shard.path)
    return staying, rewritten


class _Samples:
    """The samples of a tar."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {member.name: member for member in tar}

    def load(self, key: str) -> SampleContent:
        """The members of a sample, so that writing them gives the same bytes."""
        record = json.loads(self._read(f"{key}.json"))
        arrays = (self._array(f"{key}.{name}.npy") for name in ("picture", "sound"))
        return SampleContent(self._read(f"{key}.mp4"), self._read(f"{key}.flac"), record, *arrays)

    def _read(self, name: str) -> bytes:
        file = self._tar.extractfile(self._members[name])
        assert file is not None
        return file.read()

    def _array(self, name: str) -> npt.NDArray[Any] | None:
        if name not in self._members:
            return None
        array: npt.NDArray[Any] = np.load(io.BytesIO(self._read(name)), allow_pickle=False)
        return array


def _write_rest(
    output: Folder, manifest: Manifest, shards: Sequence[ShardRecord], withdrawn_ids: Collection[str]
) -> None:
    """Rewrites tables, ledger and manifest. The counts of the manifest are taken from the rewritten files."""
    local = output.local_path
    scratch = local / STATE_NAME / "tmp" if local else None
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    files = [_without_sources(output, file, withdrawn_ids, scratch) for file in manifest.files]
    sources, clips = _write_ledger(output, withdrawn_ids)
    for batch in read_table(output, SAMPLES_NAME, ["state", "split", "labels"]):
        for row in batch.to_pylist():
            if row["state"] == State.KEPT:
                clips.splits[row["split"]] += 1
                clips.classes.update(row["labels"])
    manifest = manifest.model_copy(
        update={
            "splits": tuple(sorted({shard.split for shard in shards})),
            "shards": tuple(shards),
            "files": tuple(files),
            "sources": sources.to_counts(),
            "clips": clips.to_counts(),
        }
    )
    write_manifest(Manifest.model_validate(manifest.model_dump()), output)


def _without_sources(
    output: Folder, file: FileRecord, withdrawn_ids: Collection[str], scratch: Path | None
) -> FileRecord:
    """Removes the rows of withdrawn sources from a table; returns its new record. Other files stay."""
    if not file.path.endswith(".parquet"):
        return file
    try:
        return drop_sources(output, file.path, withdrawn_ids, scratch)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ManifestError(
            f"{output}/{file.path} is missing or damaged ({error}): run the build again, which writes it again, then this command"
        ) from error


def _write_ledger(output: Folder, withdrawn_ids: Collection[str]) -> tuple[OutcomeCounts, OutcomeCounts]:
    """Rewrites the ledger and the timings; returns the counts of the sources and of the clips."""
    sources, clips = OutcomeCounts(), OutcomeCounts()
    with output.writing(LEDGER_NAME) as file:
        for entry in _lines(output, LEDGER_NAME):
            if entry["source_id"] in withdrawn_ids:
                source = Source(entry["source_id"], entry["url"], listed_at=entry.get("listed_at"))
                entry = ledger_line(withdrawn_record(source))  # noqa: PLW2901
            file.write(line_of(entry))
            _count(sources, entry)
            for clip in entry.get("clips") or ():
                _count(clips, clip)
    with output.writing(TIMINGS_NAME) as file:
        for line in _lines(output, TIMINGS_NAME):
            file.write(line_of({"source_id": line["source_id"]} if line["source_id"] in withdrawn_ids else line))
    return sources, clips


def _count(counts: OutcomeCounts, entry: Mapping[str, Any]) -> None:
    failure = entry.get("failure")
    counts.count(State(entry["state"]), entry.get("reason"), failure["code"] if failure else None)


def _lines(output: Folder, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from read_lines(output, name)
    except FileNotFoundError as error:
        raise ManifestError(f"{output}/{name} is missing: run the build again, which writes it again") from error


def _sha256(output: Folder, name: str) -> str:
    digest = hashlib.sha256()
    with output.open(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_files(output: Folder, manifest: Manifest) -> None:
    """Raises ManifestError, before anything is written, if a file that must be rewritten is damaged.

    Files that an interrupted withdrawal has rewritten differ from the manifest, which is not an error.
    """
    for _ in _lines(output, TIMINGS_NAME):
        pass
    is_begun = output.exists(JOURNAL_NAME)
    for file in manifest.files:
        if not file.path.endswith(".parquet"):
            continue
        try:
            for _ in read_table(output, file.path):
                pass
            is_same = _sha256(output, file.path) == file.sha256
        except OSError as error:
            raise ManifestError(
                f"{output}/{file.path} cannot be read ({error.strerror or error}): run the build again, which writes it again"
            ) from error
        if not is_same and not is_begun:
            raise ManifestError(
                f"{output}/{file.path} is not what the manifest says: run the build again, which writes it again"
            )


def _remake_report(output: Folder) -> None:
    """Makes the report again if there is one: it shows clips of the withdrawn sources."""
    from pipeline.report.make import PAGE_NAME, make_report  # noqa: PLC0415 - most datasets have no report

    if output.exists(PAGE_NAME):
        try:
            make_report(output.url)
        except UserError as error:
            logger.warning("the report could not be made again and still shows withdrawn clips: %s", error)


def summary_lines(withdrawal: Withdrawal) -> list[str]:
    """The result as lines of text."""
    num_rewritten = Counter(path.split("/")[1] for path in withdrawal.rewritten)
    rewritten = ", ".join(f"{number} of rendition {name}" for name, number in sorted(num_rewritten.items())) or "none"
    return [
        f"withdrawn until now: {withdrawal.num_sources} source(s) with {withdrawal.num_samples} sample(s)",
        f"shards rewritten: {rewritten}; removed: {len(withdrawal.removed)}",
        *([same_files_note(withdrawal.same_files)] if withdrawal.same_files else []),
    ]
