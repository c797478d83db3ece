"""Chooses the recipe of a fit where the user names none: by device, memory, clips, renditions and available encoders."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from huggingface_hub.constants import ENDPOINT

from pipeline.encoders.device import pick_device
from pipeline.runtime.recipe_file import read_recipe
from pipeline.starter import recipe_path
from trainer.align.frozen_encoders import OPENAI
from trainer.counting import operations_per_second
from trainer.engine.run import FitDataset
from trainer.estimate import Estimate
from trainer.needs import is_tag_cached, num_clips
from trainer.plan import device_memory_bytes, time_text
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe, find_datasets

REQUEST_SECONDS = 5.0
"""Longest wait for a server that is asked whether it has the weights of an encoder."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe that may be chosen, and what it needs."""

    name: str
    side_px: int
    """Side of its videos."""
    min_clips: int
    """Fewest clips to train on. From fewer a generator memorises: from random weights it needs thousands (StyleGAN2-ADA, figure 7)."""
    needs_gpu: bool

    @property
    def path(self) -> Path:
        return Path(recipe_path(self.name))


CANDIDATES = (
    Candidate("fit-1024", 1024, 20_000, True),
    Candidate("fit-256", 256, 2000, True),
    Candidate("fit-tiny", 64, 0, False),
)
"""Sorted from the largest. The first one without objections is chosen; the last one runs anywhere."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the choice depends on: the machine and the datasets."""

    device: str
    """cpu or cuda."""
    memory_bytes: int
    """Of the device."""
    clips: int
    """Clips of the split train."""
    largest_px: int | None
    """Short side of the largest rendition that all datasets have. None: the sources' own sizes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen recipe, and the reasons."""

    path: Path
    lines: tuple[str, ...]
    """Lines for people: the choice with its estimated cost, and the objections to each other candidate."""


def circumstances_of(datasets: Sequence[FitDataset]) -> Circumstances:
    """The circumstances of a fit on this machine and these datasets."""
    largest_sides_px = []
    for dataset in datasets:
        sides_px = [rendition.short_side_px for rendition in dataset.manifest.renditions]
        if None not in sides_px:
            largest_sides_px.append(max(side_px for side_px in sides_px if side_px is not None))
    device = pick_device("auto").type
    return Circumstances(device, device_memory_bytes("auto"), num_clips(datasets), min(largest_sides_px, default=None))


def objections(candidate: Candidate, recipe: FitRecipe, circumstances: Circumstances, needed_bytes: float) -> list[str]:
    """The reasons against a candidate; empty: it can be chosen. Asks servers for an encoder only if there is no other reason."""
    reasons = []
    if candidate.needs_gpu and circumstances.device != "cuda":
        reasons.append("there is no GPU")
    elif needed_bytes > circumstances.memory_bytes:
        reasons.append(
            f"it needs about {needed_bytes / 1e9:.0f} GB of memory, and the device ({circumstances.device}) has "
            f"{circumstances.memory_bytes / 1e9:.0f}"
        )
    if circumstances.clips < candidate.min_clips:
        reasons.append(f"it needs {candidate.min_clips:,} clips, and there are {circumstances.clips:,}")
    if circumstances.largest_px is not None and circumstances.largest_px < candidate.side_px:
        reasons.append(
            f"it needs a rendition of {candidate.side_px} pixels, and the largest has {circumstances.largest_px}"
        )
    partner = recipe.align.partner
    if not reasons and not partner.is_packaged:
        tag = partner.picture_weights or OPENAI
        if not is_available(partner.picture_model, tag):
            reasons.append(
                f"the weights {tag} of {partner.picture_model} are not on this machine, and no server offers them: set "
                "align.partner.picture_weights to the path of the file, and name the recipe"
            )
    return reasons


def is_available(model: str, tag: str) -> bool:
    """Whether the weights of an open_clip tag are on this machine, or a server answers that it has them."""
    if is_tag_cached(model, tag):
        return True
    repository, _, name = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
    if not repository or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    server = os.environ.get("HF_ENDPOINT") or ENDPOINT
    address = f"{server}/{repository}/resolve/main/{name or 'open_clip_model.safetensors'}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REQUEST_SECONDS) as answer:
            return int(answer.status) < 400
    except (urllib.error.URLError, OSError, ValueError):
        return False


def choose_recipe(shards: str, out: str | None = None) -> Choice:
    """Chooses a recipe for the datasets below ``shards``. A run in the folder ``out`` keeps the candidate that it was started with.

    Raises ManifestError where there is no dataset.
    """
    circumstances = circumstances_of(find_datasets(shards, {}))
    started_with = _started_with(out)
    chosen: Candidate | None = None
    costs_and_reasons: dict[Candidate, tuple[str, str]] = {}
    speed = {precision: operations_per_second(pick_device("auto"), precision) for precision in ("fp32", "bf16")}
    for candidate in CANDIDATES:
        recipe = read_recipe(FitRecipe, candidate.path)
        estimate = Estimate(recipe, generator_config(recipe.prior))
        costs = [cost for name in ("prior", "align", "invert", "video") if (cost := estimate.of(name)) is not None]
        memory_bytes = max(cost.memory_bytes for cost in costs)
        hours = sum(cost.hours(speed[recipe.run.precision]) for cost in costs)
        cost_text = (
            f"about {time_text(hours)} and {memory_bytes / 1e9:.1f} GB of memory (an estimate from counted operations)"
        )
        is_continued = started_with is not None and candidate.name == f"fit-{started_with}"
        reasons = [] if is_continued else objections(candidate, recipe, circumstances, memory_bytes)
        if is_continued or (chosen is None and started_with is None and not reasons):
            chosen = candidate
        why_not = "; ".join(reasons) or ("its videos are smaller" if started_with is None else "the run has another")
        costs_and_reasons[candidate] = (cost_text, why_not)
    last = chosen or CANDIDATES[-1]
    others = [
        f"         not {candidate.name}, videos of {candidate.side_px} pixels, {cost_text}: {why_not}"
        for candidate, (cost_text, why_not) in costs_and_reasons.items()
        if candidate is not last
    ]
    reason = f"{out} was started with it" if started_with is not None and chosen else _reason(circumstances)
    head = f"recipe   {last.name}, videos of {last.side_px} pixels, {costs_and_reasons[last][0]}: {reason}"
    return Choice(last.path, (head, *others, f"         to choose another: --recipe {last.path.parent}/NAME.toml"))


def _reason(circumstances: Circumstances) -> str:
    clips, largest_px = f"{circumstances.clips:,} clips to train on", circumstances.largest_px
    sizes = "the sources' own sizes" if largest_px is None else f"pictures of {largest_px} pixels"
    return f"{clips}, {sizes}, a {circumstances.device} device with {circumstances.memory_bytes / 1e9:.0f} GB"


def _started_with(out: str | None) -> str | None:
    """The name, as ``fit-NAME``, of the candidate that the run in a folder was started with. None: no run, or another recipe."""
    path = Path(out).expanduser() / "recipe.json" if out is not None else None
    if path is None or not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["run"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name) if any(candidate.name == f"fit-{name}" for candidate in CANDIDATES) else None
