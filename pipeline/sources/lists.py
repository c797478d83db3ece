"""Source lists: reads the sources of a build from csv, tsv, jsonl or parquet, and merges them into one list.

A bad row does not affect the others: it becomes a :class:`RowProblem`, which the ledger lists as a failed source. Only a list that
cannot be used at all (a missing file, a wrong header, no good row) is an error. ``manifests/sources/README.md`` documents the format by
example.
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
"""Most rows of all lists together. They are in memory, about 1 KB each."""
MAX_TEXT_SHOWN = 160


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that cannot be used."""

    listed_at: str
    """``FILE:LINE``; for parquet the number of the row."""
    text: str
    """The text of the row, shortened, on one line."""
    message: str
    """The problem, and what to write instead."""

    @property
    def source_id(self) -> str:
        """The id of the row in the ledger, where it is a failed source. It depends on the row's text and place."""
        return f"bad-row-{stable_hash(ascii(self.listed_at), self.text)}"

    def __str__(self) -> str:
        return f"{self.listed_at}: {self.message} (in: {self.text})"


@dataclass(frozen=True, slots=True)
class SourceList:
    """The content of one or several lists: ``num_rows = len(sources) + len(problems) + merged``."""

    sources: tuple[Source, ...]
    """In the order of their first rows. Ids are unique, and so are the pairs of URL and span."""
    problems: tuple[RowProblem, ...] = ()
    merged: int = 0
    """Number of rows that repeat the URL and span of an earlier row."""

    @property
    def num_rows(self) -> int:
        return len(self.sources) + len(self.problems) + self.merged


def read_sources(path: str | Path) -> SourceList:
    """Reads one source list at a local path, an http(s) link or a URL of fsspec. Its suffix gives the format.

    Raises SourceListError if the file or its header cannot be used, or if it has no good row.
    """
    return read_source_lists([path])


def read_source_lists(paths: Iterable[str | Path]) -> SourceList:
    """Reads several lists as if they were one: duplicates are merged across them, and ids are unique across them.

    Raises SourceListError, which names every list that cannot be used, or if there is no good row in any of them.
    """
    paths = list(paths)
    rows = Gathering()
    errors: list[SourceListError] = []
    for path in paths:
        folder = _folder_of(path)
        try:
            for row in read_rows(path):
                rows.add(row, path, folder)
        except SourceListError as error:
            errors.append(_masked(error))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        messages = [str(error).replace("\n  ", "; ") for error in errors]
        raise SourceListError(f"{len(errors)} source lists cannot be used:", messages)
    return rows.finish(", ".join(_masked_name(path) for path in paths) or "no source list was named")


@functools.lru_cache(maxsize=64)
def _masked_name(path: str | Path) -> str:
    return mask_secrets(str(path))


def _masked(error: SourceListError) -> SourceListError:
    """The error with its secrets masked: links of lists and sources may contain signatures and passwords."""
    masked = SourceListError(mask_secrets(str(error)))
    masked.problems = tuple(map(mask_secrets, error.problems))
    return masked


def _folder_of(path: str | Path) -> str | None:
    """The folder that relative paths of a list begin at, with a separator at its end. None: there is none (a list inside an archive)."""
    name = str(path)
    if scheme_of(name) is None:
        return os.path.join(Path(path).absolute().parent, "")  # noqa: PTH118  (keeps the separator)
    if "::" in name:
        return None
    return name.partition("?")[0].rpartition("/")[0] + "/"


def printable(text: str) -> str:
    """The text on one line, shortened, with characters that cannot be printed escaped."""
    text = text.strip()
    short = text if len(text) <= MAX_TEXT_SHOWN else text[: MAX_TEXT_SHOWN - 1] + "…"
    if short.isprintable():
        return short
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)


class Gathering:
    """Collects rows into a :class:`SourceList`: each row is checked, and merged with an earlier row of the same URL and span."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._problems: list[RowProblem] = []
        self._merged = 0
        self._by_place: dict[tuple[str, int, int | None], int] = {}
        self._by_id: dict[str, int] = {}

    @property
    def num_rows(self) -> int:
        """Number of rows so far, good and bad."""
        return len(self._sources) + len(self._problems) + self._merged

    def add(self, row: Row, path: str | Path, folder: str | None = None) -> None:
        """Adds a row of the list ``path``. ``folder``: where its relative paths begin. None: they are not allowed."""
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
        """Adds a good row as a new source, or merges it with an earlier one. Returns a problem if its id is used by another source."""
        place = (canonical_url(cells.url), cells.start_ms, cells.end_ms)
        if (at := self._by_place.get(place)) is not None:
            self._sources[at] = _merged(self._sources[at], cells)
            self._merged += 1
            return None
        source_id = cells.given_id or default_id(cells.url, cells.written or place[0], *place[1:])
        if not cells.given_id and source_id in self._by_id:  # the same relative path in two folders
            source_id = default_id(cells.url, ascii(place[0]), *place[1:], length=16)
        if (at := self._by_id.get(source_id)) is not None:
            other = self._sources[at]
            return f"id {source_id!r} already belongs to {other.url} ({other.listed_at}): give each source its own id"
        self._by_place[place] = self._by_id[source_id] = len(self._sources)
        rest = (cells.labels, cells.caption, cells.licence, cells.split, listed_at)
        self._sources.append(Source(source_id, cells.url, cells.start_ms, cells.end_ms, *rest))
        return None

    def finish(self, names: str) -> SourceList:
        """The collected list. ``names``: the names of its lists, for messages. Raises SourceListError if it has no source."""
        if self._sources:
            return SourceList(tuple(self._sources), tuple(self._problems), self._merged)
        lines = [str(problem) for problem in self._problems[:MAX_PROBLEMS_SHOWN]]
        if more := len(self._problems) - len(lines):
            lines.append(f"and {more:,} more rows with problems")
        what = f"none of the {len(self._problems):,} rows can be used:" if lines else "there are no rows"
        raise SourceListError(f"{names}: {what}", lines)


def _merged(first: Source, cells: Cells) -> Source:
    """The source with the labels of both rows; for the other fields the first value that is given."""
    return dataclasses.replace(
        first,
        labels=tuple(dict.fromkeys((*first.labels, *cells.labels))),
        caption=first.caption or cells.caption,
        licence=first.licence or cells.licence,
        split=first.split or cells.split,
    )


def write_sources(sources: Sequence[Source], path: str | Path) -> None:
    """Writes a csv that :func:`read_sources` reads as the same sources. Columns without a value are left out. Raises SourceListError."""
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
    """A source as the cells of a csv row. The id is the first column, because it never begins with ``#``, which would be a comment."""
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
