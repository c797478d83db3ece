"""Parses the cells of a source list's row: link or path, times, labels, split, id. Pure functions; problems are texts."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from pipeline.schema import KEY_PATTERN, stable_hash
from pipeline.sources.delimited import SPREADSHEET_ERROR
from pipeline.sources.links import problem_with_url, scheme_of, youtube_url

MAX_TIME_MS = 1000 * 3_600_000
"""Largest time: 1000 hours. A larger one is probably in milliseconds."""

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_SECONDS = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-5]?[0-9](?:\.[0-9]*)?)")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_-]+")


def parse_time(value: object) -> int | None:
    """A time in milliseconds, from seconds (``12.5``, a number or text) or ``[HH:]MM:SS[.fff]``. None: the cell is empty.

    Raises ValueError, which says what to write instead.
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return _checked_time(float(value), value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a time: write seconds (12.5) or [HH:]MM:SS")
    text = value.strip()
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return _checked_time(float(text), text)
    match = _CLOCK.fullmatch(text)
    if match and (match[1] is None or int(match[2]) < 60):
        return _checked_time(3600.0 * int(match[1] or 0) + 60.0 * int(match[2]) + float(match[3]), text)
    if text.startswith("-") and (_SECONDS.fullmatch(text[1:]) or _CLOCK.fullmatch(text[1:])):
        raise ValueError(f"{text!r} is negative")
    raise ValueError(f"{text!r} is not a time: write seconds (12.5) or [HH:]MM:SS")


def _checked_time(seconds: float, written: object) -> int:
    if math.isnan(seconds):
        raise ValueError(f"{written!r} is not a number")
    if seconds < 0:
        raise ValueError(f"{written!r} is negative")
    if seconds * 1000 > MAX_TIME_MS:
        raise ValueError(f"{written!r} is beyond 1000 hours: times are in seconds")
    return round(seconds * 1000)


def key_like(text: str) -> str:
    """An id that matches ``KEY_PATTERN``: the text itself, or with other characters replaced by ``_`` and a hash of the text added."""
    if KEY_PATTERN.fullmatch(text):
        return text
    readable = _NOT_KEY.sub("_", text).strip("_")[:80]
    return f"{readable or 'id'}-{stable_hash(text, length=8)}"


def default_id(url: str, identity: str, start_ms: int, end_ms: int | None, length: int = 12) -> str:
    """The id of a source that is listed without one: a readable beginning, then a hash of ``identity`` and the span.

    ``identity``: the canonical link, or a path as it is written in the list, so that the id does not depend on the list's folder.
    """
    if identity.startswith(watch := youtube_url("")):
        name, kind = identity.removeprefix(watch), "yt-"
    else:
        name, kind = url.partition("::")[0], ""
        if scheme_of(name):
            name = unquote(re.split("[?#]", name, maxsplit=1)[0])
        name = name.rstrip("/").rpartition("/")[2]
        name = (name.rpartition(".")[0] or name).lstrip("_-. ")
    readable = kind + _NOT_KEY.sub("_", name)[:40].rstrip("_-")
    readable = readable.lstrip("_-") or "source"
    return f"{readable}-{stable_hash(identity, start_ms, '' if end_ms is None else end_ms, length=length)}"


@dataclass(slots=True)
class Cells:
    """The parsed cells of a row. If there are ``problems``, the other fields are undefined."""

    url: str = ""
    """A URL, or a local path that is absolute if the list's folder is."""
    written: str | None = None
    """The relative path as it is written in the list. None: the row has a URL or an absolute path."""
    start_ms: int = 0
    end_ms: int | None = None
    labels: tuple[str, ...] = ()
    caption: str | None = None
    licence: str | None = None
    split: str | None = None
    given_id: str | None = None
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any], folder: str | None) -> Cells:
        """Parses the cells of one row, by column. ``folder``: where relative paths begin. None: they are not allowed."""
        cells = cls()
        for column, value in values.items():
            if isinstance(value, str) and "\0" in value:
                cells.problems.append(f"{column}: contains a NUL character")
            elif isinstance(value, str) and value[:1] == "#" and SPREADSHEET_ERROR.fullmatch(value):
                cells.problems.append(f"{column}: a spreadsheet wrote {value!r} here: import the column as text")
        if not cells.problems:
            cells._place(values, folder)
            cells._times(values.get("start"), values.get("end"))
            cells._labels(values.get("labels"))
            cells._words(values)
        return cells

    def _text(self, column: str, value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problems.append(f"{column}: {value!r} is not text")
            return ""
        return value.strip()

    def _place(self, values: Mapping[str, Any], folder: str | None) -> None:
        url, path = self._text("url", values.get("url")), values.get("path") or ""
        if not isinstance(path, str):
            self._text("path", path)
        elif url and path.strip():
            self.problems.append("both a url and a path: leave one empty")
        elif url:
            if url.startswith(("/", "./", "../")):
                self._local(url, folder)
            elif problem := problem_with_url(url):
                self.problems.append(problem)
            else:
                self.url = url
        elif path.strip():
            if scheme_of(path.strip()):
                self._place({"url": path}, folder)
            else:
                self._local(path, folder)
        elif not self.problems:
            self.problems.append("no url (or path)")

    def _local(self, path: str, folder: str | None) -> None:
        if path.startswith("~"):
            self.problems.append(f"{path!r}: '~' is not expanded: write the full path (or ./~ for a file of that name)")
        elif path.startswith("/"):
            self.url = path
        elif folder is None:
            self.problems.append(f"{path!r} is relative, but this list is not in a folder: write a URL")
        else:
            self.written = str(PurePosixPath(path))
            web = scheme_of(folder) in ("http", "https")
            self.url = folder + (quote(self.written) if web else self.written)

    def _times(self, start: object, end: object) -> None:
        times: list[int | None] = []
        for column, value in (("start", start), ("end", end)):
            try:
                times.append(parse_time(value))
            except ValueError as error:
                self.problems.append(f"{column}: {error}")
        if len(times) == 2:
            self.start_ms, self.end_ms = times[0] or 0, times[1]
            if self.end_ms is not None and self.end_ms <= self.start_ms:
                self.problems.append(f"the end ({end}) is not after the start ({start or 0})")

    def _labels(self, value: object) -> None:
        if value is None or value == "":
            return
        labels: list[object]
        if isinstance(value, str):
            labels = list(value.split("|"))
        elif isinstance(value, list | tuple):
            labels = [label for label in value if label is not None]
        else:
            labels = [value]
        if bad_labels := [label for label in labels if not isinstance(label, str) or "\0" in label]:
            self.problems.append(f"labels: {bad_labels[0]!r} is not text")
        elif bad_labels := [label for label in labels if "|" in str(label)]:
            self.problems.append(f"labels: {bad_labels[0]!r} contains '|', which separates labels")
        else:
            self.labels = tuple(dict.fromkeys(text for label in labels if (text := str(label).strip())))

    def _words(self, values: Mapping[str, Any]) -> None:
        self.caption = self._text("caption", values.get("caption")) or None
        self.licence = self._text("licence", values.get("licence")) or None
        if split := self._text("split", values.get("split")):
            self.split = _SPLITS.get(split.lower())
            if self.split is None:
                self.problems.append(f"split: {split!r} is none of train, validation, test")
        given = values.get("id")
        is_number = isinstance(given, int) and not isinstance(given, bool)
        if text := str(given) if is_number else self._text("id", given):
            self.given_id = key_like(text)
