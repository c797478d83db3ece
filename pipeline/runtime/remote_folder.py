"""A folder elsewhere that is read, and asked again when its server stumbles; one on this machine is an ordinary folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, TypeVar, cast

from pipeline.runtime.folder import Folder
from pipeline.runtime.remote import Retries, retried, told_truly

T = TypeVar("T")

BUFFER_BYTES = 1 << 20


def read_folder(url: str, retries: Retries | None = None) -> Folder:
    """The folder at a path or URL. ``retries``: None: the defaults. Raises OutputError where it cannot be named so."""
    folder = Folder(url)
    return folder if folder.local_path is not None else RemoteFolder(url, retries or Retries())


class RemoteFolder(Folder):
    """Its readings raise the last error, an OSError or aiohttp's, where all tries failed."""

    def __init__(self, url: str, retries: Retries) -> None:
        super().__init__(url)
        self._retries = retries

    def _patiently(self, name: str, call: Callable[[], T]) -> T:
        return retried(lambda: told_truly(call), f"{self.url}/{name}", self._retries)

    def exists(self, name: str) -> bool:
        try:
            self._patiently(name, lambda: self._fs.info(self._at(name)))
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> IO[bytes]:
        file = self._patiently(name, lambda: super(RemoteFolder, self).open(name))
        return cast(
            "IO[bytes]", io.BufferedReader(_Patient(file, lambda call: self._patiently(name, call)), BUFFER_BYTES)
        )

    def read_bytes(self, name: str) -> bytes:
        return self._patiently(name, lambda: super(RemoteFolder, self).read_bytes(name))


class _Patient(io.RawIOBase):
    """A file elsewhere, whose readings are tried again."""

    def __init__(self, file: IO[bytes], patiently: Callable[[Callable[[], bytes]], bytes]) -> None:
        self._file, self._patiently = file, patiently

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))
        place = self._file.tell()

        def read() -> bytes:
            if self._file.tell() != place:
                self._file.seek(place)
            return self._file.read(len(view))

        data = self._patiently(read)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
