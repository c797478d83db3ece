"""Plans a fit, and checks the plan before the first stage: stages, datasets, batches, encoders, disk and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from pipeline.encoders.device import pick_device
from pipeline.errors import EncoderError, RecipeError, UserError
from trainer.counting import operations_per_second
from trainer.engine.checkpoint import read_values
from trainer.engine.compiling import check_compiler
from trainer.engine.overlap import check_disjoint
from trainer.engine.presence import check_present
from trainer.engine.run import FitDataset
from trainer.estimate import Estimate, StageCost
from trainer.invert.shared import generator_file
from trainer.needs import check_classes, check_disk, check_renditions, limit_batches, weights_to_fetch
from trainer.prior.networks import generator_config
from trainer.prior.stage import NAME as PRIOR
from trainer.recipe import FitRecipe, find_datasets
from trainer.stages import STAGES, chosen_stages


@dataclass(frozen=True, slots=True)
class FitPlan:
    """A recipe that passed every check that is possible before the first stage."""

    recipe: FitRecipe
    """With batches that the datasets can fill."""
    stages: tuple[str, ...]
    """In the order in which they run."""
    datasets: tuple[FitDataset, ...]
    notes: tuple[str, ...]
    """Lines for people: lowered batch sizes, what the datasets lack, too little memory."""
    costs: dict[str, StageCost]
    """By stage. A stage whose cost cannot be counted is left out."""


def make_fit_plan(recipe: FitRecipe) -> FitPlan:
    """Checks a recipe and all its stages, and plans them. Raises UserError for what can be refused before any work.

    Checks of files, classes and disk run on the first rank of a machine alone; on other ranks ``costs`` is empty.
    """
    names = chosen_stages(recipe.stages)
    reading_stages = [name for name in names if STAGES[name].reads_shards(recipe)]
    datasets: list[FitDataset] = []
    if reading_stages:
        if recipe.shards is None:
            raise RecipeError(
                "shards: missing; name the folder of your datasets with --shards, such as --shards manifests/"
            )
        datasets = find_datasets(recipe.shards, recipe.weights, recipe.reader.retries)
        check_disjoint(datasets)
    for name in names:
        STAGES[name].check(recipe)
    sides_px = {name: STAGES[name].picture_px(recipe) for name in reading_stages}
    check_renditions(sides_px, datasets, upscale=recipe.reader.upscale)
    limited = limit_batches(recipe, names, datasets)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        return FitPlan(limited.recipe, tuple(names), tuple(datasets), limited.notes, {})
    if recipe.run.compile:
        check_compiler(pick_device(recipe.run.device, "run.device"))
    check_classes(limited.recipe, names, datasets)
    if datasets:
        check_present(datasets, list(sides_px.values()), upscale=recipe.reader.upscale, retries=recipe.reader.retries)
    costs = _costs(limited.recipe, names)
    check_disk(recipe.folder, int(sum(cost.checkpoint_bytes for cost in costs.values())) - _existing_bytes(recipe))
    notes = (*limited.notes, *_memory_warnings(limited.recipe, costs))
    return FitPlan(limited.recipe, tuple(names), tuple(datasets), notes, costs)


def _costs(recipe: FitRecipe, names: Sequence[str]) -> dict[str, StageCost]:
    """The cost of each stage; empty if the generator cannot be read."""
    try:
        uses_prior = PRIOR in names or not {"invert", "video"} & set(names)
        config = generator_config(recipe.prior) if uses_prior else generator_file(recipe, recipe.folder).config
    except UserError:
        return {}  # the stage that reads the generator reports the problem
    estimate = Estimate(recipe, config)
    return {name: cost for name in names if (cost := estimate.of(name)) is not None}


def _existing_bytes(recipe: FitRecipe) -> int:
    """Size of the checkpoints that an earlier run left in the run's folder."""
    return sum(path.stat().st_size for path in recipe.folder.rglob("*.safetensors")) if recipe.folder.is_dir() else 0


def device_memory_bytes(name: str) -> int:
    """Memory of a device: of one GPU, or of this machine for the CPU. ``name`` as in ``run.device``; EncoderError if it does not exist."""
    device = pick_device(name, "run.device")
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _memory_warnings(recipe: FitRecipe, costs: dict[str, StageCost]) -> list[str]:
    """A line for each stage that needs more memory than the device has."""
    try:
        available_bytes = device_memory_bytes(recipe.run.device)
    except EncoderError:
        return []  # the device is refused when the run is made
    return [
        f"{name}: about {cost.memory_bytes / 1e9:.0f} GB are needed (an estimate), and the device has {available_bytes / 1e9:.0f}: "
        f"lower {name}.micro_batch_size"
        for name, cost in costs.items()
        if cost.memory_bytes > available_bytes
    ]


def fit_plan_text(recipe: FitRecipe) -> str:
    """The resolved recipe as JSON, then the datasets, the progress of each stage, notes and costs. Writes nothing."""
    plan = make_fit_plan(recipe)
    recipe = plan.recipe
    lines = [recipe.model_dump_json(indent=2)]
    for dataset in plan.datasets:
        splits = ", ".join(f"{name} {count:,}" for name, count in sorted(dataset.manifest.clips.splits.items()))
        lines.append(f"dataset  {dataset.mix.location}: {splits}; {len(dataset.manifest.clips.classes)} classes")
    for name in plan.stages:
        path = recipe.folder / name / "resume.safetensors"
        num_done = read_values(path, name).get("samples_seen", 0) if path.exists() else 0
        lines.append(f"stage    {name}: {num_done:,} samples done, in {recipe.folder / name}")
    lines += [f"note     {note}" for note in (*plan.notes, *weights_to_fetch(recipe, plan.stages))]
    lines += cost_lines(plan)
    return "\n".join(lines)


def cost_lines(plan: FitPlan) -> list[str]:
    """A line for every stage, and one for all: estimated hours, memory and disk. Empty if no cost could be counted."""
    if not plan.costs:
        return []
    device = pick_device(plan.recipe.run.device, "run.device")
    speed = operations_per_second(device, plan.recipe.run.precision)
    lines = [
        _cost_line(name, cost.hours(speed), cost.memory_bytes, cost.checkpoint_bytes)
        for name, cost in plan.costs.items()
    ]
    total_hours = sum(cost.hours(speed) for cost in plan.costs.values())
    peak_bytes = max(cost.memory_bytes for cost in plan.costs.values())
    disk_bytes = sum(cost.checkpoint_bytes for cost in plan.costs.values())
    source = (
        f"an estimate, from counted operations and {speed / 1e9:,.1f} GFLOP/s, as this {device.type} was just timed"
    )
    lines.append(f"{_cost_line('total', total_hours, peak_bytes, disk_bytes)}: {source}")
    return lines


def _cost_line(name: str, hours: float, memory_bytes: float, disk_bytes: float) -> str:
    return (
        f"cost     {name}: {time_text(hours)}, {memory_bytes / 1e9:.1f} GB of memory, {disk_bytes / 1e9:.2f} GB of disk"
    )


def time_text(hours: float) -> str:
    """In hours with one decimal; in minutes below one hour."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
