"""Reads delimited text (csv, tsv) row by row, so that a damaged row does not affect the others."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MAX_ROW_CHARS = 131_072
"""Longest row, in characters. It is also the limit of Python's csv module for one cell."""
MAX_ROW_LINES = 200
"""Most lines of one row with quotes."""

SPREADSHEET_ERROR = re.compile(r"#(?:NAME\?|REF!|VALUE!|N/A|DIV/0!|NUM!|NULL!)", re.IGNORECASE)
"""Text that a spreadsheet writes for a cell that it takes for a formula, such as an id that begins with a dash."""

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(slots=True)
class DelimitedRow:
    """One row of a delimited file, with its cells by position. ``problem``: why it cannot be used. None: it can."""

    line: int
    text: str
    cells: list[str]
    problem: str | None = None


class Lines:
    """The physical lines of a text file, with look-ahead. Longer lines are cut after :data:`MAX_ROW_CHARS` + 1 characters.

    Bytes that are not UTF-8 become lone surrogates, so that only their own row is damaged.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._ahead: deque[str] = deque()
        self.line = 1
        """Number of the line that :meth:`take` returns next."""

    def peek(self, index: int) -> str | None:
        """The line ``index`` places ahead; None after the end."""
        while len(self._ahead) <= index:
            line = self._text.readline(MAX_ROW_CHARS + 1)
            if not line:
                return None
            rest = line
            while len(rest) > MAX_ROW_CHARS and not rest.endswith(("\n", "\r")):
                rest = self._text.readline(MAX_ROW_CHARS + 1)
            self._ahead.append(line)
        return self._ahead[index]

    def take(self, count: int) -> str:
        self.line += count
        if count == 1:
            return self._ahead.popleft()
        return "".join(self._ahead.popleft() for _ in range(count))

    def close(self) -> None:
        self._text.detach()


def problem_with_length(text: str) -> str | None:
    return f"the row is longer than {MAX_ROW_CHARS:,} characters" if len(text) > MAX_ROW_CHARS else None


def problem_with_text(text: str) -> str | None:
    """Why the raw text of a row cannot be used. None: it can."""
    if problem := problem_with_length(text):
        return problem
    if "\0" in text:
        return "the row contains a NUL byte"
    if not text.isascii() and (match := _ESCAPED_BYTE.search(text)):
        return (
            f"byte 0x{ord(match[0]) - 0xDC00:02X} at character {match.start() + 1} is not UTF-8: save the list as UTF-8"
        )
    return None


def _parsed(text: str, delimiter: str) -> list[str] | str:
    """The cells of one complete row, or its problem."""
    if '"' not in text:
        return text.rstrip("\r\n").split(delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        return f"the quotes do not match ({error}): write a quote inside quotes twice"
    return rows[0] if len(rows) == 1 else "the quotes do not match"


def _at(lines: Lines, index: int, delimiter: str) -> tuple[list[str] | str, int]:
    """The row that begins ``index`` lines ahead: its cells or its problem, and its number of lines."""
    text = lines.peek(index) or ""
    if text.count('"') % 2 == 0:
        return _parsed(text, delimiter), 1
    parts, size, num_quotes = [text], len(text), text.count('"')
    while (more := lines.peek(index + len(parts))) is not None:
        parts.append(more)
        size += len(more)
        num_quotes += more.count('"')
        if num_quotes % 2 == 0:
            return _parsed("".join(parts), delimiter), len(parts)
        if len(parts) >= MAX_ROW_LINES or size > MAX_ROW_CHARS:
            break
    cells = _parsed(text, delimiter)  # a single quote character in an unquoted cell, such as an inch mark, is valid
    return (cells if isinstance(cells, list) else "a quote is never closed"), 1


def _is_row(cells: list[str] | str, num_cells: int | None) -> bool:
    return isinstance(cells, list) and (num_cells is None or len(cells) == num_cells)


def _begins_a_row(lines: Lines, index: int, delimiter: str, num_cells: int | None) -> bool:
    """Whether the line is a row of its own, with a link. Then a quote before it was not closed."""
    cells = _parsed(lines.peek(index) or "", delimiter)
    return isinstance(cells, list) and len(cells) > 1 and _is_row(cells, num_cells) and "://" in "".join(cells)


def delimited_rows(
    lines: Lines, delimiter: str, num_cells: int | None, *, comments: bool = True
) -> Iterator[DelimitedRow]:
    """The remaining rows. A row with an unclosed quote ends where the next good row begins.

    ``num_cells``: number of cells of a good row, which is used only to find that place. None: any. Blank rows are left out, and with
    ``comments`` also those that begin with ``#``.
    """
    while (first := lines.peek(0)) is not None:
        line = lines.line
        if comments and first[0] == "#" and not SPREADSHEET_ERROR.match(first):
            lines.take(1)
            continue
        cells, num_lines = _at(lines, 0, delimiter)
        is_bad = not _is_row(cells, num_cells)
        if num_lines > 1:
            is_bad = is_bad or any(_begins_a_row(lines, at, delimiter, num_cells) for at in range(1, num_lines))
            if is_bad:
                good = (at for at in range(1, num_lines) if _is_row(_at(lines, at, delimiter)[0], num_cells))
                next_good = next(good, num_lines)
                if next_good < num_lines:
                    cells, num_lines = "a quote is never closed", next_good
        text = lines.take(num_lines)
        if problem := problem_with_text(text):
            yield DelimitedRow(line, text, [], problem)
        elif isinstance(cells, str):
            yield DelimitedRow(line, text, [], cells)
        elif any(map(str.strip, cells)):
            yield DelimitedRow(line, text, cells)
