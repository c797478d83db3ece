"""Reading from elsewhere, no more than was agreed: a length that is told is checked at once, one that is not as the bytes come."""

from __future__ import annotations

from typing import IO, Any

BLOCK_BYTES = 1 << 20


class TooMuchError(OSError):
    """There is more than may be read. An OSError, like whatever else can go wrong with a file elsewhere."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"it has more than {max_bytes:,} bytes, which is all that is taken")


def reading_failures() -> tuple[type[Exception], ...]:
    """What file systems raise when something could not be read."""
    try:
        import aiohttp  # noqa: PLC0415 (only there for the web)
    except ImportError:
        return (OSError, EOFError)
    return (OSError, EOFError, aiohttp.ClientError)


def check_told_size(opened: Any, max_bytes: int) -> None:
    """Raises TooMuchError where an answer of http, or a file of fsspec, tells that it is larger."""
    headers = getattr(opened, "headers", None)
    told = headers.get("Content-Length") if headers is not None else getattr(opened, "size", None)
    if told is not None and str(told).isascii() and str(told).isdecimal() and int(told) > max_bytes:
        raise TooMuchError(max_bytes)


def copy_bounded(source: IO[bytes], target: IO[bytes], max_bytes: int) -> None:
    """Copies to the end. Raises TooMuchError."""
    check_told_size(source, max_bytes)
    num_bytes = 0
    while block := source.read(BLOCK_BYTES):
        num_bytes += len(block)
        if num_bytes > max_bytes:
            raise TooMuchError(max_bytes)
        target.write(block)


def read_bounded(source: IO[bytes], max_bytes: int) -> bytes:
    """All that is there. Raises TooMuchError."""
    check_told_size(source, max_bytes)
    data = bytearray()
    while block := source.read(BLOCK_BYTES):
        data += block
        if len(data) > max_bytes:
            raise TooMuchError(max_bytes)
    return bytes(data)
