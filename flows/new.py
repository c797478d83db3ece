"""Recipes, a source list and a batch script to start from: ``hearscape new FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.runtime.commands import DONE, Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write into; . is the current one")


def _run(options: argparse.Namespace, _: str) -> int:
    from pipeline.starter import new_folder  # noqa: PLC0415 (not needed for --help)

    folder: Path = options.folder
    num_recipes = len([path for path in new_folder(folder) if path.suffix == ".toml"])
    manifests = folder / "manifests"
    print(  # noqa: T201
        f"{manifests / 'recipes'}: {num_recipes} recipes\n{manifests / 'sources'}: a source list, and README.md on its columns\n"
        f"{manifests / 'slurm'}: a batch script that fits on several nodes\n\n"
        f"1. Put your links into {manifests / 'sources' / 'example.csv'}\n"
        f"2. hearscape build {manifests / 'recipes' / 'landscape.toml'} --dry-run"
    )
    return DONE


NEW = Command(
    summary="write recipes, a source list and a batch script to start from",
    add_options=_add_options,
    run=_run,
    details="Writes into FOLDER/manifests. The command is refused if one of the files exists: it replaces none.",
)
