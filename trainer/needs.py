"""Checks what the stages of a recipe need: clips in the datasets, published weights, room on disk.

A stage may begin days after the command, so that all stages are checked before the first one begins, and by ``--dry-run``.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from huggingface_hub import try_to_load_from_cache

from pipeline.encoders.pair import EncoderPairSettings, find_files
from pipeline.encoders.picture import find_weights, is_tag
from pipeline.encoders.weights import is_url, resolve_weights
from pipeline.errors import DataError, OutputError
from trainer.align.frozen_encoders import OPENAI, load_partner
from trainer.align.prompts import TextEmbeddings
from trainer.engine.run import FitDataset
from trainer.prior.settings import GROUP_SIZE
from trainer.recipe import FitRecipe
from trainer.streaming.order import Order
from trainer.streaming.shards import chosen_rendition

TRAIN, VALIDATION = "train", "validation"
MIN_ALIGN_CLIPS = 2
"""Smallest batch of the align stage: the contrastive loss compares a clip with the others of its batch."""


@dataclass(frozen=True, slots=True)
class LimitedRecipe:
    """A recipe whose batches the datasets can fill."""

    recipe: FitRecipe
    notes: tuple[str, ...]
    """Lines for people: each batch size that was lowered, and what the datasets lack."""


def num_clips(datasets: Sequence[FitDataset], split: str = TRAIN) -> int:
    """Clips of a split that an epoch reads. A dataset of weight 2 counts twice."""
    counts_and_weights = [
        (dataset.manifest.clips.splits[split], dataset.mix.weight)
        for dataset in datasets
        if dataset.manifest.clips.splits.get(split)
    ]
    if not counts_and_weights:
        return 0
    counts, weights = [[count] for count, _ in counts_and_weights], [weight for _, weight in counts_and_weights]
    return Order(counts, weights, seed=0, shuffle=False, window=1).num_samples


def limit_batches(recipe: FitRecipe, stages: Sequence[str], datasets: Sequence[FitDataset]) -> LimitedRecipe:
    """Lowers batch sizes that the datasets cannot fill. Raises DataError where not even the smallest batch can be filled.

    A batch is never larger than an epoch of the split train. Its size is a multiple of the number of ranks, and in the prior stage the
    pictures of a rank form whole groups. The same datasets and ranks give the same sizes, so that a fit continues with the same batches.
    """
    num_ranks, clips = int(os.environ.get("WORLD_SIZE", "1")), num_clips(datasets)
    notes: list[str] = []
    for stage in stages:
        table = "reader" if stage == "align" else stage
        if not datasets or (stage == "prior" and recipe.prior.pictures is not None):
            continue
        if stage == "align" and recipe.reader.last_batch == "keep":
            continue
        settings = getattr(recipe, table, None)
        wanted: int | None = getattr(settings, "batch_size", None)
        if settings is None or wanted is None or wanted <= clips:
            continue  # the batch can be filled, or the stage is another package's and reads in its own way
        min_clips = MIN_ALIGN_CLIPS if stage == "align" else 1
        frames = recipe.prior.frames_per_clip if stage == "prior" else None
        sizes = (size for size in range(clips, min_clips - 1, -1) if _is_batch(size, num_ranks, frames))
        size = next(sizes, None)
        if size is None:
            raise DataError(
                f"{table}.batch_size {wanted:,}: the stage {stage} needs {max(min_clips, num_ranks):,} clips for a batch of {num_ranks} "
                f"rank{'s' if num_ranks > 1 else ''}, and the split {TRAIN} has {clips:,}; build a larger dataset, or choose other --stages"
            )
        notes.append(f"{stage}: {table}.batch_size is {size:,}, not {wanted:,}: the split {TRAIN} has {clips:,} clips")
        recipe = recipe.model_copy(update={table: settings.model_copy(update={"batch_size": size})})
    return LimitedRecipe(recipe, (*notes, *_remarks(recipe, stages, datasets)))


def _is_batch(num_clips: int, num_ranks: int, frames_per_clip: int | None) -> bool:
    """Whether a batch of ``num_clips`` can be divided equally among the ranks.

    ``frames_per_clip`` is set for the prior stage, where a rank's pictures also have to form whole groups; None: another stage.
    """
    if num_clips % num_ranks:
        return False
    if frames_per_clip is None:
        return True
    num_pictures = num_clips // num_ranks * frames_per_clip
    return num_pictures <= GROUP_SIZE or num_pictures % GROUP_SIZE == 0


def _remarks(recipe: FitRecipe, stages: Sequence[str], datasets: Sequence[FitDataset]) -> list[str]:
    """Notes about what the datasets lack and the fit can do without: validation clips, long enough clips."""
    if not datasets:
        return []
    remarks = []
    measured = [stage for stage in stages if stage in ("align", "invert", "video")]
    if measured and not num_clips(datasets, VALIDATION):
        remarks.append(
            f"{', '.join(measured)}: the datasets have no split {VALIDATION}: nothing is measured, and the last model is used as the best"
        )
    window = recipe.reader.window_seconds
    for dataset in datasets:
        clip_settings = dataset.manifest.recipe.get("clips")
        longest = clip_settings.get("length_seconds") if isinstance(clip_settings, dict) else None
        if measured and isinstance(longest, (int, float)) and longest < window:
            remarks.append(
                f"reader.window_seconds {window:g}: the clips of {dataset.manifest.name} have at most {longest:g} s; silence follows them"
            )
    return remarks


def check_renditions(sides_px: dict[str, int | None], datasets: Sequence[FitDataset], *, upscale: bool) -> None:
    """Raises DataError if a stage's pictures are larger than every rendition; names the setting of each such stage."""
    problems = []
    for stage, side_px in sides_px.items():
        for dataset in datasets if side_px is not None else ():
            try:
                chosen_rendition(dataset.manifest, side_px or 0, upscale=upscale)
            except DataError as error:
                field = "reader.picture_px" if stage == "align" else "the generator's resolution"
                problems.append(f"{stage} ({field} {side_px}): {error}")
    if problems:
        raise DataError("\n  ".join(problems))


def obtain(recipe: FitRecipe, stages: Sequence[str]) -> None:
    """Fetches the weights of encoders, judges and generator that are not on this machine. Raises EncoderError if that fails."""
    guided = [stage for stage in stages if stage in ("invert", "video")]
    partner = recipe.align.partner
    if (guided or "align" in stages) and not partner.is_packaged:
        weights = partner.picture_weights or OPENAI
        find_weights(partner.picture_model, weights, partner.picture_sha256, field="align.partner.picture_weights")
    if guided:
        guide = recipe.invert.guide
        if guide.sound_weights is not None:
            resolve_weights(guide.sound_weights, guide.sound_sha256, field="invert.guide.sound_weights")
        if recipe.invert.generator is not None and is_url(recipe.invert.generator):
            resolve_weights(recipe.invert.generator, recipe.invert.generator_sha256, field="invert.generator")
    judges: dict[str, EncoderPairSettings] = {stage: getattr(recipe, stage).judge for stage in guided}
    for stage, judge in judges.items():
        find_files(judge, field=f"{stage}.judge")


def weights_to_fetch(recipe: FitRecipe, stages: Sequence[str]) -> list[str]:
    """A line for each file of weights that is not on this machine yet, and has to be fetched before the first stage."""
    partner, missing = recipe.align.partner, []
    if {"align", "invert", "video"} & set(stages) and not partner.is_packaged:
        weights = partner.picture_weights or OPENAI
        if is_tag(partner.picture_model, weights) and not is_tag_cached(partner.picture_model, weights):
            missing.append(
                f"align.partner.picture_weights: {weights} of {partner.picture_model} is not in open_clip's cache: "
                "it is fetched before the first stage, or the fit is refused"
            )
    return missing


def is_tag_cached(model: str, tag: str) -> bool:
    """Whether open_clip's cache holds the weights of a tag. Sends no request."""
    tag_config: dict[str, str] = open_clip.get_pretrained_cfg(model, tag)
    repository, _, name = tag_config.get("hf_hub", "").rpartition("/")
    names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if repository and any(isinstance(try_to_load_from_cache(repository, file_name), str) for file_name in names):
        return True
    return "url" in tag_config and (Path("~/.cache/clip").expanduser() / Path(tag_config["url"]).name).is_file()


def check_classes(recipe: FitRecipe, stages: Sequence[str], datasets: Sequence[FitDataset]) -> None:
    """Raises EncoderError for a class of the datasets that the packaged encoder does not know; it knows only few classes."""
    import torch  # noqa: PLC0415 (nothing else here computes)

    if recipe.align.partner.is_packaged and {"align", "invert", "video"} & set(stages):
        device = torch.device("cpu")
        partner = load_partner(recipe.align.partner, device, "fp32", "align.partner")
        classes = sorted({label for dataset in datasets for label in dataset.manifest.clips.classes})
        TextEmbeddings(partner, device).classes(classes, recipe.align.prompts)


def check_disk(folder: Path, num_bytes: int) -> None:
    """Raises OutputError where the disk of a run's folder has fewer free bytes than ``num_bytes``, the size of its checkpoints."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < num_bytes:
        raise OutputError(
            f"run.out {folder}: its checkpoints take {math.ceil(num_bytes / 1e6):,} MB, and the disk has {free_bytes // 10**6:,} MB free; "
            "make room, or name a folder on another disk with --out"
        )
