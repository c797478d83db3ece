"""Reads the Landscape list of "Sound-Guided Semantic Video Generation" as rows of a source list, in any of its forms.

Verified on the published file: TempoTokens' ``datasets/landscape.csv`` has the header ``ytid,start_time,class,set``,
seconds as integers, nine classes (explosion, fire crackling, raining, splashing water, squishing water, thunder,
underwater bubbling, waterfall burbling, wind noise), the sets train and test, some rows twice, and a damaged id
(``n4DEfAKk0&t``). Not verified: the authors' own ``DATASET.csv`` ("Landscape 4K video Link csv"), which was not available.
Therefore any table of links with classes is read: ``class,link`` or ``link,class``, with or without a header, classes as
headings above their links or at the top of a column of links, times in columns or in the link (``t=90``, ``t=1m30s``,
``start=90&end=100``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pipeline.sources.cells import parse_time
from pipeline.sources.delimited import DelimitedRow
from pipeline.sources.links import YOUTUBE_ID, canonical_url, problem_with_url, youtube_id, youtube_url
from pipeline.sources.rows import Row, read_delimited_rows

_ROLES = {
    "link": "ytid youtubeid videoid id link links url urls youtube youtubelink youtubeurl videolink videourl video",
    "start": "start starttime startseconds starttimeseconds startsec begin from",
    "end": "end endtime endseconds endtimeseconds endsec to",
    "class": "class classes label labels category categories classname keyword tag sound",
    "split": "set split subset",
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names.split()}
_SPLITS = ("train", "test", "val", "valid", "validation")
_LINK = re.compile(r"(?:https?://|(?:www\.|m\.)?youtu(?:be\.com|\.be)/)\S+", re.IGNORECASE)
_NOT_A_WORD = re.compile(r"[0-9]|[a-z][A-Z]|[A-Z]{2}.*[a-z]")
_SPAN = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s?)?", re.IGNORECASE)


def landscape_rows(path: str | Path, seconds: float | None) -> Iterator[Row]:
    """The rows of a Landscape list. A row with a start and no end lasts ``seconds``. None: to the end of the video."""
    table = _Table()
    for record in read_delimited_rows(path, _delimiter(path), comments=False):
        for row in table.read(record):
            yield row if row.problem else _with_times(row, seconds)


def _delimiter(path: str | Path) -> str:
    """The delimiter of the cells: the candidate that occurs most often in the first rows."""
    text = "".join(record.text for record in islice(read_delimited_rows(path, comments=False), 20))
    return max(",\t;", key=text.count)


class _Table:
    """Reads rows in order, with the columns of the header and the class of the last heading."""

    def __init__(self) -> None:
        self._roles: dict[str, int] = {}
        """Column of each role. Empty: there is no header, and each row is interpreted by its cells."""
        self._column_classes: Sequence[str] = ()
        self._heading: str | None = None
        self._begun = False

    def read(self, record: DelimitedRow) -> Iterator[Row]:
        """The source rows of a row: several if it has several links, none if it is a header or a heading."""
        cells = [cell.strip() for cell in record.cells]
        if record.problem:
            yield Row(record.line, record.text, {}, record.problem)
        elif self._roles:
            values = {role: cells[at] for role, at in self._roles.items() if at < len(cells)}
            yield self._row(record, values)
        elif any(_link_in(cell) for cell in cells):
            for values in self._interpreted(cells):
                yield self._row(record, values)
        elif not self._is_heading(cells):
            yield Row(record.line, record.text, {}, "no link, and no YouTube id")
        self._begun = True

    def _is_heading(self, cells: Sequence[str]) -> bool:
        """Whether a row without a link can be the header of the table or a heading. If so, it is stored as that."""
        roles = {role: at for at, cell in enumerate(cells) if (role := _ROLE_OF.get(_letters(cell)))}
        filled = [cell for cell in cells if cell]
        if not self._begun and "link" in roles:
            self._roles = roles if len(cells) > 1 else {}
        elif len(filled) == 1:
            self._heading = filled[0].strip("# :[]=-*") or None
        elif not self._begun:
            self._column_classes = cells
        else:
            return False
        return True

    def _interpreted(self, cells: Sequence[str]) -> Iterator[dict[str, str]]:
        """The values of a row, by the form of its cells. Numbers before the link are not taken for times: they may be row numbers."""
        places = [at for at, cell in enumerate(cells) if _link_in(cell)]
        for place in places:
            values = {"link": cells[place]}
            if len(places) == 1:
                beside = _LINK.sub("", cells[place]).strip(" -:|") if _LINK.search(cells[place]) else ""
                words = [beside, *(cell for at, cell in enumerate(cells) if at != place)]
                splits = [word for word in words if word.lower() in _SPLITS]
                names = [word for word in words if word and not _is_time(word) and word not in splits]
                values |= zip(("split", "class"), ([*splits, ""][0], [*names, ""][0]), strict=True)
                values |= zip(("start", "end"), filter(_is_time, cells[place + 1 :]), strict=False)
            if not values.get("class") and place < len(self._column_classes):
                values["class"] = self._column_classes[place]
            yield values

    def _row(self, record: DelimitedRow, values: Mapping[str, str]) -> Row:
        """The row of a source list: the link as a URL, the times as in the list."""
        link = _link_in(values.get("link", "")) or values.get("link", "")
        if YOUTUBE_ID.fullmatch(link):
            link = youtube_url(link)
        elif "/" not in link:
            reason = f"{link!r} is not a YouTube id (11 letters, digits, '_', '-')" if link else "no link"
            return Row(record.line, record.text, {}, reason)
        elif "://" not in link:
            link = f"https://{link}"
        if problem := problem_with_url(link):
            return Row(record.line, record.text, {}, problem)
        name = values.get("class") or self._heading
        times = {"start": values.get("start"), "end": values.get("end")}
        cells = {"url": link, **times, "labels": [name] if name else [], "split": values.get("split")}
        return Row(record.line, record.text, cells)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _is_time(cell: str) -> bool:
    try:
        return parse_time(cell) is not None
    except ValueError:
        return False


def _link_in(cell: str) -> str | None:
    """The link in a cell, or the cell itself if it has the form of a YouTube id and not of a word with eleven letters."""
    if match := _LINK.search(cell):
        return match[0].rstrip(".,;)\"'>")
    return cell if YOUTUBE_ID.fullmatch(cell) and _NOT_A_WORD.search(cell) else None


def _with_times(row: Row, seconds: float | None) -> Row:
    """The row with the times of its link if its columns have none, and with an end after ``seconds`` if it has only a start."""
    values = dict(row.cells)
    in_link = times_in_link(values["url"])
    if youtube_id(values["url"]):
        values["url"] = canonical_url(values["url"])
    for column in ("start", "end"):
        if values[column] in (None, ""):
            values[column] = in_link.get(column)
    try:
        start_ms, end_ms = parse_time(values["start"]), parse_time(values["end"])
    except ValueError as error:
        return Row(row.line, row.text, {}, str(error))
    if start_ms is not None and end_ms is None and seconds is not None:
        values["end"] = start_ms / 1000 + seconds
    return Row(row.line, row.text, values)


def times_in_link(url: str) -> dict[str, float]:
    """``start`` and ``end`` in seconds that a YouTube link contains (``t=1m30s``, ``start=90``, ``#t=90``)."""
    parts = urlsplit(url)
    query = parse_qs(parts.query) | parse_qs(parts.fragment)
    times: dict[str, float] = {}
    for key, column in (("t", "start"), ("start", "start"), ("time_continue", "start"), ("end", "end")):
        match = _SPAN.fullmatch(query.get(key, [""])[0])
        if match and match[0] and column not in times:
            hours, minutes, rest = (int(part or 0) for part in match.groups())
            times[column] = float(3600 * hours + 60 * minutes + rest)
    return times
