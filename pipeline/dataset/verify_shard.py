"""One tar of a built dataset against its record in the manifest: every byte, every member, its index."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pipeline.dataset.manifest import Manifest, ShardRecord
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.folder import Folder
from pipeline.runtime.hashing import HashingReader

if TYPE_CHECKING:
    from pipeline.dataset.deep_check import DeepCheck

MAX_IN_ONE_FILE = 100
"""Differences of one file that are told."""
MAX_MEMBER_BYTES = 256 << 20
"""Largest member of a sample that is looked into."""

Progressed = Callable[[int], object]


@dataclass(slots=True)
class Walk:
    """What was found in one tar."""

    keys: list[str] = field(default_factory=list)
    places: list[dict[str, list[int]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def complain(self, problem: str) -> None:
        if len(self.problems) < MAX_IN_ONE_FILE:
            self.problems.append(problem)


def unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def compare_bytes(reader: HashingReader, num_bytes: int, sha256: str) -> list[str]:
    if reader.num_bytes != num_bytes:
        return [f"has {reader.num_bytes} bytes, not {num_bytes}"]
    return [] if reader.sha256 == sha256 else [f"has SHA-256 {reader.sha256[:12]}..., not {sha256[:12]}..."]


class Counting(HashingReader):
    def __init__(self, file: IO[bytes], progressed: Progressed) -> None:
        super().__init__(file)
        self._progressed = progressed

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._progressed(len(data))
        return data


def check_shard(
    folder: Folder, record: ShardRecord, manifest: Manifest, progressed: Progressed, decoder: DeepCheck | None
) -> Walk:
    walk = Walk()
    try:
        with folder.open(record.path) as file:
            reader = Counting(file, progressed)
            _walk_tar(reader, manifest.members, walk, record, decoder)
            reader.drain()
    except reading_failures() as error:
        walk.complain(unreadable(error))
        return walk
    finally:
        for problem in decoder.problems() if decoder else ():
            walk.complain(problem)
    walk.problems[:0] = compare_bytes(reader, record.num_bytes, record.sha256)
    if len(walk.keys) != record.num_samples:
        walk.complain(f"holds {len(walk.keys)} samples, not {record.num_samples}")
    if not walk.problems:
        _check_index(folder, record, walk)
    return walk


def _walk_tar(
    reader: HashingReader, expected: tuple[str, ...], walk: Walk, record: ShardRecord, decoder: DeepCheck | None
) -> None:
    # it may be any file: what is kept of it is limited
    max_members = (record.num_samples + MAX_IN_ONE_FILE) * (len(expected) + 1)
    seen: set[str] = set()
    media: dict[str, bytes] = {}
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
                    _decode(decoder, walk, record, media)
                    if key in seen:
                        walk.complain(f"sample {key} is in it twice")
                    seen.add(key)
                    walk.keys.append(key)
                    walk.places.append({})
                if name in walk.places[-1]:
                    walk.complain(f"sample {key} has {name} twice")
                walk.places[-1][name] = [member.offset_data, member.size]
                data = _read(tar, member, name, wants_media=decoder is not None)
                if data is not None and decoder is not None:
                    media[name] = data
                problem = _member_problem(member, data, key, name)
                if problem:
                    walk.complain(f"sample {key}: its {name} {problem}")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:  # the last two: headers that lie
        walk.complain(f"breaks off at {f'sample {walk.keys[-1]}' if walk.keys else 'its beginning'}: {error}")
    _check_complete(walk, expected)
    _decode(decoder, walk, record, media)


def _decode(decoder: DeepCheck | None, walk: Walk, record: ShardRecord, media: dict[str, bytes]) -> None:
    """Hands the last sample so far over, and forgets it."""
    if decoder is not None and media:
        decoder.add(walk.keys[-1], record.rendition, dict(media))
        media.clear()


def _check_complete(walk: Walk, expected: tuple[str, ...]) -> None:
    """Of the last sample so far."""
    if walk.keys and tuple(walk.places[-1]) != expected:
        missing = [name for name in expected if name not in walk.places[-1]]
        added = [name for name in walk.places[-1] if name not in expected]
        what = [f"has no {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(added)} as well"] * bool(added)
        walk.complain(f"sample {walk.keys[-1]} {' and '.join(what) or 'has its members in another order'}")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, *, wants_media: bool) -> bytes | None:
    """What is in a member that is looked into."""
    looked_into = name.endswith((".npy", "json")) or (wants_media and name in ("mp4", "flac"))
    if not member.isreg() or not 0 < member.size <= MAX_MEMBER_BYTES or not looked_into:
        return None
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _member_problem(member: tarfile.TarInfo, data: bytes | None, key: str, name: str) -> str | None:
    if not member.isreg():
        return "is not a file"
    if member.size == 0:
        return "is empty"
    if member.size > MAX_MEMBER_BYTES and not name.endswith("mp4"):
        return f"has {member.size:,} bytes, more than is read"
    if data is None or name in ("mp4", "flac"):
        return None
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


def _check_index(folder: Folder, record: ShardRecord, walk: Walk) -> None:
    name = record.index_path.rpartition("/")[2]
    try:
        summary = json.loads(folder.read_bytes(record.index_path))
        samples = {sample["key"]: sample["members"] for sample in summary["samples"]}
    except reading_failures() as error:
        return walk.complain(f"its index {name} {unreadable(error)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return walk.complain(f"its index {name} is damaged: {error!r}")
    if samples != dict(zip(walk.keys, walk.places, strict=True)):
        walk.complain(f"its index {name} tells other places than the tar has")
    return None
