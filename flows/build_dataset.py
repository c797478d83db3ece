"""Builds a dataset now, in this process: ``python -m flows.build_dataset RECIPE [--set a.b=c] [--dry-run]``.

``python -m flows.serve`` offers the same flow in Prefect's UI and to ``prefect deployment run``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.runtime.commands import Command, run_command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="path of a recipe (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one setting of the recipe; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and end")


def _run(options: argparse.Namespace, command_line: str) -> int:
    # Imported here, since each process that decodes imports this module again, and does not use Prefect.
    from rich.console import Console  # noqa: PLC0415

    from flows import direct  # noqa: PLC0415
    from pipeline.build.recipe import load_recipe  # noqa: PLC0415

    def work() -> None:
        recipe = load_recipe(options.recipe, options.set)
        if options.dry_run:
            print(direct.plan_text(recipe))  # noqa: T201
            return
        direct.check(recipe)
        print(direct.summary_text(direct.run_now(recipe, Console(stderr=True))))  # noqa: T201

    return direct.exit_code(work, command_line)


BUILD = Command(
    summary="build a dataset from a recipe",
    add_options=_add_options,
    run=_run,
    details="The same command continues a build that was interrupted. --dry-run prints every setting of the recipe.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 refused (the message says what to correct), 130 or 143 interrupted."""
    return run_command(BUILD, "python -m flows.build_dataset", arguments)


if __name__ == "__main__":
    sys.exit(main())
