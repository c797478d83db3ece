"""What a Range header asks of ten bytes."""

from __future__ import annotations

import pytest

from pipeline.runtime.ranges import byte_range


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (0, 10, False)), ("bytes=0-3", (0, 4, True)), ("bytes=5-", (5, 10, True)), ("bytes=9-9", (9, 10, True)),
        ("bytes=-4", (6, 10, True)), ("bytes=-40", (0, 10, True)), ("bytes=-0", None),
        ("bytes=3-99", (3, 10, True)), ("bytes=10-", None), ("bytes=7-3", None), ("bytes=-", (0, 10, False)), ("lines=1-2", (0, 10, False)),
        ("bytes=0-1,4-5", (0, 10, False)), (f"bytes={'9' * 5000}-", (0, 10, False)), ("bytes=٣-", (0, 10, False)),
    ],
)  # fmt: skip
def test_ranges(asked: str | None, expected: tuple[int, int, bool] | None) -> None:
    assert byte_range(asked, 10) == expected


def test_nothing_of_an_empty_file_can_be_asked_for() -> None:
    assert byte_range("bytes=0-", 0) is None
    assert byte_range(None, 0) == (0, 0, False)
