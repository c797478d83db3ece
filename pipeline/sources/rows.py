"""Reads the file formats of source lists (csv, tsv, jsonl, parquet) row by row.

A row that cannot be read is returned with its problem. Only problems of the whole file are raised.
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
"""Largest list at an http(s) link."""
MAX_GROUP_BYTES = 1 << 30
"""Largest row group of a parquet file, decompressed. A whole group is in memory at once."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Row:
    """One row: its ``cells`` by column, or the ``problem`` why it cannot be read."""

    line: int
    """Number of the line, from 1; for parquet the number of the row."""
    text: str
    cells: Mapping[str, Any]
    problem: str | None = None


def list_format(path: str | Path) -> str:
    """The suffix that gives the format of a list: ``.csv``, ``.parquet``, ... Raises SourceListError for another one."""
    name = str(path)
    if scheme_of(name):
        name = name.partition("::")[0].partition("?")[0]
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  (a URL is no Path)
    if ending not in FORMATS:
        raise SourceListError(f"{path}: {ending!r} is not a known format: use a name that ends in {', '.join(FORMATS)}")
    return ending


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a source list, with named columns. Blank lines and csv comments are left out.

    Raises SourceListError if the file cannot be opened or its header is wrong.
    """
    ending = list_format(path)
    if ending == ".parquet":
        return _parquet_rows(path)
    if ending in DELIMITERS:
        return _delimited_rows(path, DELIMITERS[ending])
    return _json_rows(path)


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    """The list, opened for reading. All its errors are raised as SourceListError."""
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
    """The list at an http(s) link, copied to a temporary file, because reading parquet needs seeking."""
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
    """The rows of a delimited file without a header. Blank rows are left out, and with ``comments`` also those that begin with ``#``."""
    with _opened(path) as stream:
        lines = Lines(stream)
        try:
            yield from delimited_rows(lines, delimiter, None, comments=comments)
        finally:
            lines.close()


def _header(path: str | Path, record: DelimitedRow | None, delimiter: str) -> list[str | None]:
    """Names of the columns by position. None: a column without a name at the end. Raises SourceListError."""
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
                        f"put a cell that contains {delimiter!r} in double quotes"
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
        values = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        return Row(line, text, {}, f"is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Row(line, text, {}, f"is not JSON that can be read: {error}")
    if not isinstance(values, dict):
        return Row(line, text, {}, "is not a JSON object: write one {...} per line")
    if "\\u" in text and _SURROGATE.search(json.dumps(values, ensure_ascii=False)):
        return Row(line, text, {}, "contains half a surrogate pair (\\ud800 to \\udfff), which is no text")
    return _row_of_mapping(line, text, values)


def _row_of_mapping(line: int, text: str, values: Mapping[str, Any]) -> Row:
    cells: dict[str, Any] = {}
    for key, value in values.items():
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
                f"{path}: a row group of {largest:,} bytes is too large to be read: write it with fewer rows per group"
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
    """The rows of a batch. None for a row with text that is not UTF-8."""
    try:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
            return
        for at in range(batch.num_rows):
            yield from _batch_values(batch.slice(at, 1))
