"""Reads tensors from files of ``torch.save`` and from pickles, without torch's unpickler.

A file of ``torch.save`` is a zip (since torch 1.6), or in the older form several pickles, then the storages. A tensor in a plain pickle
holds its storage as bytes in the older form. Only the requested tensors are copied.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import GeneratorError
from trainer.model.formats.symbolic_pickle import Call, Global, Persistent, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ZIP_START = b"PK\x03\x04"
MAX_DIMENSIONS = 8
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_NUMPY_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """The numbers of a storage: a view into the file."""

    dtype: torch.dtype
    data: memoryview


FindStorage = Callable[[Any], Storage]
"""Returns the storage of a record."""


def read_torch_file(data: memoryview, origin: str) -> tuple[Any, FindStorage]:
    """The object in a file of ``torch.save``, as records, and a function that finds its storages. Raises GeneratorError."""
    return _read_zip(data, origin) if bytes(data[:4]) == ZIP_START else _read_legacy(data, origin)


def is_torch_file(data: memoryview) -> bool:
    """Whether these bytes start like a file of ``torch.save``."""
    start = bytes(data[:32])
    return start[:4] == ZIP_START or (start[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in start)


def storage_in_pickle(origin: str, most: int) -> FindStorage:
    """A function that finds storages inside the pickle itself. It raises GeneratorError after ``most`` bytes: one text that encodes bytes
    can be referenced many times."""

    known: dict[int, Storage] = {}
    left = most

    def find(record: Any) -> Storage:
        nonlocal left
        if not (isinstance(record, Call) and record.name == "torch.storage._load_from_bytes" and len(record.args) == 1):
            raise GeneratorError(f"{origin} is damaged: a tensor has no storage")
        key = id(record.args[0])  # the records outlive this function, so that ids are not reused
        if key not in known:
            storage_bytes = bytes_of(record.args[0], origin)
            left -= len(storage_bytes)
            if left < 0:
                raise GeneratorError(f"{origin}: its tensors are larger than the file; it is refused")
            top, find_inner = _read_legacy(memoryview(storage_bytes), origin)
            known[key] = find_inner(top)
        return known[key]

    return find


def _read_legacy(data: memoryview, origin: str) -> tuple[Any, FindStorage]:
    magic, position = read_pickle(data, origin)
    protocol, position = read_pickle(data, origin, start=position)
    system, position = read_pickle(data, origin, start=position)
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise GeneratorError(f"{origin} is not a file of torch.save, or of a version that is not known")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise GeneratorError(f"{origin} was written on a big-endian machine; save it again on another one")
    top, position = read_pickle(data, origin, start=position, persistent=True)
    keys, position = read_pickle(data, origin, start=position)
    types = _storage_types(top, origin)
    storages: dict[str, Storage] = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in types or position + 8 > len(data):
            raise GeneratorError(f"{origin} is damaged: it lists a storage that nothing uses, or ends too early")
        (size,) = struct.unpack("<q", data[position : position + 8])
        num_bytes = size * types[key].itemsize
        position += 8
        if not 0 <= num_bytes <= len(data) - position:
            raise GeneratorError(f"{origin} is damaged: a storage of {size:,} numbers does not fit into the file")
        storages[key] = Storage(types[key], data[position : position + num_bytes])
        position += num_bytes
    return top, lambda record: _by_key(record, storages, origin)


def _storage_types(top: Any, origin: str) -> dict[str, torch.dtype]:
    """The types of all storages that records below ``top`` refer to, by key."""
    types: dict[str, torch.dtype] = {}
    visited: set[int] = set()
    waiting = [top]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Persistent):
            key, dtype = _storage_key(one, origin)
            if types.setdefault(key, dtype) != dtype:
                raise GeneratorError(f"{origin} is damaged: storage {key[:40]!r} has two types")
        elif isinstance(one, dict | list | tuple | Call) and id(one) not in visited:
            visited.add(id(one))
            waiting += one.values() if isinstance(one, dict) else _parts(one)
    return types


def _parts(one: list[Any] | tuple[Any, ...] | Call) -> list[Any]:
    return [*one.args, one.state, *one.members] if isinstance(one, Call) else list(one)


def _storage_key(record: Persistent, origin: str) -> tuple[str, torch.dtype]:
    match record.key:
        case ("storage", Global(name), str(key), str(), int(), *rest) if name in _DTYPES and rest in ([], [None]):
            return key, _DTYPES[name]
    raise GeneratorError(f"{origin} is damaged: a tensor has a storage that cannot be read")


def _by_key(record: Any, storages: Mapping[str, Storage], origin: str) -> Storage:
    if not isinstance(record, Persistent):
        raise GeneratorError(f"{origin} is damaged: a tensor has no storage")
    key, dtype = _storage_key(record, origin)
    if key not in storages or storages[key].dtype != dtype:
        raise GeneratorError(f"{origin} is not complete: storage {key[:40]!r} is missing")
    return storages[key]


def _read_zip(data: memoryview, origin: str) -> tuple[Any, FindStorage]:
    try:
        with zipfile.ZipFile(_Seekable(data)) as opened:
            entries = {info.filename: info for info in opened.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise GeneratorError(f"{origin} is damaged: {error}; fetch it again") from error
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise GeneratorError(f"{origin} is a zip, but not one of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(folder + "byteorder")
    if order is not None and bytes(_stored(data, order, origin)) != b"little":
        raise GeneratorError(f"{origin} was written on a big-endian machine; save it again on another one")
    top, _ = read_pickle(_stored(data, entries[pickles[0]], origin), origin, persistent=True)

    def find(record: Any) -> Storage:
        if not isinstance(record, Persistent):
            raise GeneratorError(f"{origin} is damaged: a tensor has no storage")
        key, dtype = _storage_key(record, origin)
        if (info := entries.get(f"{folder}data/{key}")) is None:
            raise GeneratorError(f"{origin} is not complete: storage {key[:40]!r} is missing")
        return Storage(dtype, _stored(data, info, origin))

    return top, find


class _Seekable(io.RawIOBase):
    """A seekable file over bytes, without a copy."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: Any) -> int:
        piece = self._data[self._position : self._position + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _stored(data: memoryview, info: zipfile.ZipInfo, origin: str) -> memoryview:
    """The bytes of a zip entry, as a view into the file. torch does not compress; a compressed entry is refused."""
    header = data[info.header_offset : info.header_offset + 30]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise GeneratorError(f"{origin}: {info.filename[:60]!r} is compressed or locked, which torch.save never does")
    if len(header) < 30 or bytes(header[:4]) != ZIP_START:
        raise GeneratorError(f"{origin} is damaged: {info.filename[:60]!r} is not where its list says")
    name_size, extra_size = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_size + extra_size
    if start + info.file_size > len(data):
        raise GeneratorError(f"{origin} is not complete: {info.filename[:60]!r} ends after the file; fetch it again")
    return data[start : start + info.file_size]


def is_tensor(record: Any) -> bool:
    """Whether a record stands for a tensor."""
    names = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
    return isinstance(record, Call) and record.name in names


def tensor_of(record: Any, find_storage: FindStorage, origin: str) -> Tensor:
    """The tensor of a record, copied from the file. Raises GeneratorError for a tensor that its storage does not hold.

    A tensor must not have more numbers than its storage, so that a small file cannot take much memory.
    """
    if isinstance(record, Call) and record.name == "torch._utils._rebuild_parameter" and record.args:
        record = record.args[0]
    match record:
        case Call(name, (key, int(offset), shape, stride, *_)) if name.startswith("torch._utils._rebuild_tensor"):
            shape, stride = _sizes(shape, origin), _sizes(stride, origin)
        case _:
            raise GeneratorError(f"{origin} is damaged: {type(record).__name__} where a tensor should be")
    storage = find_storage(key)
    num_stored = len(storage.data) // storage.dtype.itemsize
    count = math.prod(shape)
    reach = offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=False))
    if len(shape) != len(stride) or offset < 0 or count > num_stored or (count and reach > num_stored):
        raise GeneratorError(
            f"{origin} is damaged: a tensor of shape {shape} reaches beyond its {num_stored:,} numbers"
        )
    if not count:
        return torch.empty(shape, dtype=storage.dtype)
    size = storage.dtype.itemsize
    # integers of the same size stand for any type; they become the storage's type at the end
    raw = np.frombuffer(storage.data, f"i{size}", count=reach - offset, offset=offset * size)
    strided = np.lib.stride_tricks.as_strided(raw, shape, [step * size for step in stride], writeable=False)
    copied = torch.from_numpy(np.array(strided, order="C"))
    return copied if copied.dtype == storage.dtype else copied.view(storage.dtype)


def _sizes(value: Any, origin: str) -> tuple[int, ...]:
    if isinstance(value, Call) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    good = isinstance(value, tuple | list) and len(value) <= MAX_DIMENSIONS
    if not good or not all(type(size) is int and 0 <= size < 2**40 for size in value):
        raise GeneratorError(f"{origin} is damaged: the shape of a tensor is not a list of sizes")
    return tuple(value)


def bytes_of(record: Any, origin: str) -> bytes:
    """The bytes of a record: bytes, or as in protocol 2 a text and the name of its encoding. Raises GeneratorError."""
    match record:
        case bytes() | bytearray():
            return bytes(record)
        case Call("_codecs.encode", (str(text), "latin1" | "latin-1")):
            return text.encode("latin-1", errors="replace")
    raise GeneratorError(f"{origin} is damaged: {type(record).__name__} where bytes should be")


def plain_number(record: Any, origin: str) -> Any:
    """A numpy number as a Python number; any other record unchanged."""
    if not (isinstance(record, Call) and record.name.endswith(".multiarray.scalar") and len(record.args) == 2):
        return record
    kind, content = record.args
    match kind:
        case Call("numpy.dtype", (str(code), *_)) if code in _NUMPY_NUMBERS:
            dtype = np.dtype(f"<{code}")
        case _:
            raise GeneratorError(f"{origin} holds a number of a type that is not known")
    data = bytes_of(content, origin)
    if len(data) != dtype.itemsize:
        raise GeneratorError(f"{origin} is damaged: a number of {len(data)} bytes")
    return np.frombuffer(data, dtype)[0].item()
