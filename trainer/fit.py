"""Fit a model to built datasets: ``python -m trainer.fit --shards manifests/ [--recipe R.toml] [--stages align] [--dry-run]``.

The same command continues an interrupted run. ``torchrun --nproc-per-node N -m trainer.fit ...`` fits on N processes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import HearscapeError, UserError
from pipeline.runtime.commands import Command, run_command
from pipeline.runtime.process_folder import system_folder

if TYPE_CHECKING:
    from trainer.recipe import FitRecipe


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", metavar="FOLDER", help="folder or URL: every dataset below it is streamed from")
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="R.toml",
        help="path of a recipe for a fit; may be repeated, a later one changes settings of those before it "
        "(default: chosen by device, memory, clips, renditions and encoders)",
    )
    parser.add_argument("--stages", metavar="A,B", help="the stages to run, separated by commas (default: all)")
    parser.add_argument("--out", metavar="runs/NAME", help="the run's folder; an existing run is continued")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one setting; may be repeated"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run all stages with small networks, in minutes: on --shards, or on clips that are painted for this",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would be done, and end")


def _run(options: argparse.Namespace, command_line: str) -> int:
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"rank {rank}: " if rank else ""
    try:
        system_folder()
        recipe = _recipe(options)
        if options.dry_run:
            from trainer.plan import fit_plan_text  # noqa: PLC0415

            print(fit_plan_text(recipe))  # noqa: T201
            return 0
        signal_number = _rehearse(recipe) if options.rehearse else run_stages(recipe)
    except UserError as error:
        print(f"{prefix}error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except HearscapeError as error:
        print(f"{prefix}failed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if signal_number and not rank:
        print(f"Interrupted. To continue, run it again: {command_line}", file=sys.stderr)  # noqa: T201
    return 128 + signal_number if signal_number else 0


FIT = Command(
    summary="fit a model to built datasets",
    add_options=_add_options,
    run=_run,
    details="The same command continues a run that was interrupted. --dry-run prints every setting of the recipe.",
    logs_warnings=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done or paused, 1 failed, 2 refused (the message says what to correct).

    130, 138 or 143: a checkpoint was written and the fit stopped, because of Ctrl-C, SIGUSR1 or SIGTERM.
    """
    return run_command(FIT, "python -m trainer.fit", arguments)


def _recipe(options: argparse.Namespace) -> FitRecipe:
    from pipeline.runtime.recipe_file import read_recipe  # noqa: PLC0415 (after --help)
    from trainer.recipe import FitRecipe  # noqa: PLC0415

    paths = options.recipe
    if paths is None and options.shards is not None and _has_settings(options.stages):
        from trainer.choice import choose_recipe  # noqa: PLC0415

        choice = choose_recipe(options.shards, options.out)
        paths = [str(choice.path)]
        if os.environ.get("RANK", "0") == "0":
            print("\n".join(choice.lines), flush=True)  # noqa: T201
    recipe = read_recipe(FitRecipe, paths, options.set)
    if options.shards is not None:
        recipe = recipe.model_copy(update={"shards": options.shards})
    if options.stages is not None:
        names = tuple(name.strip() for name in options.stages.split(",") if name.strip())
        recipe = recipe.model_copy(update={"stages": names})
    if options.out is not None:
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"out": options.out})})
    return recipe


def _has_settings(stages: str | None) -> bool:
    """Whether a recipe has settings for any of the stages. None: all stages. Stages of other packages may have none."""
    from trainer.recipe import FitRecipe  # noqa: PLC0415 (after --help)

    return stages is None or bool(FitRecipe.model_fields.keys() & {name.strip() for name in stages.split(",")})


def _rehearse(recipe: FitRecipe) -> int:
    """Like ``run_stages`` with everything small. Writes to the run's folder, or to a temporary one if the recipe names none."""
    from trainer.needs import limit_batches  # noqa: PLC0415
    from trainer.recipe import find_datasets  # noqa: PLC0415
    from trainer.rehearsal import rehearse  # noqa: PLC0415
    from trainer.stages import chosen_stages  # noqa: PLC0415

    def with_batches(small: FitRecipe) -> FitRecipe:
        assert small.shards is not None
        datasets = find_datasets(small.shards, small.weights, small.reader.retries)
        limited = limit_batches(small, chosen_stages(small.stages), datasets)
        for note in limited.notes:
            say(note)
        return limited.recipe

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        out = Path(folder) if recipe.run.out is None else recipe.folder
        return rehearse(recipe, out, with_batches, run_stages, say)


def run_stages(recipe: FitRecipe) -> int:
    """Runs the stages of a recipe. Returns 0 if they are done or paused, else the number of the signal that stopped them.

    Raises UserError before any work, FitError when a stage cannot go on.
    """
    from rich.console import Console  # noqa: PLC0415

    from trainer.engine.ranks import leave  # noqa: PLC0415
    from trainer.engine.run import Run, locked, make_fabric, save_recipe  # noqa: PLC0415
    from trainer.engine.stats import Display, Stats  # noqa: PLC0415
    from trainer.engine.stopping import signals_noted  # noqa: PLC0415
    from trainer.needs import obtain  # noqa: PLC0415
    from trainer.plan import make_fit_plan  # noqa: PLC0415
    from trainer.stages import STAGES  # noqa: PLC0415

    plan = make_fit_plan(recipe)
    recipe = plan.recipe
    if os.environ.get("LOCAL_RANK", "0") == "0":
        obtain(recipe, plan.stages)
    fabric = make_fabric(recipe.run)
    fabric.launch()
    is_first = fabric.is_global_zero
    with locked(recipe.folder, is_first):
        if is_first:
            save_recipe(recipe.folder, recipe)
        stats = Stats(recipe.folder if is_first else None)
        display = Display(Console(stderr=True) if is_first else None)
        run = Run(recipe.folder, recipe.run, plan.datasets, fabric, stats)
        signal_number = 0
        try:
            with signals_noted(run.signalled), display.shown():
                for note in plan.notes:
                    display.say(note)
                for name in plan.stages:
                    if signal_number := run.stop_signal():
                        break
                    ended = STAGES[name].fit(recipe, run, display)
                    display.say(f"{name}: {ended}, {recipe.folder / name}")
                    if ended == "stopped":
                        signal_number = run.stop_signal()
                    if ended != "done":
                        break
        finally:
            stats.close()
    leave()
    return signal_number


if __name__ == "__main__":
    sys.exit(main())
