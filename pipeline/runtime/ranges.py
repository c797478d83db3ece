"""The Range header of a request for part of a file (RFC 9110, section 14), as the servers here answer it: one span of bytes."""

from __future__ import annotations

import re

_ONE_SPAN = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def byte_range(asked: str | None, size: int) -> tuple[int, int, bool] | None:
    """(start, stop, whether it is a part) of ``size`` bytes; None where nothing of what is asked for is there (status 416).

    A header that is missing, not understood, or asks for several spans gives the whole, as the standard allows.
    """
    found = _ONE_SPAN.fullmatch(asked or "")
    if found is None or not any(found.groups()):
        return 0, size, False
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop, True) if start < stop else None
