"""The dataset report: ``python -m pipeline.report FOLDER [--compare OTHER] [--out FOLDER]``, or ``… serve FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.runtime.commands import DONE, Command, run_command
from pipeline.runtime.interrupts import INTERRUPTED


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder of a built dataset: manifests/NAME, or a URL")
    parser.add_argument("--compare", metavar="FOLDER", help="an earlier build to compare with")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the dataset's manifest)")
    parser.add_argument("--clips", type=_count, metavar="N", help="clips that the page shows (default: 400)")


def _make(options: argparse.Namespace, _: str) -> int:
    from pipeline.report.gallery import GallerySettings  # noqa: PLC0415 (after --help)
    from pipeline.report.make import ReportSettings, make_report  # noqa: PLC0415

    settings = ReportSettings()
    if options.clips is not None:
        settings = settings.model_copy(update={"gallery": GallerySettings(max_clips=options.clips)})
    try:
        report = make_report(options.dataset, options.out, options.compare, settings)
    except KeyboardInterrupt:
        print("\nInterrupted; what was written is whole.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    for path in report.files:
        print(path)  # noqa: T201
    return DONE


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder of a built dataset: manifests/NAME, or a URL")
    parser.add_argument("--port", type=int, default=8780, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )


def _serve(options: argparse.Namespace, _: str) -> int:
    from pipeline.report.serve import LOOPBACK, open_report  # noqa: PLC0415 (after --help)

    with open_report(options.dataset, options.host, options.port) as server:
        if options.host not in LOOPBACK:
            print("Whoever reaches this machine can see it: --host 127.0.0.1 keeps it to this one.")  # noqa: T201
        print(f"The report on {options.dataset} is at {server.url} (Ctrl-C ends it)", flush=True)  # noqa: T201
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()  # noqa: T201
    return DONE


SERVE = Command(
    summary="show a dataset's report in the browser, with its clips",
    add_options=_add_serve_options,
    run=_serve,
    logs_warnings=True,
)
REPORT = Command(
    summary="write a dataset's report: page, dataset card, Croissant",
    add_options=_add_options,
    run=_make,
    details="report serve DATASET shows the page in the browser, and plays the clips out of the tars.",
    logs_warnings=True,
    variants={"serve": SERVE},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 refused (the message says what to correct), 130 interrupted."""
    return run_command(REPORT, "python -m pipeline.report", arguments)


if __name__ == "__main__":
    sys.exit(main())
