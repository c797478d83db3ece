"""Compares a built dataset with its manifest: every byte, every sample. Each tar is read once, from end to end.

The media of the samples are decoded only with ``deep``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.dataset.manifest import FILE_NAME, FileRecord, Manifest, ShardRecord, dataset_root, read_manifest
from pipeline.dataset.shards import FOLDER
from pipeline.dataset.tables import SAMPLES_NAME, read_table
from pipeline.dataset.verify_shard import (
    MAX_IN_ONE_FILE,
    CountingReader,
    Progressed,
    TarContents,
    check_shard,
    compare_bytes,
    unreadable,
)
from pipeline.errors import ManifestError
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.folder import Folder
from pipeline.schema import State

if TYPE_CHECKING:
    from pipeline.dataset.deep_check import DeepCheck


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that differs from the manifest. ``message`` continues a sentence that begins with ``path``."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


Checked = Callable[[str, list[Difference]], object]


def verify(
    location: str,
    checked: Checked = lambda path, differences: None,
    progressed: Progressed = lambda num_bytes: None,
    *,
    deep: bool = False,
) -> list[Difference]:
    """All differences between a dataset and its manifest. ``location``: folder, URL or manifest.

    ``checked`` is called for each file when it is done, ``progressed`` with the number of bytes read since its last call.
    ``deep``: decode every picture and sound as well, at about a hundred times the speed of playing.
    Raises ManifestError if the manifest cannot be read.
    """
    manifest = read_manifest(location)
    folder = Folder(dataset_root(location))
    all_differences: list[Difference] = []

    def done(path: str, problems: list[str]) -> None:
        differences = [Difference(path, problem) for problem in problems]
        all_differences.extend(differences)
        checked(path, differences)

    shard_of: dict[str, str] = {}
    with _decoder(deep) as decoder:
        for family in _families(manifest):
            first: TarContents | None = None
            for shard in family:
                contents = check_shard(folder, shard, manifest, progressed, decoder)
                if first is None:
                    first = contents
                    shard_of.update(dict.fromkeys(contents.keys, shard.path.rpartition("/")[2]))
                elif contents.keys != first.keys and not contents.problems and not first.problems:
                    contents.problems.append(f"its keys are not those of {family[0].path}, in that order")
                done(shard.path, contents.problems)
    for file in manifest.files:
        problems = _check_file(folder, file, progressed)
        if file.path == SAMPLES_NAME and not problems:
            problems = _check_table(folder, shard_of)
        done(file.path, problems)
    if SAMPLES_NAME not in {file.path for file in manifest.files}:
        done(FILE_NAME, [f"names no {SAMPLES_NAME}"])
    for path in _unlisted_tars(folder, manifest):
        done(path, ["is not in the manifest"])
    for problem in _missing_counterparts(manifest):
        done(FILE_NAME, [problem])
    return all_differences


@contextlib.contextmanager
def _decoder(deep: bool) -> Iterator[DeepCheck | None]:
    if not deep:
        yield None
        return
    from pipeline.dataset.deep_check import DeepCheck  # noqa: PLC0415 - loads the decoders

    with DeepCheck() as decoder:
        yield decoder


def _families(manifest: Manifest) -> Iterator[list[ShardRecord]]:
    """Groups of shards that must hold the same keys: those of one file name, of all renditions."""
    by_name: dict[str, list[ShardRecord]] = {}
    for shard in manifest.shards:
        by_name.setdefault(shard.path.rpartition("/")[2], []).append(shard)
    for _, family in sorted(by_name.items()):
        yield family


def _missing_counterparts(manifest: Manifest) -> Iterator[str]:
    for family in _families(manifest):
        missing = {rendition.name for rendition in manifest.renditions} - {shard.rendition for shard in family}
        if missing:
            yield f"{family[0].path} has no counterpart in {', '.join(sorted(missing))}"


def _unlisted_tars(folder: Folder, manifest: Manifest) -> list[str]:
    listed = {shard.path for shard in manifest.shards}
    return [path for path in folder.walk(FOLDER) if path.endswith(".tar") and path not in listed]


def _check_file(folder: Folder, record: FileRecord, progressed: Progressed) -> list[str]:
    try:
        with folder.open(record.path) as file:
            reader = CountingReader(file, progressed)
            reader.drain()
    except reading_failures() as error:
        return [unreadable(error)]
    return compare_bytes(reader, record.num_bytes, record.sha256)


def _check_table(folder: Folder, shard_of: dict[str, str]) -> list[str]:
    """Compares the kept rows of the table with the samples in the tars. ``shard_of``: shard by key; the keys of kept rows are removed."""
    problems: list[str] = []
    try:
        for row in _rows(folder):
            if row["state"] != State.KEPT:
                continue
            shard = shard_of.pop(row["key"], None)
            if shard != row["shard"] and len(problems) < MAX_IN_ONE_FILE:
                where = f"is in {shard}" if shard else "is in no shard"
                problems.append(f"kept clip {row['key']} {where}, not in {row['shard']}")
    except (
        ManifestError,
        OSError,
    ) as error:  # its SHA-256 is right: the table was damaged before its SHA-256 was taken
        return [f"is no table of clips: {error}"]
    problems += [
        f"sample {key} of {shard} is no kept clip" for key, shard in sorted(shard_of.items())[:MAX_IN_ONE_FILE]
    ]
    return problems


def _rows(folder: Folder) -> Iterator[dict[str, Any]]:
    for batch in read_table(folder, SAMPLES_NAME, ["key", "state", "shard"]):
        yield from batch.to_pylist()
