"""Converts published lists of videos into source lists: VGGSound, AudioSet and Landscape.

    python -m pipeline.importers vggsound vggsound.csv --classes 'thunder,ocean*' --split test --out x.csv
    python -m pipeline.importers audioset eval_segments.csv --ontology class_labels_indices.csv --out x.csv
    python -m pipeline.importers landscape landscape.csv --out x.csv

The lists must be downloaded from their publishers before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.importers.defaults import AUDIOSET_EXCLUDE, AUDIOSET_NATURE, LANDSCAPE_CLIP_SECONDS, VGGSOUND_NATURE
from pipeline.runtime.commands import DONE, Command, Group, run_command

if TYPE_CHECKING:
    from pipeline.importers.published import Imported


def _add_class_options(parser: argparse.ArgumentParser, taken: Sequence[str], left_out: Sequence[str]) -> None:
    parser.add_argument(
        "--classes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"names or globs, also several with commas between (default: {', '.join(taken)})",
    )
    named = ", ".join(left_out).replace("%", "%%") or "nothing"
    parser.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"leave out what has one of these classes (default: {named})",
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the source list to write (.csv)")


def _add_vggsound_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", metavar="LIST", help="vggsound.csv, as it is published")
    parser.add_argument("--split", choices=("train", "test"), help="take this split only (default: both)")
    _add_class_options(parser, VGGSOUND_NATURE, ())
    _add_out(parser)


def _vggsound(options: argparse.Namespace, _: str) -> int:
    from pipeline.importers.published import import_vggsound  # noqa: PLC0415 (after --help)

    excluded = options.exclude or ()
    return _write(
        import_vggsound(options.list, classes=options.classes, exclude=excluded, split=options.split), options.out
    )


def _add_audioset_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lists", nargs="+", metavar="SEGMENTS", help="csv files of segments, as they are published")
    parser.add_argument(
        "--ontology",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="class_labels_indices.csv (names), ontology.json (names and tree: a class brings those below it), or both",
    )
    _add_class_options(parser, AUDIOSET_NATURE, AUDIOSET_EXCLUDE)
    parser.add_argument("--no-exclude", action="store_true", help="leave out nothing for its other classes")
    _add_out(parser)


def _audioset(options: argparse.Namespace, _: str) -> int:
    from pipeline.importers.audioset import read_ontology  # noqa: PLC0415 (after --help)
    from pipeline.importers.published import import_audioset  # noqa: PLC0415

    excluded = [] if options.no_exclude else options.exclude
    ontology = read_ontology(options.ontology)
    return _write(import_audioset(options.lists, ontology, classes=options.classes, exclude=excluded), options.out)


def _add_landscape_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", metavar="LIST", help="the table, with or without a header")
    parser.add_argument(
        "--seconds",
        type=float,
        default=LANDSCAPE_CLIP_SECONDS,
        help="length of a clip that has a start and no end; 0: to the end of the video (default: %(default)s)",
    )
    _add_out(parser)


def _landscape(options: argparse.Namespace, _: str) -> int:
    from pipeline.importers.published import import_landscape  # noqa: PLC0415 (after --help)

    return _write(import_landscape(options.list, seconds=options.seconds or None), options.out)


def _write(imported: Imported, out: Path) -> int:
    """Writes the source list, and says what became of the rows."""
    from pipeline.sources.lists import MAX_PROBLEMS_SHOWN, write_sources  # noqa: PLC0415 (after --help)

    source_list = imported.sources
    write_sources(source_list.sources, out)
    for problem in source_list.problems[:MAX_PROBLEMS_SHOWN]:
        print(problem, file=sys.stderr)  # noqa: T201
    if (more := len(source_list.problems) - MAX_PROBLEMS_SHOWN) > 0:
        print(f"and {more:,} more rows with problems", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{out}: {len(source_list.sources):,} sources; {source_list.merged:,} repeated rows merged, "
        f"{len(source_list.problems):,} rows with problems, {imported.num_left_out:,} rows left out"
    )
    return DONE


IMPORT = Group(
    summary="turn a published list of videos into a source list",
    commands={
        "vggsound": Command(
            summary="vggsound.csv: YouTube id, start, label, split, without a header",
            add_options=_add_vggsound_options,
            run=_vggsound,
        ),
        "audioset": Command(
            summary="segments csv: YTID, start, end, class ids", add_options=_add_audioset_options, run=_audioset
        ),
        "landscape": Command(
            summary="any table of links with classes; ytid,start_time,class,set",
            add_options=_add_landscape_options,
            run=_landscape,
        ),
    },
    details="The lists come from their publishers; nothing is downloaded.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 when there is nothing that can be used."""
    return run_command(IMPORT, "python -m pipeline.importers", arguments)


if __name__ == "__main__":
    sys.exit(main())
