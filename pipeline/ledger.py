"""Shows the outcome of a source: ``python -m pipeline.ledger show manifests/NAME URL_OR_ID``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pipeline.runtime.commands import DONE, FAILED, Command, Group, run_command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a built dataset")
    parser.add_argument("wanted", metavar="URL_OR_ID", help="a source's link or id, or the key of a clip")
    parser.add_argument("--json", action="store_true", help="everything that is known, with all measures, as JSON")


def _show(options: argparse.Namespace, _: str) -> int:
    from pipeline.dataset.source_history import source_histories  # noqa: PLC0415 (after --help)
    from pipeline.runtime.masking import mask_secrets  # noqa: PLC0415
    from pipeline.runtime.remote_folder import read_folder  # noqa: PLC0415

    matching = source_histories(read_folder(options.dataset), options.wanted)
    if not matching:
        message = (
            f"{mask_secrets(options.wanted)}: no source of {options.dataset} has this link or id. Rows with the same link are one "
            "source, under the id of the first"
        )
        print(message, file=sys.stderr)  # noqa: T201
        return FAILED
    for number, history in enumerate(matching):
        lines = [json.dumps(history.to_json())] if options.json else [*([""] if number else []), *history.lines()]
        for line in lines:
            print(line.encode("utf-8", "backslashreplace").decode() if line.isprintable() else ascii(line))  # noqa: T201
    return DONE


SHOW = Command(
    summary="tell what became of one source, down to its last clip",
    add_options=_add_options,
    run=_show,
    details="Ends with 0 when the source is in the ledger, with 1 when not, with 2 when there is no ledger that can be read.",
)
LEDGER = Group(summary="what became of the sources of a build", commands={"show": SHOW})


def main(arguments: Sequence[str] | None = None) -> int:
    """``show FOLDER URL_OR_ID``: 0 when it is in the ledger, 1 when not, 2 when there is no ledger that can be read."""
    return run_command(LEDGER, "python -m pipeline.ledger", arguments)


if __name__ == "__main__":
    sys.exit(main())
