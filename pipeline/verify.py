"""Whether a built dataset is what its manifest says: every byte, every sample. Each tar is read once, end to end."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.hashing import HashingReader
from pipeline.manifest import FILE_NAME, FileRecord, Manifest, ShardRecord, dataset_root, read_manifest
from pipeline.samples_table import SAMPLES_NAME, read_table
from pipeline.schema import State
from pipeline.shard import FOLDER
from pipeline.storage import Folder

MAX_PRINTED = 20
_MAX_IN_ONE_FILE = 100
MAX_MEMBER_BYTES = 256 << 20
"""Largest record or embedding of a sample that is looked into."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as the manifest says."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(slots=True)
class _Walk:
    """What was found in one tar."""

    keys: list[str] = field(default_factory=list)
    places: list[dict[str, list[int]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def complain(self, problem: str) -> None:
        if len(self.problems) < _MAX_IN_ONE_FILE:
            self.problems.append(problem)


Progressed = Callable[[int], object]
Checked = Callable[[str, list[Difference]], object]


def verify(
    location: str, checked: Checked = lambda path, found: None, progressed: Progressed = lambda num_bytes: None
) -> list[Difference]:
    """All differences between the dataset at a folder, URL or manifest and its manifest.

    ``checked`` hears of each file when it is done; ``progressed`` of the bytes read since it was last called.
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
    for family in _families(manifest):
        first: _Walk | None = None
        for shard in family:
            walk = _check_shard(folder, shard, manifest, progressed)
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
            reader = _Counting(file, progressed)
            reader.drain()
    except FileNotFoundError:
        return ["is missing"]
    return _compare_bytes(reader, record.num_bytes, record.sha256)


def _compare_bytes(reader: HashingReader, num_bytes: int, sha256: str) -> list[str]:
    if reader.num_bytes != num_bytes:
        return [f"has {reader.num_bytes} bytes, not {num_bytes}"]
    return [] if reader.sha256 == sha256 else [f"has SHA-256 {reader.sha256[:12]}..., not {sha256[:12]}..."]


class _Counting(HashingReader):
    def __init__(self, file: IO[bytes], progressed: Progressed) -> None:
        super().__init__(file)
        self._progressed = progressed

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._progressed(len(data))
        return data


def _check_shard(folder: Folder, record: ShardRecord, manifest: Manifest, progressed: Progressed) -> _Walk:
    walk = _Walk()
    try:
        with folder.open(record.path) as file:
            reader = _Counting(file, progressed)
            _walk_tar(reader, manifest.members, walk, record)
            reader.drain()
    except FileNotFoundError:
        walk.complain("is missing")
        return walk
    walk.problems[:0] = _compare_bytes(reader, record.num_bytes, record.sha256)
    if len(walk.keys) != record.num_samples:
        walk.complain(f"holds {len(walk.keys)} samples, not {record.num_samples}")
    if not walk.problems:
        _check_index(folder, record, walk)
    return walk


def _walk_tar(reader: HashingReader, expected: tuple[str, ...], walk: _Walk, record: ShardRecord) -> None:
    # it may be any file: what is kept of it is limited
    max_members = (record.num_samples + _MAX_IN_ONE_FILE) * (len(expected) + 1)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=1 << 20) as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number == max_members:
                    walk.problems.append(f"holds more than {max_members} files: the rest was not looked at")
                    break
                if not 0 <= member.size <= record.num_bytes:  # tarfile would read on for ever
                    walk.problems.append(f"breaks off at {member.name}, which promises {member.size:,} bytes")
                    break
                key, _, name = member.name.partition(".")
                if not walk.keys or key != walk.keys[-1]:
                    _check_complete(walk, expected)
                    if key in seen:
                        walk.complain(f"sample {key} is in it twice")
                    seen.add(key)
                    walk.keys.append(key)
                    walk.places.append({})
                if name in walk.places[-1]:
                    walk.complain(f"sample {key} has {name} twice")
                walk.places[-1][name] = [member.offset_data, member.size]
                problem = _member_problem(tar, member, key, name)
                if problem:
                    walk.complain(f"sample {key}: its {name} {problem}")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:  # the last two: headers that lie
        walk.complain(f"breaks off at {f'sample {walk.keys[-1]}' if walk.keys else 'its beginning'}: {error}")
    _check_complete(walk, expected)


def _check_complete(walk: _Walk, expected: tuple[str, ...]) -> None:
    """Of the last sample so far."""
    if walk.keys and tuple(walk.places[-1]) != expected:
        missing = [name for name in expected if name not in walk.places[-1]]
        added = [name for name in walk.places[-1] if name not in expected]
        what = [f"has no {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(added)} as well"] * bool(added)
        walk.complain(f"sample {walk.keys[-1]} {' and '.join(what) or 'has its members in another order'}")


def _member_problem(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, name: str) -> str | None:
    if not member.isreg():
        return "is not a file"
    if member.size == 0:
        return "is empty"
    if member.size > MAX_MEMBER_BYTES and not name.endswith("mp4"):
        return f"has {member.size:,} bytes, more than is read"
    if not name.endswith((".npy", "json")):
        return None
    file = tar.extractfile(member)
    assert file is not None
    data = file.read()
    if name == "json":
        try:
            record: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            return f"is not JSON: {error}"
        named = record.get("key") if isinstance(record, dict) else None
        return None if named == key else f"is of key {named!r}"
    try:
        np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:  # MemoryError: a header that promises more
        return f"is not an array: {error}"
    return None


def _check_index(folder: Folder, record: ShardRecord, walk: _Walk) -> None:
    name = record.index_path.rpartition("/")[2]
    try:
        summary = json.loads(folder.read_bytes(record.index_path))
        samples = {sample["key"]: sample["members"] for sample in summary["samples"]}
    except FileNotFoundError:
        return walk.complain(f"its index {name} is missing")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return walk.complain(f"its index {name} is damaged: {error!r}")
    if samples != dict(zip(walk.keys, walk.places, strict=True)):
        walk.complain(f"its index {name} tells other places than the tar has")
    return None


def _check_table(folder: Folder, shard_of: dict[str, str]) -> list[str]:
    """Kept rows of the table against the samples in the tars. Takes what it finds out of ``shard_of``."""
    problems: list[str] = []
    num_wrong = 0
    for batch in read_table(folder, SAMPLES_NAME, ["key", "state", "shard"]):
        for row in batch.to_pylist():
            if row["state"] != State.KEPT:
                continue
            shard = shard_of.pop(row["key"], None)
            if shard != row["shard"]:
                num_wrong += 1
                if len(problems) < _MAX_IN_ONE_FILE:
                    where = f"is in {shard}" if shard else "is in no shard"
                    problems.append(f"kept clip {row['key']} {where}, not in {row['shard']}")
    problems += [
        f"sample {key} of {shard} is no kept clip" for key, shard in sorted(shard_of.items())[:_MAX_IN_ONE_FILE]
    ]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code, and raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.manifest", description="Look into built datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="compare every file of a dataset with its manifest")
    command.add_argument("dataset", help="folder or URL of a built dataset, or its manifest.json")
    command = commands.add_parser("withdraw", help="take sources out of a dataset, and out of later builds")
    command.add_argument("dataset", help="folder or URL of a built dataset, or its manifest.json")
    command.add_argument("--source", nargs="+", action="extend", required=True, metavar="ID", help="ids of the sources")
    options = parser.parse_args(arguments)
    if options.command == "withdraw":
        from pipeline.withdraw import summary_lines, withdraw  # noqa: PLC0415 - verifying needs none of it

        print("\n".join(summary_lines(withdraw(options.dataset, options.source))))  # noqa: T201
        return 0
    manifest = read_manifest(options.dataset)
    total = sum(shard.num_bytes for shard in manifest.shards) + sum(file.num_bytes for file in manifest.files)
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("verify", total=total)
        found = verify(
            options.dataset,
            checked=lambda path, problems: console.print(f"{'DIFFERS' if problems else 'ok':<8}{path}", markup=False),
            progressed=lambda num_bytes: progress.advance(task, num_bytes),
        )
    for difference in found[:MAX_PRINTED]:
        console.print(str(difference), markup=False)
    if found:
        more = f", {len(found) - MAX_PRINTED} more not shown" if len(found) > MAX_PRINTED else ""
        console.print(f"{len(found)} difference{'s' * (len(found) > 1)}{more}", markup=False)
        return 1
    num_samples = manifest.clips.states.get(State.KEPT, 0)
    console.print(
        f"{options.dataset}: all is as the manifest says"
        f" ({len(manifest.shards)} shards, {num_samples} samples in {len(manifest.renditions)} renditions)",
        markup=False,
    )
    return 0
