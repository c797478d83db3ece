"""The file formats of source lists: csv, tsv, jsonl and parquet, read row by row, whatever else is wrong with the file.

A row that cannot be read is given back with its problem; only what concerns the whole file is raised.
"""

from __future__ import annotations

import difflib
import http.client
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet

from pipeline.errors import SourceListError
from pipeline.runtime.bounded import copy_bounded
from pipeline.sources.delimited import (
    MAX_ROW_CHARS,
    DelimitedRow,
    Lines,
    delimited_rows,
    problem_with_length,
    problem_with_text,
)
from pipeline.sources.links import known_schemes, scheme_of

COLUMNS = ("id", "url", "path", "start", "end", "labels", "caption", "licence", "split")
ALIASES = {"label": "labels", "license": "licence"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*DELIMITERS, ".jsonl", ".ndjson", ".parquet")

HTTP_TIMEOUT_SECONDS = 60.0
MAX_LIST_BYTES = 2 << 30
"""Largest list behind http(s)."""
MAX_GROUP_BYTES = 1 << 30
"""Largest row group of a parquet file, unpacked: a whole group is in memory at a time."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Row:
    """One row: ``cells`` by column, or the ``problem`` that made it unreadable."""

    line: int
    """From 1. Of parquet, where there are no lines, the row."""
    text: str
    cells: Mapping[str, Any]
    problem: str | None = None


def list_format(path: str | Path) -> str:
    """The ending that says how a list is written: ``.csv``, ``.parquet``, ..."""
    name = str(path)
    if scheme_of(name):
        name = name.partition("::")[0].partition("?")[0]
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  (a URL is no Path)
    if ending not in FORMATS:
        raise SourceListError(f"{path}: cannot tell the format from {ending!r}: name it {', '.join(FORMATS)}")
    return ending


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a source list with named columns, in order. Blank lines and csv comments are left out.

    Raises :class:`SourceListError` when the file cannot be opened or its header is wrong.
    """
    ending = list_format(path)
    if ending == ".parquet":
        return _parquet_rows(path)
    if ending in DELIMITERS:
        return _delimited_rows(path, DELIMITERS[ending])
    return _json_rows(path)


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    """A list opened for reading; every way in which that fails is a :class:`SourceListError`."""
    name = str(path)
    try:
        scheme = scheme_of(name)
        if scheme is None:
            with Path(path).open("rb") as stream:
                yield stream
        elif scheme in ("http", "https"):
            with _fetched(name) as stream:
                yield stream
        elif scheme in known_schemes():
            with fsspec.open(name, "rb") as stream:
                yield stream
        else:
            raise SourceListError(f"{path}: unknown protocol {scheme}://")
    except SourceListError:
        raise
    except FileNotFoundError as error:
        raise SourceListError(f"{path}: there is no such file") from error
    except (OSError, http.client.HTTPException) as error:
        raise SourceListError(f"{path}: cannot be read: {error}") from error
    except ImportError as error:
        raise SourceListError(f"{path}: this protocol needs another package: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceListError(f"{path}: is not a readable parquet file: {error}") from error


@contextmanager
def _fetched(url: str) -> Iterator[IO[bytes]]:
    """A list behind http(s), copied to a temporary file: parquet needs to seek."""
    try:
        answer = urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise SourceListError(f"{url}: the server answers {error.code} {error.reason}") from error
    with answer, tempfile.TemporaryFile() as stream:
        copy_bounded(answer, stream, MAX_LIST_BYTES)
        stream.seek(0)
        yield stream


def read_delimited_rows(path: str | Path, delimiter: str = ",", *, comments: bool = True) -> Iterator[DelimitedRow]:
    """The rows of a delimited file of any shape, without names; not blank ones nor, with ``comments``, ``#`` lines."""
    with _opened(path) as stream:
        lines = Lines(stream)
        try:
            yield from delimited_rows(lines, delimiter, None, comments=comments)
        finally:
            lines.close()


def _header(path: str | Path, record: DelimitedRow | None, delimiter: str) -> list[str | None]:
    """The columns by position; None for a nameless column at the end."""
    if record is None:
        raise SourceListError(f"{path}: is empty: the first line must name the columns")
    at = f"{path}:{record.line}" if record.line else str(path)
    if record.text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise SourceListError(f"{at}: the file is UTF-16: save it as UTF-8")
    if record.problem:
        raise SourceListError(f"{at}: the header cannot be read: {record.problem}")
    names = [name.strip().lower() for name in record.cells]
    while names and not names[-1]:
        names.pop()
    if len(names) == 1 and (other := next((mark for mark in "\t;,|" if mark in names[0]), None)):
        raise SourceListError(f"{at}: cells are separated by {delimiter!r} here, but the header has {other!r}")
    problems = [f"{at}: {problem}" for name in names if (problem := problem_with_column(name))]
    columns = [ALIASES.get(name, name) for name in names]
    problems += [f"{at}: column {name!r} twice" for name in sorted({n for n in columns if columns.count(n) > 1})]
    if not {"url", "path"} & set(columns):
        problems.append(f"{at}: no column 'url' (or 'path'): {', '.join(names)}")
    if problems:
        raise SourceListError("the header cannot be used", problems)
    return [*columns, *[None] * (len(record.cells) - len(columns))]


def problem_with_column(name: str) -> str | None:
    if name in COLUMNS or name in ALIASES:
        return None
    near = difflib.get_close_matches(name, [*COLUMNS, *ALIASES], n=1, cutoff=0.5)
    known = f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(COLUMNS)}"
    return f"unknown column {name!r}: {known}"


def _delimited_rows(path: str | Path, delimiter: str) -> Iterator[Row]:
    with _opened(path) as stream:
        lines = Lines(stream)
        try:
            columns = _header(path, next(delimited_rows(lines, delimiter, None), None), delimiter)
            named = [column for column in columns if column is not None]
            for record in delimited_rows(lines, delimiter, len(columns)):
                cells, problem = record.cells, record.problem
                if not problem and len(cells) != len(columns) and any(map(str.strip, cells[len(columns) :])):
                    problem = (
                        f"{len(cells)} cells, but the header has {len(columns)}: "
                        f"put a cell that holds {delimiter!r} in double quotes"
                    )
                elif not problem and len(cells) < len(named):
                    problem = f"{len(cells)} cells, but the header has {len(named)}"
                yield Row(record.line, record.text, dict(zip(named, map(str.strip, cells), strict=False)), problem)
        finally:
            lines.close()


def _json_rows(path: str | Path) -> Iterator[Row]:
    with _opened(path) as stream:
        lines = Lines(stream)
        try:
            while lines.peek(0) is not None:
                line, text = lines.line, lines.take(1)
                if text.strip():
                    yield _json_row(line, text)
        finally:
            lines.close()


def _json_row(line: int, text: str) -> Row:
    if problem := problem_with_text(text):
        return Row(line, text, {}, problem)
    try:
        found = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        return Row(line, text, {}, f"is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Row(line, text, {}, f"is not JSON that can be read: {error}")
    if not isinstance(found, dict):
        return Row(line, text, {}, "is not a JSON object: write one {...} a line")
    if "\\u" in text and _SURROGATE.search(json.dumps(found, ensure_ascii=False)):
        return Row(line, text, {}, "holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
    return _row_of_mapping(line, text, found)


def _row_of_mapping(line: int, text: str, found: Mapping[str, Any]) -> Row:
    cells: dict[str, Any] = {}
    for key, value in found.items():
        name = key.strip().lower()
        if problem := problem_with_column(name):
            return Row(line, text, {}, problem)
        name = ALIASES.get(name, name)
        if name in cells:
            return Row(line, text, {}, f"column {name!r} twice")
        cells[name] = value
    return Row(line, text, cells)


def _parquet_rows(path: str | Path) -> Iterator[Row]:
    with _opened(path) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        columns = _header(path, DelimitedRow(0, "", list(table.schema_arrow.names)), ",")
        groups = (table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
        if (largest := max(groups, default=0)) > MAX_GROUP_BYTES:
            raise SourceListError(
                f"{path}: a row group of {largest:,} bytes is too large to be read: write it with fewer rows to a group"
            )
        line = 0
        for batch in table.iter_batches(batch_size=4096):
            for values in _batch_values(batch):
                line += 1
                if values is None:
                    yield Row(line, "", {}, "a cell is not UTF-8")
                    continue
                named = zip(columns, values, strict=True)
                cells = {column: value for column, value in named if column is not None}
                text = str(cells)
                yield Row(line, text[: MAX_ROW_CHARS + 1], cells, problem_with_length(text))


def _batch_values(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...] | None]:
    """The rows of a batch; None for one with text that is not UTF-8."""
    try:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
            return
        for at in range(batch.num_rows):
            yield from _batch_values(batch.slice(at, 1))
