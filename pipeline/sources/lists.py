"""Source lists: what a build is asked to fetch, read from csv, tsv, jsonl or parquet and merged into one list.

A bad row costs itself: it becomes a :class:`RowProblem`, which the build enters into the ledger as a failed source.
Only a list that cannot be used at all (no such file, a wrong header, not one good row) is an error.
The format is documented by example in ``manifests/sources/README.md``.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceListError
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import Source, stable_hash
from pipeline.sources.cells import Cells, default_id
from pipeline.sources.links import canonical_url, scheme_of
from pipeline.sources.rows import COLUMNS, Row, read_rows

MAX_PROBLEMS_SHOWN = 50
MAX_ROWS = 10_000_000
"""Of all lists together: they are held in memory, about 1 KB each."""
MAX_TEXT_SHOWN = 160


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that is no source."""

    listed_at: str
    """``FILE:LINE`` (parquet: the number of the row)."""
    text: str
    """The row as it stands in the list, shortened, on one line."""
    message: str
    """What is wrong with it and what to write instead."""

    @property
    def source_id(self) -> str:
        """An id for the ledger, where this row is a failed source: the same while the row stays where it is."""
        return f"bad-row-{stable_hash(ascii(self.listed_at), self.text)}"

    def __str__(self) -> str:
        return f"{self.listed_at}: {self.message} (in: {self.text})"


@dataclass(frozen=True, slots=True)
class SourceList:
    """What was listed. Every row is one of the three: ``num_rows = len(sources) + len(problems) + merged``."""

    sources: tuple[Source, ...]
    """In the order of their first rows. Ids are unique, and so is each pair of URL and span."""
    problems: tuple[RowProblem, ...] = ()
    merged: int = 0
    """Rows that repeat the URL and span of an earlier one."""

    @property
    def num_rows(self) -> int:
        return len(self.sources) + len(self.problems) + self.merged


def read_sources(path: str | Path) -> SourceList:
    """Read one source list: a local path, an http(s) link, or any URL of fsspec, in the format that its ending names.

    Raises :class:`SourceListError` when the file or its header cannot be used, or when it holds not one good row.
    """
    return read_source_lists([path])


def read_source_lists(paths: Iterable[str | Path]) -> SourceList:
    """Read several lists as if they were one: duplicates are merged across them, and ids are unique across them.

    Raises :class:`SourceListError`, naming every list that cannot be used, or when there is no good row in any.
    """
    paths = list(paths)
    gathered = Gathering()
    troubles: list[SourceListError] = []
    for path in paths:
        folder = _folder_of(path)
        try:
            for row in read_rows(path):
                gathered.add(row, path, folder)
        except SourceListError as error:
            troubles.append(_masked(error))
    if len(troubles) == 1:
        raise troubles[0]
    if troubles:
        each = [str(trouble).replace("\n  ", "; ") for trouble in troubles]
        raise SourceListError(f"{len(troubles)} source lists cannot be used:", each)
    return gathered.finish(", ".join(_masked_name(path) for path in paths) or "no source list was named")


@functools.lru_cache(maxsize=64)
def _masked_name(path: str | Path) -> str:
    return mask_secrets(str(path))


def _masked(error: SourceListError) -> SourceListError:
    """The name of a list, and what stands in it, may hold signatures and passwords."""
    masked = SourceListError(mask_secrets(str(error)))
    masked.problems = tuple(map(mask_secrets, error.problems))
    return masked


def _folder_of(path: str | Path) -> str | None:
    """Where a list's relative paths begin, with the separator. None: nowhere (a list inside an archive)."""
    name = str(path)
    if scheme_of(name) is None:
        return os.path.join(Path(path).absolute().parent, "")  # noqa: PTH118  (keeps the separator)
    if "::" in name:
        return None
    return name.partition("?")[0].rpartition("/")[0] + "/"


def printable(text: str) -> str:
    """Text from outside on one line, shortened, with what cannot be printed escaped."""
    text = text.strip()
    short = text if len(text) <= MAX_TEXT_SHOWN else text[: MAX_TEXT_SHOWN - 1] + "…"
    if short.isprintable():
        return short
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in short)


class Gathering:
    """Rows on their way to a :class:`SourceList`: each is checked, and merged with its like."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._problems: list[RowProblem] = []
        self._merged = 0
        self._by_place: dict[tuple[str, int, int | None], int] = {}
        self._by_id: dict[str, int] = {}

    @property
    def num_rows(self) -> int:
        """How many rows were taken so far, good or not."""
        return len(self._sources) + len(self._problems) + self._merged

    def add(self, row: Row, path: str | Path, folder: str | None = None) -> None:
        """Take a row of the list ``path``; its relative paths begin at ``folder`` (None: it may have none)."""
        listed_at = f"{_masked_name(path)}:{row.line}"
        if self.num_rows >= MAX_ROWS:
            raise SourceListError(f"{listed_at}: more than {MAX_ROWS:,} rows: divide them among several datasets")
        problem = row.problem
        if problem is None:
            cells = Cells.of(row.cells, folder)
            problem = "; ".join(cells.problems) or self._add(cells, listed_at)
        if problem is not None:
            self._problems.append(RowProblem(listed_at, mask_secrets(printable(row.text)), mask_secrets(problem)))

    def _add(self, cells: Cells, listed_at: str) -> str | None:
        """Enter a good row as a source of its own, or unite it with its like. Text: why it can be neither."""
        place = (canonical_url(cells.url), cells.start_ms, cells.end_ms)
        if (at := self._by_place.get(place)) is not None:
            self._sources[at] = _united(self._sources[at], cells)
            self._merged += 1
            return None
        source_id = cells.given_id or default_id(cells.url, cells.written or place[0], *place[1:])
        if not cells.given_id and source_id in self._by_id:  # the same relative path in two folders
            source_id = default_id(cells.url, ascii(place[0]), *place[1:], length=16)
        if (at := self._by_id.get(source_id)) is not None:
            other = self._sources[at]
            return f"id {source_id!r} belongs to {other.url} ({other.listed_at}) already: give each source its own"
        self._by_place[place] = self._by_id[source_id] = len(self._sources)
        rest = (cells.labels, cells.caption, cells.licence, cells.split, listed_at)
        self._sources.append(Source(source_id, cells.url, cells.start_ms, cells.end_ms, *rest))
        return None

    def finish(self, names: str) -> SourceList:
        """What was gathered from the lists ``names``. Raises :class:`SourceListError` if that is no source at all."""
        if self._sources:
            return SourceList(tuple(self._sources), tuple(self._problems), self._merged)
        lines = [str(problem) for problem in self._problems[:MAX_PROBLEMS_SHOWN]]
        if more := len(self._problems) - len(lines):
            lines.append(f"and {more:,} more rows with problems")
        what = f"none of the {len(self._problems):,} rows can be used:" if lines else "there are no rows"
        raise SourceListError(f"{names}: {what}", lines)


def _united(first: Source, cells: Cells) -> Source:
    """Labels of both; of the rest, what came first."""
    return dataclasses.replace(
        first,
        labels=tuple(dict.fromkeys((*first.labels, *cells.labels))),
        caption=first.caption or cells.caption,
        licence=first.licence or cells.licence,
        split=first.split or cells.split,
    )


def write_sources(sources: Sequence[Source], path: str | Path) -> None:
    """Write a csv that :func:`read_sources` reads back as the same sources. Columns without a value are left out."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise SourceListError(f"{path}: a source list is written as .csv")
    rows = [_as_cells(source) for source in sources]
    columns = [column for column in COLUMNS if column in ("id", "url") or any(row[column] for row in rows)]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        unfinished.replace(path)
    except OSError as error:
        if unfinished.is_file():
            unfinished.unlink()
        raise SourceListError(f"{path}: cannot be written: {error}") from error


def _as_cells(source: Source) -> dict[str, str]:
    """A source as the cells of a csv row. The id stands first: it never begins with ``#``, which would be a comment."""
    if any("|" in label for label in source.labels):
        raise SourceListError(f"source {source.source_id}: a label with '|' cannot be listed: {source.labels}")
    if source.url != source.url.strip():
        raise SourceListError(
            f"source {source.source_id}: a path that ends in a space cannot be listed: {source.url!r}"
        )
    return {
        "id": source.source_id,
        "url": source.url,
        "path": "",
        "start": _seconds(source.start_ms) if source.start_ms else "",
        "end": _seconds(source.end_ms) if source.end_ms is not None else "",
        "labels": "|".join(source.labels),
        "caption": source.caption or "",
        "licence": source.licence or "",
        "split": source.split or "",
    }


def _seconds(time_ms: int) -> str:
    return f"{time_ms // 1000}.{time_ms % 1000:03d}".rstrip("0").rstrip(".")
