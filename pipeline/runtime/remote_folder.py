"""A folder on another machine, read with retries. A local folder is an ordinary :class:`Folder`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, TypeVar, cast

from pipeline.runtime.folder import Folder
from pipeline.runtime.remote import Retries, retried, with_true_cause

T = TypeVar("T")

BUFFER_BYTES = 1 << 20


def read_folder(url: str, retries: Retries | None = None) -> Folder:
    """The folder at a path or URL. ``retries`` None: the defaults. Raises OutputError for an invalid path or URL."""
    folder = Folder(url)
    return folder if folder.local_path is not None else RemoteFolder(url, retries or Retries())


class RemoteFolder(Folder):
    """A folder that is read with retries. If all fail, its methods raise the last error, an OSError or one of aiohttp."""

    def __init__(self, url: str, retries: Retries) -> None:
        super().__init__(url)
        self._retries = retries

    def _with_retries(self, name: str, call: Callable[[], T]) -> T:
        return retried(lambda: with_true_cause(call), f"{self.url}/{name}", self._retries)

    def exists(self, name: str) -> bool:
        try:
            self._with_retries(name, lambda: self._fs.info(self._at(name)))
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> IO[bytes]:
        file = self._with_retries(name, lambda: super(RemoteFolder, self).open(name))
        retrying = _RetryingFile(file, lambda call: self._with_retries(name, call))
        return cast("IO[bytes]", io.BufferedReader(retrying, BUFFER_BYTES))

    def read_bytes(self, name: str) -> bytes:
        return self._with_retries(name, lambda: super(RemoteFolder, self).read_bytes(name))


class _RetryingFile(io.RawIOBase):
    """A file whose reads are tried again."""

    def __init__(self, file: IO[bytes], with_retries: Callable[[Callable[[], bytes]], bytes]) -> None:
        self._file, self._with_retries = file, with_retries

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

        data = self._with_retries(read)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
