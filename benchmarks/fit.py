"""Measures the cost of a step of each stage of a fit: time, waiting for data and memory, with one rank and with several.

python -m benchmarks.fit --shards manifests/demo                        the tiny recipe, 1 and 2 ranks
python -m benchmarks.fit --shards manifests/ --recipe R.toml --ranks 1  any recipe
python -m benchmarks.fit --count --recipe R.toml                        what each network costs, counted: nothing runs

Each stage makes ``--steps`` steps in a new folder, and validates only at the end. The first tick of a stage, in which processes start
and memory is first used, is left out. CPU seconds are those of all ranks and readers together.

Counts come from ``trainer.estimate``. Passes of a few items are counted on torch's device ``meta`` and scaled linearly to the batch. The
time of a step on an accelerator is an estimate from operations and bytes; its assumptions are options, and are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Cost, cost_of
from pipeline.runtime.recipe_file import read_recipe
from trainer.counting import Accelerator
from trainer.estimate import Estimate
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe
from trainer.stages import chosen_stages

RECIPE = Path("manifests/recipes/fit-tiny.toml")


@dataclass(frozen=True, slots=True)
class StageTiming:
    """The cost of a stage: medians over its ticks, and the cost of the whole command."""

    stage: str
    ranks: int
    samples_per_second: float
    step_ms: float
    data_wait_share: float
    memory_bytes: float
    """Largest value of the ticks, of rank 0."""
    whole: Cost
    """Start and validation included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shards", metavar="FOLDER", help="datasets to stream from")
    source.add_argument("--count", action="store_true", help="count operations and bytes, and run nothing")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="%(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change one setting")
    parser.add_argument("--stages", metavar="A,B", help="the stages to run (the recipe's)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes that train together (1 2)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each stage (%(default)s)")
    assumed = Accelerator()
    for name, value, meaning in (
        ("tflops", assumed.half_operations_per_second / 1e12, "peak in bf16, TFLOP/s"),
        ("tf32-tflops", assumed.full_operations_per_second / 1e12, "peak in fp32, TFLOP/s"),
        ("gb-per-second", assumed.bytes_per_second / 1e9, "peak of the memory, GB/s"),
        ("utilisation", assumed.utilisation, "share of both peaks that is reached"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"an accelerator's {meaning} (%(default)g)")
    options = parser.parse_args()
    recipe = read_recipe(FitRecipe, options.recipe, options.set)
    names = chosen_stages(options.stages.split(",") if options.stages else recipe.stages)
    if options.count:
        accelerator = Accelerator(
            options.tflops * 1e12, options.tf32_tflops * 1e12, options.gb_per_second * 1e9, options.utilisation
        )
        print("\n".join(count_lines(recipe, names, accelerator)))
    else:
        _measure_all(recipe, names, options)


def count_lines(recipe: FitRecipe, names: Sequence[str], accelerator: Accelerator) -> list[str]:
    """Lines for people: the share of each network in a step, and an estimate of the step's time on an accelerator."""
    lines = [
        f"{'stage':8} {'network':24} {'GFLOP of a sample':>18} {'share':>6} {'estimated ms of a step':>23} {'share':>6}"
    ]
    estimate = Estimate(recipe, generator_config(recipe.prior))
    for name in names:
        cost = estimate.of(name)
        if cost is None:
            continue
        step_ms = 1000 * samples_per_step(name, recipe)
        operations: dict[str, float] = defaultdict(float)
        times_ms: dict[str, float] = defaultdict(float)
        for one in cost.networks:
            operations[one.network] += one.operations
            times_ms[one.network] += step_ms * one.seconds(accelerator)
        all_operations, all_ms = sum(operations.values()), sum(times_ms.values())
        for network, own in operations.items():
            lines.append(
                f"{name:8} {network:24} {own / 1e9:18,.2f} {own / all_operations:6.1%} "
                f"{times_ms[network]:23,.1f} {times_ms[network] / all_ms:6.1%}"
            )
        hours = cost.num_samples / samples_per_step(name, recipe) * all_ms / 3.6e6
        lines.append(f"{name:8} {'all':24} {all_operations / 1e9:18,.2f} {'':6} {all_ms:23,.1f} {hours:,.1f} h in all")
    half, full = accelerator.half_operations_per_second / 1e12, accelerator.full_operations_per_second / 1e12
    lines.append(
        f"Operations are counted. Times are estimates for one accelerator, uncompiled, with {half:g} TFLOP/s in bf16, {full:g} in fp32 "
        f"and {accelerator.bytes_per_second / 1e9:,g} GB/s, of which {accelerator.utilisation:.0%} are reached; losses, optimizers, "
        f"reading and starts of kernels are left out."
    )
    return lines


def _measure_all(recipe: FitRecipe, names: Sequence[str], options: argparse.Namespace) -> None:
    print(
        f"{'stage':10} {'ranks':>5} {'ms/step':>8} {'clips/s':>8} {'waits':>6} {'peak of rank 0':>15} {'CPU s':>7} {'wall s':>7}"
    )
    with tempfile.TemporaryDirectory(prefix="hearscape-benchmark-") as scratch:
        for ranks in options.ranks:
            for name in names:
                cost = _measure(name, ranks, recipe, options, Path(scratch) / f"ranks{ranks}")
                print(
                    f"{cost.stage:10} {cost.ranks:5} {cost.step_ms:8.0f} {cost.samples_per_second:8.1f} "
                    f"{cost.data_wait_share:6.1%} {cost.memory_bytes / 1e9:12.2f} GB "
                    f"{cost.whole.cpu_seconds:7.1f} {cost.whole.wall_seconds:7.1f}",
                    flush=True,
                )


def _measure(name: str, ranks: int, recipe: FitRecipe, options: argparse.Namespace, out: Path) -> StageTiming:
    per_step = samples_per_step(name, recipe)
    num_samples = per_step * options.steps
    changes = [
        *options.set,
        "run.tick_seconds=1.0",
        f"{name}.num_samples={num_samples}",
        f"{name}.validate_every_samples={num_samples}",
        f"{name}.save_every_samples={num_samples}",
    ]
    words = ["-m", "trainer.fit", "--shards", options.shards, "--recipe", str(options.recipe), "--stages", name]
    words += ["--out", str(out), *(word for change in changes for word in ("--set", change))]
    if ranks > 1:
        words = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", *words]
    whole = cost_of(lambda: _run([sys.executable, *words]))
    ticks = _ticks(out, name)
    samples_per_second = statistics.median(float(tick["samples_per_second"]) for tick in ticks)
    return StageTiming(
        stage=name,
        ranks=ranks,
        samples_per_second=samples_per_second,
        step_ms=1000 * per_step / samples_per_second,
        data_wait_share=statistics.median(float(tick["data_wait_share"]) for tick in ticks),
        memory_bytes=max(float(tick["memory_bytes"]) for tick in ticks),
        whole=whole,
    )


def samples_per_step(name: str, recipe: FitRecipe) -> int:
    """Samples of one step of all ranks: pictures in the prior stage, clips in the others."""
    if name == "prior":
        return recipe.prior.batch_size * (1 if recipe.prior.pictures else recipe.prior.frames_per_clip)
    if name == "align":
        return recipe.reader.batch_size
    batch_size: int = getattr(recipe, name).batch_size
    return batch_size


def _run(command: Sequence[str]) -> None:
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-3000:]}")


def _ticks(out: Path, stage: str) -> list[dict[str, float | str]]:
    """The ticks of a stage in ``stats.jsonl`` without the first; that one alone if there is no other."""
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    ticks = [line for line in lines if line["stage"] == stage and line["kind"] == "tick"]
    return ticks[1:] or ticks


if __name__ == "__main__":
    main()
