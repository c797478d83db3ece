"""Hashes files while they are written or read, so that they need not be read again."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import IO, Any


class HashingWriter(io.RawIOBase):
    """Writes to ``file``, and computes the SHA-256 and the number of bytes. Closing it does not close ``file``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.num_bytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._digest.update(view)
        self.num_bytes += len(view)
        return len(view)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class HashingReader:
    """Reads from ``file``, forwards only, and computes the SHA-256 and the number of bytes so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self.num_bytes += len(data)
        return data

    def drain(self) -> None:
        """Reads to the end."""
        while self.read(1 << 20):
            pass

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def sha256_of(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
