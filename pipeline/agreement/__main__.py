"""``python -m pipeline.agreement calibrate DATASET``: calibrates agreement on a built dataset, from its tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.runtime.commands import DONE, REFUSED, Command, Group, run_command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a built dataset, or its manifest.json")
    parser.add_argument("--json", action="store_true", help="print the calibration as JSON instead of a table")
    parser.add_argument(
        "--per-class", action="store_true", help="print the classes with a threshold of their own as well"
    )
    parser.add_argument("--write", action="store_true", help="store it in the dataset's manifest")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write it as JSON, for agreement.calibration of a recipe"
    )


def _calibrate(options: argparse.Namespace, _: str) -> int:
    from pipeline.agreement.dataset_calibration import calibrate_dataset, store, table  # noqa: PLC0415 (after --help)
    from pipeline.dataset.manifest import read_manifest  # noqa: PLC0415

    calibration = calibrate_dataset(options.dataset)
    print(calibration.to_json().decode() if options.json else table(calibration, per_class=options.per_class))  # noqa: T201
    try:
        if options.write:
            where = store(calibration, read_manifest(options.dataset), options.dataset)
            print(f"written into {where}", file=sys.stderr)  # noqa: T201
        if options.out is not None:
            options.out.write_bytes(calibration.to_json())
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return REFUSED
    return DONE


CALIBRATE = Command(
    summary="find the agreement that a share of wrong pairs reaches",
    add_options=_add_options,
    run=_calibrate,
)
AGREEMENT = Group(summary="what agreement is worth", commands={"calibrate": CALIBRATE})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 refused."""
    return run_command(AGREEMENT, "python -m pipeline.agreement", arguments)


if __name__ == "__main__":
    sys.exit(main())
