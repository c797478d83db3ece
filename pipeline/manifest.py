"""Verifies built datasets and withdraws sources from them.

python -m pipeline.manifest verify manifests/NAME [--deep]
python -m pipeline.manifest withdraw manifests/NAME --source ID...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.runtime.commands import DONE, FAILED, Command, Group, run_command

MAX_PRINTED = 20


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a built dataset, or its manifest.json")
    parser.add_argument("--deep", action="store_true", help="decode every picture and sound as well")


def _verify(options: argparse.Namespace, _: str) -> int:
    from rich.console import Console  # noqa: PLC0415 (after --help)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from pipeline.dataset.manifest import read_manifest  # noqa: PLC0415
    from pipeline.dataset.verify import verify  # noqa: PLC0415
    from pipeline.schema import State  # noqa: PLC0415

    manifest = read_manifest(options.dataset)
    total = sum(shard.num_bytes for shard in manifest.shards) + sum(file.num_bytes for file in manifest.files)
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("verify", total=total)
        differences = verify(
            options.dataset,
            checked=lambda path, problems: console.print(f"{'DIFFERS' if problems else 'ok':<8}{path}", markup=False),
            progressed=lambda num_bytes: progress.advance(task, num_bytes),
            deep=options.deep,
        )
    for difference in differences[:MAX_PRINTED]:
        console.print(str(difference), markup=False)
    if differences:
        num_hidden = len(differences) - MAX_PRINTED
        more = f", {num_hidden} more not shown" if num_hidden > 0 else ""
        console.print(f"{len(differences)} difference{'s' * (len(differences) > 1)}{more}", markup=False)
        return FAILED
    num_samples = manifest.clips.states.get(State.KEPT, 0)
    console.print(
        f"{options.dataset}: all is as the manifest says{', and decodes' if options.deep else ''}"
        f" ({len(manifest.shards)} shards, {num_samples} samples in {len(manifest.renditions)} renditions)",
        markup=False,
    )
    return DONE


def _add_withdraw_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a built dataset, or its manifest.json")
    parser.add_argument("--source", nargs="+", action="extend", required=True, metavar="ID", help="ids of the sources")


def _withdraw(options: argparse.Namespace, _: str) -> int:
    from pipeline.build.withdraw import summary_lines, withdraw  # noqa: PLC0415 (after --help)

    print("\n".join(summary_lines(withdraw(options.dataset, options.source))))  # noqa: T201
    return DONE


VERIFY = Command(
    summary="compare every file of a dataset with its manifest",
    add_options=_add_verify_options,
    run=_verify,
    details="Ends with 0 when every file is as the manifest says, with 1 when one differs, with 2 when that cannot be found out.",
)
WITHDRAW = Command(
    summary="take sources out of a dataset, and out of later builds", add_options=_add_withdraw_options, run=_withdraw
)
MANIFEST = Group(summary="look into built datasets", commands={"verify": VERIFY, "withdraw": WITHDRAW})


def main(arguments: Sequence[str] | None = None) -> int:
    """``verify FOLDER``: 0 when every file is as the manifest says, 1 when not, 2 when that cannot be found out.

    ``withdraw FOLDER --source ID...``: 0 when it was done, 2 when it cannot be.
    """
    return run_command(MANIFEST, "python -m pipeline.manifest", arguments)


if __name__ == "__main__":
    sys.exit(main())
