"""Converts published lists of videos into source lists: VGGSound, AudioSet and Landscape.

The lists must be downloaded from their publishers before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceListError
from pipeline.importers.audioset import ClassChoice, Ontology, segments
from pipeline.importers.classes import choose_classes
from pipeline.importers.defaults import LANDSCAPE_CLIP_SECONDS, VGGSOUND_NATURE
from pipeline.importers.landscape import landscape_rows
from pipeline.sources.cells import parse_time
from pipeline.sources.delimited import SPREADSHEET_ERROR, DelimitedRow
from pipeline.sources.links import YOUTUBE_ID, youtube_url
from pipeline.sources.lists import Gathering, SourceList
from pipeline.sources.rows import Row, read_delimited_rows

VGGSOUND_CLIP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Imported:
    """The content of a published list: each of its rows is in ``sources`` or is counted in ``num_left_out``."""

    sources: SourceList
    num_left_out: int = 0
    """Rows of other classes or splits."""


class _Import(Gathering):
    """Collects rows of a published list for a source list."""

    def __init__(self) -> None:
        super().__init__()
        self.num_left_out = 0

    def add_video(self, row: Row, video: str, path: str | Path) -> None:
        """Adds a row whose link is given by a YouTube id. A row with another id is added as a bad one."""
        if row.problem is None and not YOUTUBE_ID.fullmatch(video):
            hint = ": a spreadsheet has replaced it" if SPREADSHEET_ERROR.fullmatch(video) else ""
            problem = f"{video!r} is not a YouTube id (11 letters, digits, '_', '-'){hint}"
            row = Row(row.line, row.text, {}, problem)
        if row.problem is None:
            row = Row(row.line, row.text, {"url": youtube_url(video), **row.cells})
        self.add(row, path)

    def imported(self, paths: Sequence[str | Path]) -> Imported:
        names = ", ".join(map(str, paths))
        if self.num_left_out and not self.num_rows:
            raise SourceListError(f"{names}: none of the {self.num_left_out:,} rows has the chosen classes and split")
        return Imported(self.finish(names), self.num_left_out)


def import_vggsound(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    split: str | None = None,
) -> Imported:
    """VGGSound's ``vggsound.csv``: YouTube id, start in seconds, label, ``train`` or ``test``; clips of 10 s.

    ``classes`` and ``exclude``: names or globs. ``classes`` None: :data:`VGGSOUND_NATURE`. ``split``: keep this split only. None:
    both. Raises SourceListError.
    """
    known = {record.cells[2].strip() for record in _vggsound_rows(path) if len(record.cells) == 4}
    chosen = choose_classes(VGGSOUND_NATURE if classes is None else classes, known, missing_ok=classes is None)
    chosen -= choose_classes(exclude, known)
    rows = _Import()
    for record in _vggsound_rows(path):
        problem = record.problem
        if problem is None and len(record.cells) != 4:
            problem = f"{len(record.cells)} cells, not the 4 of VGGSound (YouTube id, start, label, split)"
        if problem is not None:
            rows.add(Row(record.line, record.text, {}, problem), path)
            continue
        video, start, label, row_split = (cell.strip() for cell in record.cells)
        if label in chosen and split in (None, row_split.lower()):
            rows.add_video(_vggsound_row(record, start, label, row_split), video, path)
        else:
            rows.num_left_out += 1
    return rows.imported([path])


def _vggsound_rows(path: str | Path) -> Iterator[DelimitedRow]:
    """The rows of the list, without a header if a copy has one."""
    for place, record in enumerate(read_delimited_rows(path)):
        cells = record.cells
        if place > 0 or len(cells) != 4 or YOUTUBE_ID.fullmatch(cells[0].strip()) or cells[1].strip()[:1].isdigit():
            yield record


def _vggsound_row(record: DelimitedRow, start: str, label: str, split: str) -> Row:
    try:
        end = (parse_time(start) or 0) / 1000 + VGGSOUND_CLIP_SECONDS
    except ValueError as error:
        return Row(record.line, record.text, {}, f"start: {error}")
    return Row(record.line, record.text, {"start": start, "end": end, "labels": [label], "split": split})


def import_audioset(
    paths: Sequence[str | Path],
    ontology: Ontology,
    *,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> Imported:
    """AudioSet's segments: three lines of comment, then ``YTID, start_seconds, end_seconds, "MID,MID"``.

    ``classes``: names or globs, with the classes below them if the ontology has its tree. None: ``AUDIOSET_NATURE``. A source gets
    those of its labels that are chosen. ``exclude``: a segment that also has one of these labels is left out. None:
    ``AUDIOSET_EXCLUDE``. A file named ``*eval*`` is the split ``test``, one named ``*train*`` is ``train``. Raises SourceListError.
    """
    choice = ClassChoice.of(ontology, classes, exclude)
    rows = _Import()
    for path in paths:
        for segment in segments(path, choice):
            if segment is None:
                rows.num_left_out += 1
            else:
                rows.add_video(*segment, path)
    return rows.imported(paths)


def import_landscape(path: str | Path, *, seconds: float | None = LANDSCAPE_CLIP_SECONDS) -> Imported:
    """The Landscape list: see :mod:`pipeline.importers.landscape` for its forms and for which of them were verified.

    A row with a start and no end is a clip of ``seconds``. None: to the end of the video. The list does not state the ten seconds;
    they are inferred from how it is used. Raises SourceListError.
    """
    rows = _Import()
    for row in landscape_rows(path, seconds):
        rows.add(row, path)
    return rows.imported([path])
