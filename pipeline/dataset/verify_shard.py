"""Compares one tar of a built dataset with its record in the manifest: every byte, every member, its index."""

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
"""Most differences that are reported of one file."""
MAX_MEMBER_BYTES = 256 << 20
"""Largest member of a sample whose content is checked."""

Progressed = Callable[[int], object]


@dataclass(slots=True)
class TarContents:
    """Samples and problems of one tar."""

    keys: list[str] = field(default_factory=list)
    places: list[dict[str, list[int]]] = field(default_factory=list)
    """Of each sample: offset in the tar and size of its members, by name."""
    problems: list[str] = field(default_factory=list)

    def add_problem(self, problem: str) -> None:
        if len(self.problems) < MAX_IN_ONE_FILE:
            self.problems.append(problem)


def unreadable(error: Exception) -> str:
    """The error of reading a file, as the end of a sentence that begins with its name."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def compare_bytes(reader: HashingReader, num_bytes: int, sha256: str) -> list[str]:
    """Problems of a file that was read to its end, given its expected size and SHA-256."""
    if reader.num_bytes != num_bytes:
        return [f"has {reader.num_bytes} bytes, not {num_bytes}"]
    return [] if reader.sha256 == sha256 else [f"has SHA-256 {reader.sha256[:12]}..., not {sha256[:12]}..."]


class CountingReader(HashingReader):
    """Reports the bytes that it reads."""

    def __init__(self, file: IO[bytes], progressed: Progressed) -> None:
        super().__init__(file)
        self._progressed = progressed

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._progressed(len(data))
        return data


def check_shard(
    folder: Folder, record: ShardRecord, manifest: Manifest, progressed: Progressed, decoder: DeepCheck | None
) -> TarContents:
    """Reads the tar of ``record`` to its end. ``decoder`` None: its media are not decoded."""
    contents = TarContents()
    try:
        with folder.open(record.path) as file:
            reader = CountingReader(file, progressed)
            _read_tar(reader, manifest.members, contents, record, decoder)
            reader.drain()
    except reading_failures() as error:
        contents.add_problem(unreadable(error))
        return contents
    finally:
        for problem in decoder.problems() if decoder else ():
            contents.add_problem(problem)
    contents.problems[:0] = compare_bytes(reader, record.num_bytes, record.sha256)
    if len(contents.keys) != record.num_samples:
        contents.add_problem(f"holds {len(contents.keys)} samples, not {record.num_samples}")
    if not contents.problems:
        _check_index(folder, record, contents)
    return contents


def _read_tar(
    reader: HashingReader,
    expected: tuple[str, ...],
    contents: TarContents,
    record: ShardRecord,
    decoder: DeepCheck | None,
) -> None:
    """Reads the members of a tar into ``contents``. ``expected``: the members of every sample, in their order."""
    # the file may be anything: this bounds the memory for its names
    max_members = (record.num_samples + MAX_IN_ONE_FILE) * (len(expected) + 1)
    keys: set[str] = set()
    media: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=1 << 20) as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number == max_members:
                    contents.problems.append(f"holds more than {max_members} files: the rest was not checked")
                    break
                if not 0 <= member.size <= record.num_bytes:  # tarfile would never end reading it
                    contents.problems.append(
                        f"ends at {member.name}, whose header says {member.size:,} bytes: its file is not that long"
                    )
                    break
                key, _, name = member.name.partition(".")
                if not contents.keys or key != contents.keys[-1]:
                    _check_last_sample(contents, expected)
                    _decode_last_sample(decoder, contents, record, media)
                    if key in keys:
                        contents.add_problem(f"sample {key} is in it twice")
                    keys.add(key)
                    contents.keys.append(key)
                    contents.places.append({})
                if name in contents.places[-1]:
                    contents.add_problem(f"sample {key} has {name} twice")
                contents.places[-1][name] = [member.offset_data, member.size]
                data = _content(tar, member, name, wants_media=decoder is not None)
                if data is not None and decoder is not None:
                    media[name] = data
                problem = _member_problem(member, data, key, name)
                if problem:
                    contents.add_problem(f"sample {key}: its {name} {problem}")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:  # the last two: damaged headers
        where = f"sample {contents.keys[-1]}" if contents.keys else "its beginning"
        contents.add_problem(f"cannot be read after {where}: {error}")
    _check_last_sample(contents, expected)
    _decode_last_sample(decoder, contents, record, media)


def _decode_last_sample(
    decoder: DeepCheck | None, contents: TarContents, record: ShardRecord, media: dict[str, bytes]
) -> None:
    """Gives the media of the last sample to the decoder, and clears ``media``."""
    if decoder is not None and media:
        decoder.add(contents.keys[-1], record.rendition, dict(media))
        media.clear()


def _check_last_sample(contents: TarContents, expected: tuple[str, ...]) -> None:
    """Compares the members of the last sample with the expected ones."""
    if not contents.keys or tuple(contents.places[-1]) == expected:
        return
    missing = [name for name in expected if name not in contents.places[-1]]
    unexpected = [name for name in contents.places[-1] if name not in expected]
    problems = []
    if missing:
        problems.append(f"has no {', '.join(missing)}")
    if unexpected:
        problems.append(f"has {', '.join(unexpected)} as well")
    if not problems:
        problems.append("has its members in another order")
    contents.add_problem(f"sample {contents.keys[-1]} {' and '.join(problems)}")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, *, wants_media: bool) -> bytes | None:
    """The bytes of a member. None: its content is not checked."""
    is_checked = name.endswith((".npy", "json")) or (wants_media and name in ("mp4", "flac"))
    if not member.isreg() or not 0 < member.size <= MAX_MEMBER_BYTES or not is_checked:
        return None
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _member_problem(member: tarfile.TarInfo, data: bytes | None, key: str, name: str) -> str | None:
    """What is wrong with a member. None: nothing. ``data``: as of :func:`_content`."""
    if not member.isreg():
        return "is not a file"
    if member.size == 0:
        return "is empty"
    if member.size > MAX_MEMBER_BYTES and not name.endswith("mp4"):
        return f"has {member.size:,} bytes, more than the limit of {MAX_MEMBER_BYTES:,}"
    if data is None or name in ("mp4", "flac"):
        return None
    if name == "json":
        try:
            record: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            return f"is not JSON: {error}"
        recorded_key = record.get("key") if isinstance(record, dict) else None
        return None if recorded_key == key else f"is of key {recorded_key!r}"
    try:
        np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:  # MemoryError: a damaged header gives a huge shape
        return f"is not an array: {error}"
    return None


def _check_index(folder: Folder, record: ShardRecord, contents: TarContents) -> None:
    """Compares the index beside the tar with the places of its members."""
    name = record.index_path.rpartition("/")[2]
    try:
        summary = json.loads(folder.read_bytes(record.index_path))
        samples = {sample["key"]: sample["members"] for sample in summary["samples"]}
    except reading_failures() as error:
        return contents.add_problem(f"its index {name} {unreadable(error)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return contents.add_problem(f"its index {name} is damaged: {error!r}")
    if samples != dict(zip(contents.keys, contents.places, strict=True)):
        contents.add_problem(f"its index {name} has other places of the members than the tar")
    return None
