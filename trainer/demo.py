"""Fit and test a small model on the demo's dataset: ``python -m trainer.demo``, after ``python -m flows.demo``.

Fits the tiny recipe, generates a video for the sound of every held-out sample, draws a contact sheet, and measures whether the sound
matters. The same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import SourceListError
from pipeline.runtime.commands import Command, run_command

RECIPE = "fit-tiny"
HELD_OUT = "validation"
VIDEO_PX = 256
"""Side of the generated videos."""
SEEDS = 4
"""Latents for each clip in the measurement."""
MAX_SECONDS = 8
"""Largest length of a generated video."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", metavar="FOLDER", default="manifests/demo", help="the dataset (%(default)s)")
    parser.add_argument(
        "--sources",
        metavar="FOLDER",
        default="manifests/demo-sources",
        help="the synthetic sources it was built from (%(default)s)",
    )
    parser.add_argument("--out", metavar="runs/NAME", default="runs/demo", help="the run's folder (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change one setting of the recipe")


def held_out_files(folder: Path) -> list[Path]:
    """The source files of the split ``validation`` in the folder's ``sources.csv``. Raises SourceListError if it lists none."""
    table = folder / "sources.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("split") == HELD_OUT]
    except OSError as error:
        raise SourceListError(
            f"{table}: {error.strerror}; build the demo's dataset first: python -m flows.demo"
        ) from error
    files = [folder / unquote(Path(urlsplit(row["url"]).path).name) for row in rows]
    if not files:
        raise SourceListError(f"{table}: none of its sources is of the split {HELD_OUT}")
    return files


def _run(options: argparse.Namespace, _: str) -> int:
    from pipeline.starter import recipe_path  # noqa: PLC0415 (after --help)
    from trainer import evaluate, fit, generate  # noqa: PLC0415

    out = Path(options.out)
    sounds = held_out_files(Path(options.sources))
    changes = [word for change in options.set for word in ("--set", change)]
    started = time.monotonic()
    code = fit.main(["--shards", options.shards, "--recipe", recipe_path(RECIPE), "--out", str(out), *changes])
    if code:
        return code
    minutes = (time.monotonic() - started) / 60
    print(f"model     {out} (fitted in {minutes:.1f} min)", flush=True)  # noqa: T201
    size = ["--seconds", str(MAX_SECONDS), "--resolution", str(VIDEO_PX)]
    paths = ["--sound", *map(str, sounds), "--out", str(out / "videos"), "--sheet", str(out / "sheet.png")]
    code = generate.main(["--checkpoint", str(out), *paths, *size, "--overwrite"])
    if code:
        return code
    report = ["--json", str(out / "sound-matters.json"), "--overwrite"]
    return evaluate.main(
        ["--checkpoint", str(out), "--shards", options.shards, "--split", HELD_OUT, "--seeds", str(SEEDS), *report]
    )


DEMO = Command(summary="fit a tiny model to the demo's dataset, and test it", add_options=_add_options, run=_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, else that of the first command that failed."""
    return run_command(DEMO, "python -m trainer.demo", arguments)


if __name__ == "__main__":
    sys.exit(main())
