"""Source lists that tests write, and what is read of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.schema import Source
from pipeline.sources.lists import (
    SourceList,
)

LISTS = Path(__file__).parents[3] / "manifests" / "sources"


def written(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def urls(found: SourceList) -> list[str]:
    return [source.url.rpartition("/")[2] for source in found.sources]


def lines(found: SourceList) -> list[int]:
    return [int(problem.listed_at.rpartition(":")[2]) for problem in found.problems]


def unlisted(found: SourceList) -> list[Source]:
    return [replace(source, listed_at=None) for source in found.sources]
