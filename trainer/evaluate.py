"""Measure whether a model's videos follow the sound: ``python -m trainer.evaluate --checkpoint runs/NAME --shards manifests/``.

For clips that were not in training, videos are generated from their own sound, a sound of another class, silence, and a sound that changes
class half-way. The agreement of these videos with the sounds is printed as a table with a verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.runtime.commands import DONE, Command, run_command
from pipeline.runtime.interrupts import INTERRUPTED


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="runs/NAME", required=True, help="folder of a run, or a model's file")
    parser.add_argument("--sha256", help="of a checkpoint that is a URL")
    parser.add_argument(
        "--shards", metavar="FOLDER", required=True, help="folder or URL: every dataset below it is used"
    )
    parser.add_argument("--split", help="validation (the default), test, or another that the datasets have")
    parser.add_argument("--clips", type=int, metavar="N", help="largest number of clips (200)")
    parser.add_argument("--seeds", type=int, metavar="K", help="latents for each clip (1)")
    parser.add_argument("--recipe", metavar="R.toml", help="settings, with a table [encoders] as in a build recipe")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c",
        help="change one setting, such as encoders.picture_model; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all results to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json if it is there")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 and so on")


def _run(options: argparse.Namespace, _: str) -> int:
    from pipeline.runtime.process_folder import system_folder  # noqa: PLC0415 (after --help)
    from pipeline.runtime.recipe_file import read_recipe  # noqa: PLC0415
    from trainer.proof.evaluation import EvaluateRecipe, evaluate, result_text  # noqa: PLC0415

    settings = {
        "split": options.split,
        "num_clips": options.clips,
        "num_seeds": options.seeds,
        "device": options.device,
    }
    changes = [f"{name}={json.dumps(value)}" for name, value in settings.items() if value is not None]
    try:
        system_folder()
        recipe = read_recipe(EvaluateRecipe, options.recipe, [*options.set, *changes])
        result = evaluate(
            recipe, options.checkpoint, options.shards, options.sha256, options.json, overwrite=options.overwrite
        )
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    print(result_text(result))  # noqa: T201
    return DONE


EVALUATE = Command(
    summary="measure whether a model's videos follow the sound",
    add_options=_add_options,
    run=_run,
    logs_warnings=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, whatever the result; 1 failed; 2 refused (the message says what to correct)."""
    return run_command(EVALUATE, "python -m trainer.evaluate", arguments)


if __name__ == "__main__":
    sys.exit(main())
