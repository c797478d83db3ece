"""Looks into built datasets, and takes sources out of them.

python -m pipeline.manifest verify manifests/NAME
python -m pipeline.manifest withdraw manifests/NAME --source ID...
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.verify import verify
from pipeline.errors import UserError
from pipeline.schema import State

MAX_PRINTED = 20


def main(arguments: list[str] | None = None) -> int:
    """``verify FOLDER``: 0 when every file is as the manifest says, 1 when not, 2 when that cannot be found out.

    ``withdraw FOLDER --source ID...``: 0 when it was done, 2 when it cannot be.
    """
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _run(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code, and raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.manifest", description="Look into built datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="compare every file of a dataset with its manifest")
    command.add_argument("dataset", help="folder or URL of a built dataset, or its manifest.json")
    command.add_argument("--deep", action="store_true", help="decode every picture and sound as well")
    command = commands.add_parser("withdraw", help="take sources out of a dataset, and out of later builds")
    command.add_argument("dataset", help="folder or URL of a built dataset, or its manifest.json")
    command.add_argument("--source", nargs="+", action="extend", required=True, metavar="ID", help="ids of the sources")
    options = parser.parse_args(arguments)
    if options.command == "withdraw":
        from pipeline.build.withdraw import summary_lines, withdraw  # noqa: PLC0415 - verifying needs none of it

        print("\n".join(summary_lines(withdraw(options.dataset, options.source))))  # noqa: T201
        return 0
    manifest = read_manifest(options.dataset)
    total = sum(shard.num_bytes for shard in manifest.shards) + sum(file.num_bytes for file in manifest.files)
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("verify", total=total)
        found = verify(
            options.dataset,
            checked=lambda path, problems: console.print(f"{'DIFFERS' if problems else 'ok':<8}{path}", markup=False),
            progressed=lambda num_bytes: progress.advance(task, num_bytes),
            deep=options.deep,
        )
    for difference in found[:MAX_PRINTED]:
        console.print(str(difference), markup=False)
    if found:
        more = f", {len(found) - MAX_PRINTED} more not shown" if len(found) > MAX_PRINTED else ""
        console.print(f"{len(found)} difference{'s' * (len(found) > 1)}{more}", markup=False)
        return 1
    num_samples = manifest.clips.states.get(State.KEPT, 0)
    console.print(
        f"{options.dataset}: all is as the manifest says{', and decodes' if options.deep else ''}"
        f" ({len(manifest.shards)} shards, {num_samples} samples in {len(manifest.renditions)} renditions)",
        markup=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
