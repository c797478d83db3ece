"""Which recipe a fit takes where none is named: by device, memory, clips, renditions, and encoders that can be had."""

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
from trainer.engine.run import FitDataset
from trainer.estimate import Estimate, operations_per_second
from trainer.needs import num_clips, tag_is_here
from trainer.plan import device_memory_bytes, time_text
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe, find_datasets

ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe that may be chosen, and what it is worth its time with."""

    name: str
    side_px: int
    """Of its videos."""
    fewest_clips: int
    """To train on. Fewer are learned by heart: a generator from nothing wants thousands of scenes (StyleGAN2-ADA, figure 7)."""
    needs_gpu: bool

    @property
    def path(self) -> Path:
        return Path(recipe_path(self.name))


CANDIDATES = (
    Candidate("fit-1024", 1024, 20_000, True),
    Candidate("fit-256", 256, 2000, True),
    Candidate("fit-tiny", 32, 0, False),
)
"""From the largest on; the first that nothing speaks against is taken. The last one runs anywhere."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What decides."""

    device: str
    """cpu or cuda."""
    memory_bytes: int
    clips: int
    """To train on."""
    largest_px: int | None
    """Short side of the largest rendition that all datasets have. None: the sources' own sizes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, and why."""

    path: Path
    lines: tuple[str, ...]
    """What people should know: the choice, its cost, and what speaks against each other one."""


def circumstances(datasets: Sequence[FitDataset]) -> Circumstances:
    """Of this machine and the datasets."""
    sizes = []
    for dataset in datasets:
        sides = [rendition.short_side_px for rendition in dataset.manifest.renditions]
        if None not in sides:
            sizes.append(max(side for side in sides if side is not None))
    device = pick_device("auto").type
    return Circumstances(device, device_memory_bytes("auto"), num_clips(datasets), min(sizes, default=None))


def objections(candidate: Candidate, recipe: FitRecipe, given: Circumstances, needed_bytes: float) -> list[str]:
    """What speaks against a recipe; none: it can be taken. Servers are asked for an encoder where nothing else does."""
    against = []
    if candidate.needs_gpu and given.device != "cuda":
        against.append("there is no GPU")
    elif needed_bytes > given.memory_bytes:
        against.append(
            f"it takes about {needed_bytes / 1e9:.0f} GB of memory, and the {given.device} has {given.memory_bytes / 1e9:.0f}"
        )
    if given.clips < candidate.fewest_clips:
        against.append(f"it wants {candidate.fewest_clips:,} clips, and there are {given.clips:,}")
    if given.largest_px is not None and given.largest_px < candidate.side_px:
        against.append(f"it wants a rendition of {candidate.side_px} pixels, and the largest has {given.largest_px}")
    partner = recipe.align.partner
    if not against and not partner.is_packaged:
        tag = partner.picture_weights or OPENAI
        if not can_be_had(partner.picture_model, tag):
            against.append(
                f"the weights {tag} of {partner.picture_model} are not here, and no server gives them: set "
                "align.partner.picture_weights to the path of the file, and name the recipe"
            )
    return against


def can_be_had(model: str, tag: str) -> bool:
    """Whether the weights of an open_clip tag are on this machine, or a server says that it has them."""
    if tag_is_here(model, tag):
        return True
    repository, _, name = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
    if not repository or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    server = os.environ.get("HF_ENDPOINT") or ENDPOINT
    address = f"{server}/{repository}/resolve/main/{name or 'open_clip_model.safetensors'}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ASK_SECONDS) as answer:
            return int(answer.status) < 400
    except (urllib.error.URLError, OSError, ValueError):
        return False


def choose_recipe(shards: str, out: str | None = None) -> Choice:
    """The recipe for the datasets below ``shards``; in a run's folder ``out`` that is there already, the one it was begun with.

    Raises ManifestError where there is no dataset.
    """
    given = circumstances(find_datasets(shards, {}))
    begun = _begun(out)
    chosen: Candidate | None = None
    others: list[str] = []
    cost = ""
    speed = {precision: operations_per_second(pick_device("auto"), precision) for precision in ("fp32", "bf16")}
    for candidate in CANDIDATES:
        recipe = read_recipe(FitRecipe, candidate.path)
        estimate = Estimate(recipe, generator_config(recipe.prior))
        costs = [one for name in ("prior", "align", "invert", "video") if (one := estimate.of(name)) is not None]
        memory = max(one.memory_bytes for one in costs)
        hours = sum(one.hours(speed[recipe.run.precision]) for one in costs)
        cost_text = (
            f"about {time_text(hours)} and {memory / 1e9:.1f} GB of memory (an estimate from counted operations)"
        )
        is_begun = begun is not None and candidate.name == f"fit-{begun}"
        against = [] if is_begun else objections(candidate, recipe, given, memory)
        if is_begun or (chosen is None and begun is None and not against):
            chosen, cost = candidate, cost_text
        else:
            why = "; ".join(against) or "smaller pictures than can be had"
            others.append(f"         not {candidate.name}, videos of {candidate.side_px} pixels, {cost_text}: {why}")
    last = chosen or CANDIDATES[-1]
    because = f"{out} was begun with it" if begun is not None and chosen else _because(given)
    head = f"recipe   {last.name}, videos of {last.side_px} pixels, {cost or 'not counted'}: {because}"
    return Choice(last.path, (head, *others, f"         to take another: --recipe {last.path.parent}/NAME.toml"))


def _because(given: Circumstances) -> str:
    largest = "the sources' own sizes" if given.largest_px is None else f"pictures of {given.largest_px} pixels"
    return f"{given.clips:,} clips to train on, {largest}, a {given.device} with {given.memory_bytes / 1e9:.0f} GB"


def _begun(out: str | None) -> str | None:
    """Name of the recipe that a run's folder was begun with."""
    path = Path(out).expanduser() / "recipe.json" if out is not None else None
    if path is None or not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["run"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name) if any(candidate.name == f"fit-{name}" for candidate in CANDIDATES) else None
