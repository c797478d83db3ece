"""What is told of clips that may come twice though they are no duplicates by picture and sound."""

from __future__ import annotations

import pytest

from pipeline.dataset.dedup import DedupSettings
from pipeline.dataset.repeats import Stretch, overlapping, repeat_notes


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ([("x", 0, 10, "a"), ("x", 4, 14, "b")], ["a", "b"]),
        ([("x", 0, 10, "a"), ("x", 6, 16, "b")], []),
        ([("x", 0, 10, "a"), ("x", 8, 12, "b")], ["a", "b"]),  # half of the shorter
        ([("x", 0, 10, "a"), ("x", 4, 14, "a")], []),  # one source: a stride below the length is wanted so
        ([("x", 0, 10, "a"), ("y", 0, 10, "b")], []),
        ([("x", 0, 90, "a"), ("x", 1, 3, "a"), ("x", 70, 80, "b")], ["a", "b"]),
    ],
)
def test_overlapping_sections_of_one_file_are_found(
    stretches: list[tuple[str, int, int, str]], expected: list[str]
) -> None:
    found = [Stretch(name, 1000 * start, 1000 * end, source) for name, start, end, source in reversed(stretches)]
    assert overlapping(found) == expected


def test_what_is_told() -> None:
    stretches = [Stretch("x", 0, 10_000, "a"), Stretch("x", 5_000, 15_000, "b"), Stretch("y", 0, 2_000, "c")]
    short, overlap = repeat_notes(stretches, DedupSettings())
    assert short.startswith("1 of 3 kept clips are shorter than dedup.min_overlap_seconds (3 s)")
    assert "that is the same file: a, b. Their rows" in overlap
    assert repeat_notes(stretches, DedupSettings(reject_duplicates=False)) == []
    assert repeat_notes([Stretch("x", 0, 10_000, "a")], DedupSettings()) == []
