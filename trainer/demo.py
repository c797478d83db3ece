"""Fit and test a small model on the demo's dataset: ``python -m trainer.demo``, after ``python -m flows.demo``.

Fits the tiny recipe, generates a video for the sound of every held-out sample, draws a contact sheet, measures whether the sound
matters, and writes a page that shows all of it. The same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.errors import SourceListError
from pipeline.runtime.commands import DONE, FAILED, Command, run_command
from pipeline.runtime.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from trainer.result_page.videos import PageSound

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


def held_out_sounds(folder: Path) -> list[PageSound]:
    """The source files of the split ``validation`` in the folder's ``sources.csv``, with their classes. Raises SourceListError if it
    lists none.
    """
    from trainer.result_page.videos import PageSound  # noqa: PLC0415 (after --help)

    table = folder / "sources.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("split") == HELD_OUT]
    except OSError as error:
        raise SourceListError(
            f"{table}: {error.strerror}; build the demo's dataset first: python -m flows.demo"
        ) from error
    sounds = [
        PageSound(
            folder / unquote(Path(urlsplit(row["url"]).path).name),
            tuple(label for label in (row.get("label") or "").split("|") if label),
        )
        for row in rows
    ]
    if not sounds:
        raise SourceListError(f"{table}: none of its sources is of the split {HELD_OUT}")
    return sounds


def _run(options: argparse.Namespace, _: str) -> int:
    from pipeline.starter import recipe_path  # noqa: PLC0415 (after --help)
    from trainer import evaluate, fit, generate  # noqa: PLC0415

    out = Path(options.out)
    sounds = held_out_sounds(Path(options.sources))
    changes = [word for change in options.set for word in ("--set", change)]
    started = time.monotonic()
    code = fit.main(["--shards", options.shards, "--recipe", recipe_path(RECIPE), "--out", str(out), *changes])
    if code:
        return code
    minutes = (time.monotonic() - started) / 60
    print(f"model     {out} (fitted in {minutes:.1f} min)", flush=True)  # noqa: T201
    size = ["--seconds", str(MAX_SECONDS), "--resolution", str(VIDEO_PX)]
    files = [str(sound.path) for sound in sounds]
    paths = ["--sound", *files, "--out", str(out / "videos"), "--sheet", str(out / "sheet.png")]
    made = generate.main(["--checkpoint", str(out), *paths, *size, "--overwrite"])
    if made not in (DONE, FAILED):
        return made
    measures = out / "sound-matters.json"
    report = ["--json", str(measures), "--overwrite"]
    measured = evaluate.main(
        ["--checkpoint", str(out), "--shards", options.shards, "--split", HELD_OUT, "--seeds", str(SEEDS), *report]
    )
    if measured == INTERRUPTED:
        return measured
    _write_page(out, options.shards, sounds, measures if measured == DONE else None)
    return made or measured


def _write_page(out: Path, shards: str, sounds: list[PageSound], measures: Path | None) -> None:
    from trainer.rendering.sound_to_video import GenerateSettings  # noqa: PLC0415 (after --help)
    from trainer.result_page.make import PageSource, write_page  # noqa: PLC0415

    settings = GenerateSettings(seconds=MAX_SECONDS, resolution=VIDEO_PX)
    source = PageSource(out, shards, sounds, out / "videos", settings, measures, RECIPE)
    print(f"page      {write_page(source)}")  # noqa: T201


DEMO = Command(summary="fit a tiny model to the demo's dataset, and test it", add_options=_add_options, run=_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, else that of the first command that failed."""
    return run_command(DEMO, "python -m trainer.demo", arguments)


if __name__ == "__main__":
    sys.exit(main())
