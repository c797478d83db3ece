"""Whether a built dataset is what its manifest says: every byte, every sample. Each tar is read once, end to end.

What is in a sample's media is decoded only where that is asked for (``deep``).
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
    Counting,
    Progressed,
    Walk,
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
    """Something that is not as the manifest says."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


Checked = Callable[[str, list[Difference]], object]


def verify(
    location: str,
    checked: Checked = lambda path, found: None,
    progressed: Progressed = lambda num_bytes: None,
    *,
    deep: bool = False,
) -> list[Difference]:
    """All differences between the dataset at a folder, URL or manifest and its manifest.

    ``checked`` hears of each file when it is done; ``progressed`` of the bytes read since it was last called.
    ``deep``: every picture and sound is decoded as well, which takes as long as watching them at some hundred times their speed.
    Raises ManifestError where there is no manifest that can be read.
    """
    manifest = read_manifest(location)
    folder = Folder(dataset_root(location))
    found: list[Difference] = []

    def done(path: str, problems: list[str]) -> None:
        differences = [Difference(path, problem) for problem in problems]
        found.extend(differences)
        checked(path, differences)

    shard_of: dict[str, str] = {}
    with _decoder(deep) as decoder:
        for family in _families(manifest):
            first: Walk | None = None
            for shard in family:
                walk = check_shard(folder, shard, manifest, progressed, decoder)
                if first is None:
                    first = walk
                    shard_of.update(dict.fromkeys(walk.keys, shard.path.rpartition("/")[2]))
                elif walk.keys != first.keys and not walk.problems and not first.problems:
                    walk.problems.append(f"its keys are not those of {family[0].path}, in that order")
                done(shard.path, walk.problems)
    for file in manifest.files:
        problems = _check_file(folder, file, progressed)
        if file.path == SAMPLES_NAME and not problems:
            problems = _check_table(folder, shard_of)
        done(file.path, problems)
    if SAMPLES_NAME not in {file.path for file in manifest.files}:
        done(FILE_NAME, [f"names no {SAMPLES_NAME}"])
    for path in _extra(folder, manifest):
        done(path, ["is not in the manifest"])
    for problem in _uneven(manifest):
        done(FILE_NAME, [problem])
    return found


@contextlib.contextmanager
def _decoder(deep: bool) -> Iterator[DeepCheck | None]:
    if not deep:
        yield None
        return
    from pipeline.dataset.deep_check import DeepCheck  # noqa: PLC0415 - brings the decoders, and processes that run them

    with DeepCheck() as decoder:
        yield decoder


def _families(manifest: Manifest) -> Iterator[list[ShardRecord]]:
    """The shards that should hold the same keys: those of one file name, of all renditions."""
    by_name: dict[str, list[ShardRecord]] = {}
    for shard in manifest.shards:
        by_name.setdefault(shard.path.rpartition("/")[2], []).append(shard)
    for _, family in sorted(by_name.items()):
        yield family


def _uneven(manifest: Manifest) -> Iterator[str]:
    for family in _families(manifest):
        missing = {rendition.name for rendition in manifest.renditions} - {shard.rendition for shard in family}
        if missing:
            yield f"{family[0].path} has no counterpart in {', '.join(sorted(missing))}"


def _extra(folder: Folder, manifest: Manifest) -> list[str]:
    listed = {shard.path for shard in manifest.shards}
    return [path for path in folder.walk(FOLDER) if path.endswith(".tar") and path not in listed]


def _check_file(folder: Folder, record: FileRecord, progressed: Progressed) -> list[str]:
    try:
        with folder.open(record.path) as file:
            reader = Counting(file, progressed)
            reader.drain()
    except reading_failures() as error:
        return [unreadable(error)]
    return compare_bytes(reader, record.num_bytes, record.sha256)


def _check_table(folder: Folder, shard_of: dict[str, str]) -> list[str]:
    """Kept rows of the table against the samples in the tars. Takes what it finds out of ``shard_of``."""
    problems: list[str] = []
    try:
        for row in _rows(folder):
            if row["state"] != State.KEPT:
                continue
            shard = shard_of.pop(row["key"], None)
            if shard != row["shard"] and len(problems) < MAX_IN_ONE_FILE:
                where = f"is in {shard}" if shard else "is in no shard"
                problems.append(f"kept clip {row['key']} {where}, not in {row['shard']}")
    except (ManifestError, OSError) as error:  # with the right sum: it was damaged before that was taken
        return [f"is no table of clips: {error}"]
    problems += [
        f"sample {key} of {shard} is no kept clip" for key, shard in sorted(shard_of.items())[:MAX_IN_ONE_FILE]
    ]
    return problems


def _rows(folder: Folder) -> Iterator[dict[str, Any]]:
    for batch in read_table(folder, SAMPLES_NAME, ["key", "state", "shard"]):
        yield from batch.to_pylist()
