"""The dataset report: ``python -m pipeline.report FOLDER [--compare OTHER] [--out FOLDER]``, or ``… serve FOLDER``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.runtime.interrupts import INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        description="Write a report on a built dataset: report.html, report.json, README.md (a dataset card), croissant.json.",
        epilog="python -m pipeline.report serve FOLDER shows the page, and plays the clips out of the tars.",
    )
    parser.add_argument("dataset", help="folder of a built dataset: manifests/NAME, or a URL")
    parser.add_argument("--compare", metavar="FOLDER", help="an earlier build to compare with")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the dataset's manifest)")
    parser.add_argument("--clips", type=_count, metavar="N", help="clips that the page shows (default: 400)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report serve", description="Serve a report with its clips."
    )
    parser.add_argument("dataset", help="folder of a built dataset: manifests/NAME, or a URL")
    parser.add_argument("--port", type=int, default=8780, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 refused (the message says what to put right), 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return _serve(words[1:]) if words[:1] == ["serve"] else _make(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; what was written is whole.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _make(words: Sequence[str]) -> int:
    from pipeline.report.gallery import GallerySettings  # noqa: PLC0415 - slow to import
    from pipeline.report.make import ReportSettings, make_report  # noqa: PLC0415

    options = _make_parser().parse_args(words)
    settings = ReportSettings()
    if options.clips is not None:
        settings = settings.model_copy(update={"gallery": GallerySettings(max_clips=options.clips)})
    report = make_report(options.dataset, options.out, options.compare, settings)
    for path in report.files:
        print(path)  # noqa: T201
    return 0


def _serve(words: Sequence[str]) -> int:
    from pipeline.report.serve import LOOPBACK, open_report  # noqa: PLC0415 - slow to import

    options = _serve_parser().parse_args(words)
    with open_report(options.dataset, options.host, options.port) as server:
        if options.host not in LOOPBACK:
            print("Whoever reaches this machine can see it: --host 127.0.0.1 keeps it to this one.")  # noqa: T201
        print(f"The report on {options.dataset} is at {server.url} (Ctrl-C ends it)", flush=True)  # noqa: T201
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
