"""The whole model on the demo's dataset: ``python -m trainer.demo``, after ``python -m flows.demo``.

Fits the tiny recipe, makes a video of the sound of every sample that it did not learn from, draws a contact sheet, and measures
whether the sound matters. Run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import SourceListError, UserError
from pipeline.runtime.interrupts import INTERRUPTED, interruptible

RECIPE = "manifests/recipes/fit-tiny.toml"
HELD_OUT = "validation"
SHOWN_PX = 256
SEEDS = 4
"""Latents that each clip is measured with."""
SECONDS = 8
"""Of each video, at the most."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.demo", description="Fit a tiny model to the demo's dataset, and hear it work."
    )
    parser.add_argument("--shards", metavar="FOLDER", default="manifests/demo", help="the dataset (%(default)s)")
    parser.add_argument(
        "--sources",
        metavar="FOLDER",
        default="manifests/demo-sources",
        help="the sample sources it was built from (%(default)s)",
    )
    parser.add_argument("--out", metavar="runs/NAME", default="runs/demo", help="the run's folder (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change one setting of the recipe")
    return parser


def held_out_files(folder: Path) -> list[Path]:
    """The sample files that are not learned from, as the folder's source list has it. Raises SourceListError."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, else that of the first command that did not end well."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words)
    with interruptible(shlex.join(["python", "-m", "trainer.demo", *words])):
        return _run(options)
    return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from trainer import evaluate, fit, generate  # noqa: PLC0415 (slow to import)

    out = Path(options.out)
    try:
        sounds = held_out_files(Path(options.sources))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    changes = [word for change in options.set for word in ("--set", change)]
    began = time.monotonic()
    code = fit.main(["--shards", options.shards, "--recipe", RECIPE, "--out", str(out), *changes])
    if code:
        return code
    minutes = (time.monotonic() - began) / 60
    print(f"model     {out} (fitted in {minutes:.1f} min)", flush=True)  # noqa: T201
    shown = ["--seconds", str(SECONDS), "--resolution", str(SHOWN_PX), "--overwrite"]
    named = ["--sound", *map(str, sounds), "--out", str(out / "videos"), "--sheet", str(out / "sheet.png")]
    code = generate.main(["--checkpoint", str(out), *named, *shown])
    if code:
        return code
    report = ["--json", str(out / "sound-matters.json"), "--overwrite"]
    return evaluate.main(
        ["--checkpoint", str(out), "--shards", options.shards, "--split", HELD_OUT, "--seeds", str(SEEDS), *report]
    )


if __name__ == "__main__":
    sys.exit(main())
