"""Parses the Range header of a request for part of a file (RFC 9110, section 14): one span of bytes."""

from __future__ import annotations

import re

_ONE_SPAN = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def byte_range(header: str | None, size: int) -> tuple[int, int, bool] | None:
    """(start, stop, whether it is a part) of a file of ``size`` bytes. None: the span is outside of the file (status 416).

    A header that is missing, invalid, or asks for several spans gives the whole file, as the standard allows.
    """
    match = _ONE_SPAN.fullmatch(header or "")
    if match is None or not any(match.groups()):
        return 0, size, False
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop, True) if start < stop else None
