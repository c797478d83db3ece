"""``python -m pipeline.manifest withdraw manifests/NAME --source ID...``: takes sources out of a built dataset for good.

In this order, each file at one stroke, so that a run that was killed is finished by the same command (or by the next build):
``withdrawn.json``, the shards that hold clips of theirs, the tables, the ledger, the manifest, the report, the kept files in ``state``.
Shards without such clips are not touched. Until the manifest is written, the dataset does not verify.

What was decided across the dataset stays until the next build: its calibration, and that a clip of another source was rejected as a
duplicate of theirs.
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
    """What was done."""

    num_sources: int
    """Withdrawn from this dataset until now."""
    num_samples: int
    """Samples of theirs that were in shards."""
    rewritten: tuple[str, ...]
    """Paths of the shards that were written anew."""
    removed: tuple[str, ...]
    """Paths of the shards that held nothing else."""
    same_files: tuple[str, ...] = ()
    """Ids of sources that are still listed, though they are the same file as one that was withdrawn."""


def withdraw(location: str, source_ids: Collection[str]) -> Withdrawal:
    """Takes the sources out of the dataset at a folder, URL or manifest, and what was begun before to its end.

    Raises ManifestError where there is no such dataset or source, NothingKeptError where no sample would be left, OutputError while
    a build is at work there.
    """
    read_manifest(location)  # before the lock, which makes a folder
    output = Folder(dataset_root(location))
    with OutputLock(output):
        manifest = read_manifest(location)
        before = read_withdrawn(output)
        content_of = _contents(output)
        _check_ids(output, content_of, set(source_ids) - set(before.sources))
        _check_files(output, manifest)
        wanted = {*before.sources, *source_ids}
        looked = _look(output, manifest.shards, wanted)
        if not looked.untouched and not any(_staying(members, wanted) for members in looked.affected.values()):
            raise NothingKeptError(f"{output}: no sample would be left. Delete the dataset instead")
        theirs = [sha256 for source_id in source_ids if (sha256 := content_of.get(source_id))]
        withdrawn = before.with_more(source_ids, _gaps(manifest.shards, looked.affected, wanted), theirs)
        output.write_json(JOURNAL_NAME, looked.content_ids)  # first: a build that finds it ends what was begun
        write_withdrawn(withdrawn, output)
        shards, rewritten = _rewrite_shards(output, manifest.shards, looked, wanted)
        _write_rest(output, manifest, shards, wanted)
        removed = looked.affected.keys() - set(rewritten)
        remove_other_shards(output, shards, [shard.path for shard in manifest.shards])
        _remake_report(output)
        remove_state_files(output, wanted)
        output.remove(JOURNAL_NAME)
    same_files = _listed_of(output, withdrawn.contents)
    return Withdrawal(len(withdrawn.sources), len(withdrawn.gaps), tuple(rewritten), tuple(sorted(removed)), same_files)


def _contents(output: Folder) -> dict[str, str]:
    """For each source of the ledger the SHA-256 of its file; empty where there is none."""
    return {entry["source_id"]: str(entry.get("content_sha256") or "") for entry in _lines(output, LEDGER_NAME)}


def _listed_of(output: Folder, contents: Collection[str]) -> tuple[str, ...]:
    """The ids of sources that are one of these files and were not withdrawn."""
    wanted = frozenset(contents)
    return tuple(sorted(source_id for source_id, sha256 in _contents(output).items() if sha256 in wanted))


def _check_ids(output: Folder, known: Collection[str], source_ids: Collection[str]) -> None:
    if unknown := sorted(set(source_ids) - set(known)):
        raise ManifestError(
            f"{output} has no source of the id {', '.join(map(repr, unknown))}: nothing was withdrawn. "
            f"`python -m pipeline.ledger show {output} LINK` tells the id of a link"
        )


Members = dict[str, dict[str, int]]
"""Key of a sample -> name of a member -> its size; in the order of the tar."""


@dataclass(slots=True)
class _Looked:
    """What is to be done to the shards. Holds the samples of those alone that are to be written anew."""

    untouched: dict[str, ShardRecord]
    """Path -> what its index says: a run that was killed may have written it."""
    affected: dict[str, Members]
    content_ids: dict[str, str]
    """What the content of a sample is called in the index of its shard. Kept in a journal: for a moment a shard that is written
    anew is without its index, and a kill may come then."""


def _look(output: Folder, shards: Sequence[ShardRecord], wanted: Collection[str]) -> _Looked:
    # damaged: the shards that are without an index get no content ids, and the next build writes them anew
    looked = _Looked({}, {}, read_json_whole(output, JOURNAL_NAME, dict) or {})
    for shard in shards:
        index = read_index(output, shard.path)
        if index is None:
            looked.affected[shard.path] = _members(output, shard)
            continue
        if all(source_of_key(one["key"]) not in wanted for one in index["samples"]):
            looked.untouched[shard.path] = ShardRecord.model_validate(index["shard"])
            continue
        looked.affected[shard.path] = {
            one["key"]: {name: place[1] for name, place in one["members"].items()} for one in index["samples"]
        }
        looked.content_ids |= {one["key"]: one.get("content_id", "") for one in index["samples"]}
    return looked


def _members(output: Folder, shard: ShardRecord) -> Members:
    """By the tar itself."""
    found: Members = {}
    try:
        with output.open(shard.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                found.setdefault(key, {})[name] = member.size
    except (tarfile.TarError, OSError) as error:
        raise _shard_error(output, shard, error) from error
    return found


def _shard_error(output: Folder, shard: ShardRecord, error: Exception) -> ManifestError:
    return ManifestError(
        f"{output}/{shard.path} cannot be read ({error or type(error).__name__}): run the build again, which writes it anew, then this"
    )


def _staying(members: Members, wanted: Collection[str]) -> list[str]:
    return [key for key in members if source_of_key(key) not in wanted]


def _gaps(shards: Sequence[ShardRecord], affected: Mapping[str, Members], wanted: Collection[str]) -> list[Gap]:
    sizes: dict[str, tuple[str, int, int]] = {}
    for shard in shards:
        for key, found in affected.get(shard.path, {}).items():
            if source_of_key(key) in wanted:
                largest = max(found["mp4"], sizes[key][2] if key in sizes else 0)
                sizes[key] = (shard.split, found["flac"], largest)
    return [Gap(key=key, split=split, num_bytes=flac + mp4) for key, (split, flac, mp4) in sizes.items()]


def _rewrite_shards(
    output: Folder, shards: Sequence[ShardRecord], looked: _Looked, wanted: Collection[str]
) -> tuple[list[ShardRecord], list[str]]:
    """The records of the shards that stay, and the paths of those that were written anew."""
    staying: list[ShardRecord] = []
    rewritten: list[str] = []
    for shard in shards:
        if shard.path in looked.untouched:
            staying.append(looked.untouched[shard.path])
            continue
        keys = _staying(looked.affected[shard.path], wanted)
        if not keys:
            continue
        number = int(shard.path.rpartition("-")[2].partition(".")[0])
        samples = tuple(Sample(key, shard.split, 0, looked.content_ids.get(key, "")) for key in keys)
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
        """Everything as it stands in the tar, so that it is written as the same bytes."""
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


def _write_rest(output: Folder, manifest: Manifest, shards: Sequence[ShardRecord], wanted: Collection[str]) -> None:
    """Tables, ledger and manifest. The counts are taken from what was written."""
    local = output.local_path
    scratch = local / STATE_NAME / "tmp" if local else None
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    files = [_without(output, file, wanted, scratch) for file in manifest.files]
    sources, clips = _write_ledger(output, wanted)
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


def _without(output: Folder, file: FileRecord, wanted: Collection[str], scratch: Path | None) -> FileRecord:
    if not file.path.endswith(".parquet"):
        return file
    try:
        return drop_sources(output, file.path, wanted, scratch)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ManifestError(
            f"{output}/{file.path} is missing or damaged ({error}): run the build again, which writes it anew, then this"
        ) from error


def _write_ledger(output: Folder, wanted: Collection[str]) -> tuple[OutcomeCounts, OutcomeCounts]:
    """Writes the ledger and the timings anew; returns what is in them: sources and clips."""
    sources, clips = OutcomeCounts(), OutcomeCounts()
    with output.writing(LEDGER_NAME) as file:
        for entry in _lines(output, LEDGER_NAME):
            if entry["source_id"] in wanted:
                source = Source(entry["source_id"], entry["url"], listed_at=entry.get("listed_at"))
                entry = ledger_line(withdrawn_record(source))  # noqa: PLW2901
            file.write(line_of(entry))
            _count(sources, entry)
            for clip in entry.get("clips") or ():
                _count(clips, clip)
    with output.writing(TIMINGS_NAME) as file:
        for line in _lines(output, TIMINGS_NAME):
            file.write(line_of({"source_id": line["source_id"]} if line["source_id"] in wanted else line))
    return sources, clips


def _count(tally: OutcomeCounts, entry: Mapping[str, Any]) -> None:
    failure = entry.get("failure")
    tally.count(State(entry["state"]), entry.get("reason"), failure["code"] if failure else None)


def _lines(output: Folder, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from read_lines(output, name)
    except FileNotFoundError as error:
        raise ManifestError(f"{output}/{name} is missing: run the build again, which writes it anew") from error


def _sha256(output: Folder, name: str) -> str:
    digest = hashlib.sha256()
    with output.open(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_files(output: Folder, manifest: Manifest) -> None:
    """Raises ManifestError where a file that is to be written anew is damaged: nothing is begun then.

    What an earlier withdrawal, which did not come to its end, has written already is not yet in the manifest.
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
                f"{output}/{file.path} cannot be read ({error.strerror or error}): run the build again, which writes it anew"
            ) from error
        if not is_same and not is_begun:
            raise ManifestError(
                f"{output}/{file.path} is not what the manifest says: run the build again, which writes it anew"
            )


def _remake_report(output: Folder) -> None:
    """It shows clips: one that is there is made again."""
    from pipeline.report.make import PAGE_NAME, make_report  # noqa: PLC0415 - only where there is one

    if output.exists(PAGE_NAME):
        try:
            make_report(output.url)
        except UserError as error:
            logger.warning("the report still shows what was withdrawn, it could not be made again: %s", error)


def summary_lines(done: Withdrawal) -> list[str]:
    """For people."""
    counted = Counter(path.split("/")[1] for path in done.rewritten)
    where = ", ".join(f"{number} of rendition {name}" for name, number in sorted(counted.items())) or "none"
    return [
        f"withdrawn until now: {done.num_sources} source(s) with {done.num_samples} sample(s)",
        f"shards written anew: {where}; removed: {len(done.removed)}",
        *([same_files_note(done.same_files)] if done.same_files else []),
    ]
