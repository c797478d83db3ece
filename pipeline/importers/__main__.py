"""Published lists of videos, turned into source lists: VGGSound, AudioSet and Landscape.

    python -m pipeline.importers vggsound vggsound.csv --classes 'thunder,ocean*' --split test --out x.csv
    python -m pipeline.importers audioset eval_segments.csv --ontology class_labels_indices.csv --out x.csv
    python -m pipeline.importers landscape landscape.csv --out x.csv

The lists come from their publishers; nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceListError, UserError
from pipeline.importers.audioset import EXCLUDE, NATURE, ClassChoice, Ontology, read_ontology, segments
from pipeline.importers.classes import choose_classes
from pipeline.importers.landscape import landscape_rows
from pipeline.sources.cells import parse_time
from pipeline.sources.delimited import SPREADSHEET_ERROR, DelimitedRow
from pipeline.sources.links import YOUTUBE_ID, youtube_url
from pipeline.sources.lists import MAX_PROBLEMS_SHOWN, Gathering, SourceList, write_sources
from pipeline.sources.rows import Row, read_delimited_rows

VGGSOUND_CLIP_SECONDS = 10.0
LANDSCAPE_CLIP_SECONDS = 10.0

VGGSOUND_NATURE = (
    "fire crackling",
    "hail",
    "ice cracking",
    "ocean burbling",
    "raining",
    "sea waves",
    "splashing water",
    "squishing water",
    "stream burbling",
    "thunder",
    "tornado roaring",
    "underwater bubbling",
    "volcano explosion",
    "waterfall burbling",
    "wind noise",
    "wind rustling leaves",
)
"""The classes of VGGSound that are taken when none are named: landscapes, weather, water and fire."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was found in a published list: each of its rows is in ``found`` or one of the ``num_left_out``."""

    found: SourceList
    num_left_out: int = 0
    """Rows of other classes or splits."""


class _Import(Gathering):
    """Rows of a published list on their way to a source list."""

    def __init__(self) -> None:
        super().__init__()
        self.num_left_out = 0

    def add_video(self, row: Row, video: str, path: str | Path) -> None:
        """Take a row whose link is a YouTube id."""
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
            raise SourceListError(f"{names}: none of the {self.num_left_out:,} rows is of the chosen classes and split")
        return Imported(self.finish(names), self.num_left_out)


def import_vggsound(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    split: str | None = None,
) -> Imported:
    """VGGSound's ``vggsound.csv``: YouTube id, start in seconds, label, ``train`` or ``test``; clips of 10 s.

    ``classes`` and ``exclude`` are names or globs (None: :data:`VGGSOUND_NATURE`); ``split`` keeps that split alone.
    """
    known = {record.cells[2].strip() for record in _vggsound_rows(path) if len(record.cells) == 4}
    chosen = choose_classes(VGGSOUND_NATURE if classes is None else classes, known, missing_ok=classes is None)
    chosen -= choose_classes(exclude, known)
    taken = _Import()
    for record in _vggsound_rows(path):
        problem = record.problem
        if problem is None and len(record.cells) != 4:
            problem = f"{len(record.cells)} cells, not the 4 of VGGSound (YouTube id, start, label, split)"
        if problem is not None:
            taken.add(Row(record.line, record.text, {}, problem), path)
            continue
        video, start, label, of_split = (cell.strip() for cell in record.cells)
        if label in chosen and split in (None, of_split.lower()):
            taken.add_video(_vggsound_row(record, start, label, of_split), video, path)
        else:
            taken.num_left_out += 1
    return taken.imported([path])


def _vggsound_rows(path: str | Path) -> Iterator[DelimitedRow]:
    """The rows, without a header that someone may have added."""
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

    ``classes`` are names or globs (None: ``audioset.NATURE``), with what is below them if the ontology has its tree.
    A source gets those of its labels that were chosen. A segment with an ``exclude`` label too is left out (None:
    ``audioset.EXCLUDE``). A file named ``*eval*`` is the split ``test``, one named ``*train*`` is ``train``.
    """
    choice = ClassChoice.of(ontology, classes, exclude)
    taken = _Import()
    for path in paths:
        for segment in segments(path, choice):
            if segment is None:
                taken.num_left_out += 1
            else:
                taken.add_video(*segment, path)
    return taken.imported(paths)


def import_landscape(path: str | Path, *, seconds: float | None = LANDSCAPE_CLIP_SECONDS) -> Imported:
    """The Landscape list, see :mod:`pipeline.importers.landscape` for its shapes and for what of it was verified.

    A row with a start and no end is a clip of ``seconds`` (None: to the end of the video). That ten seconds are meant
    is inferred from how the list is used, and not written in it.
    """
    taken = _Import()
    for row in landscape_rows(path, seconds):
        taken.add(row, path)
    return taken.imported([path])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.importers", description=(__doc__ or "").partition("\n")[0]
    )
    kinds = parser.add_subparsers(dest="kind", required=True)

    vggsound = kinds.add_parser("vggsound", help="vggsound.csv: YouTube id, start, label, split, without a header")
    vggsound.add_argument("lists", nargs=1, metavar="LIST")
    vggsound.add_argument("--split", choices=("train", "test"), help="take this split only (default: both)")

    audioset = kinds.add_parser("audioset", help="segments csv: YTID, start, end, class ids")
    audioset.add_argument("lists", nargs="+", metavar="SEGMENTS")
    audioset.add_argument(
        "--ontology",
        nargs="+",
        action="extend",
        required=True,
        help="class_labels_indices.csv (names), ontology.json (names and tree: a class brings those below it), or both",
    )
    for kind, nature in ((vggsound, VGGSOUND_NATURE), (audioset, NATURE)):
        kind.add_argument(
            "--classes",
            nargs="+",
            action="extend",
            metavar="NAME",
            help=f"names or globs, also several with commas between (default: {', '.join(nature)})",
        )
        kind.add_argument(
            "--exclude",
            nargs="+",
            action="extend",
            metavar="NAME",
            help="leave out what has one of these classes (default: "
            + (", ".join(EXCLUDE) if kind is audioset else "nothing").replace("%", "%%")
            + ")",
        )
    audioset.add_argument("--no-exclude", action="store_true", help="leave out nothing for its other classes")

    landscape = kinds.add_parser("landscape", help="any table of links with classes; ytid,start_time,class,set")
    landscape.add_argument("lists", nargs=1, metavar="LIST")
    landscape.add_argument(
        "--seconds",
        type=float,
        default=LANDSCAPE_CLIP_SECONDS,
        help="length of a clip that has a start and no end; 0: to the end of the video (default: %(default)s)",
    )
    for kind in (vggsound, audioset, landscape):
        kind.add_argument("--out", required=True, type=Path, help="the source list to write (.csv)")
    return parser


def _imported(options: argparse.Namespace) -> Imported:
    if options.kind == "vggsound":
        return import_vggsound(
            options.lists[0], classes=options.classes, exclude=options.exclude or (), split=options.split
        )
    if options.kind == "audioset":
        exclude = [] if options.no_exclude else options.exclude
        ontology = read_ontology(options.ontology)
        return import_audioset(options.lists, ontology, classes=options.classes, exclude=exclude)
    return import_landscape(options.lists[0], seconds=options.seconds or None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when there is nothing that can be used."""
    options = _parser().parse_args(arguments)
    try:
        imported = _imported(options)
        write_sources(imported.found.sources, options.out)
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    found = imported.found
    for problem in found.problems[:MAX_PROBLEMS_SHOWN]:
        print(problem, file=sys.stderr)  # noqa: T201
    if (more := len(found.problems) - MAX_PROBLEMS_SHOWN) > 0:
        print(f"and {more:,} more rows with problems", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{options.out}: {len(found.sources):,} sources; {found.merged:,} repeated rows merged, "
        f"{len(found.problems):,} rows with problems, {imported.num_left_out:,} rows left out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
