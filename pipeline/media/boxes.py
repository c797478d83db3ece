"""The outermost boxes of an MP4 or MOV file (ISO/IEC 14496-12, 4.2): what a demuxer stops before, where files were joined byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_BOXES = 1_000_000
"""Boxes that are looked at: more than the fragments of any film."""


class Box(NamedTuple):
    """``kind`` is its four letters, ``start`` its first byte in the file."""

    kind: bytes
    start: int
    num_bytes: int


def outer_boxes(path: Path) -> Iterator[Box]:
    """Up to the first place where none begins. Reads the head of each alone."""
    size = path.stat().st_size
    start = 0
    with path.open("rb") as file:
        for _ in range(MAX_BOXES):
            file.seek(start)
            head = file.read(16)
            if len(head) < 8:
                return
            num_bytes, kind = struct.unpack(">I4s", head[:8])
            if num_bytes == 1 and len(head) == 16:
                num_bytes = struct.unpack(">Q", head[8:])[0]
            elif num_bytes == 0:  # to the end of the file
                num_bytes = size - start
            if num_bytes < 8 or start + num_bytes > size:
                return
            yield Box(kind, start, num_bytes)
            start += num_bytes


def bytes_of_next_file(path: Path, end_byte: int) -> int:
    """Bytes of media behind ``end_byte``, the end of the last packet that was read, that another header of the file describes. 0 where
    there is one header, and where what it describes was read."""
    boxes = list(outer_boxes(path))
    if sum(box.kind == b"moov" for box in boxes) < 2:
        return 0
    return sum(box.num_bytes for box in boxes if box.kind == b"mdat" and box.start >= end_byte)
