"""Reads files and HTTP answers up to a limit. A declared length is checked at once; without one the bytes are counted as they come."""

from __future__ import annotations

from typing import IO, Any

BLOCK_BYTES = 1 << 20


class TooMuchError(OSError):
    """A file or answer is larger than the limit. It is an OSError, like the other failures of reading."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"it has more than {max_bytes:,} bytes, which is the limit")


def reading_failures() -> tuple[type[Exception], ...]:
    """The errors that file systems raise when something cannot be read."""
    try:
        import aiohttp  # noqa: PLC0415 (needed for http only)
    except ImportError:
        return (OSError, EOFError)
    return (OSError, EOFError, aiohttp.ClientError)


def check_declared_size(opened: Any, max_bytes: int) -> None:
    """Raises TooMuchError if an HTTP answer (by its Content-Length) or a file of fsspec (by its size) is larger."""
    headers = getattr(opened, "headers", None)
    size = headers.get("Content-Length") if headers is not None else getattr(opened, "size", None)
    if size is not None and str(size).isascii() and str(size).isdecimal() and int(size) > max_bytes:
        raise TooMuchError(max_bytes)


def copy_bounded(source: IO[bytes], target: IO[bytes], max_bytes: int) -> None:
    """Copies to the end. Raises TooMuchError."""
    check_declared_size(source, max_bytes)
    num_bytes = 0
    while block := source.read(BLOCK_BYTES):
        num_bytes += len(block)
        if num_bytes > max_bytes:
            raise TooMuchError(max_bytes)
        target.write(block)


def read_bounded(source: IO[bytes], max_bytes: int) -> bytes:
    """Reads to the end. Raises TooMuchError."""
    check_declared_size(source, max_bytes)
    data = bytearray()
    while block := source.read(BLOCK_BYTES):
        data += block
        if len(data) > max_bytes:
            raise TooMuchError(max_bytes)
    return bytes(data)
