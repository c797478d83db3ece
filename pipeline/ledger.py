"""What became of a source: ``python -m pipeline.ledger show manifests/NAME URL_OR_ID``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pipeline.dataset.source_history import source_histories
from pipeline.errors import UserError
from pipeline.runtime.masking import mask_secrets


def main(arguments: Sequence[str] | None = None) -> int:
    """``show FOLDER URL_OR_ID``: 0 when it is in the ledger, 1 when not, 2 when there is no ledger that can be read."""
    from pipeline.runtime.remote_folder import read_folder  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ledger", description="What became of the sources of a build."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="tell the whole story of a link")
    command.add_argument("dataset", help="folder or URL of a built dataset")
    command.add_argument("wanted", metavar="URL_OR_ID", help="a source's link or id, or the key of a clip")
    command.add_argument("--json", action="store_true", help="everything that is known, with all measures, as JSON")
    options = parser.parse_args(arguments)
    try:
        found = source_histories(read_folder(options.dataset), options.wanted)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if not found:
        shown = mask_secrets(options.wanted)
        print(f"{shown}: no source of {options.dataset} has this link or id. Rows with the same link are one source, under the id "  # noqa: T201
              "of the first", file=sys.stderr)  # fmt: skip
        return 1
    for number, story in enumerate(found):
        told = [json.dumps(story.to_json())] if options.json else [*([""] if number else []), *story.lines()]
        for line in told:
            print(line.encode("utf-8", "backslashreplace").decode() if line.isprintable() else ascii(line))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
