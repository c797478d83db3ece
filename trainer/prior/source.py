"""The real pictures of the prior stage: frames of datasets, or the pictures of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DataError
from trainer.engine.ranks import num_ranks
from trainer.engine.run import Run
from trainer.prior.networks import generator_config
from trainer.prior.pictures import PictureFolder
from trainer.prior.settings import GROUP_SIZE
from trainer.streaming.reader import Reader

if TYPE_CHECKING:
    from trainer.prior.settings import PriorRecipe


def make_source(recipe: PriorRecipe, run: Run, *, shuffle: bool, split: str = "train") -> Reader | PictureFolder:
    """This rank's batches of real pictures, with the generator's resolution. A folder of pictures has no splits. Raises DataError."""
    settings = recipe.prior
    side_px = generator_config(settings).resolution
    rank, ranks = run.fabric.global_rank, num_ranks()
    frames = 1 if settings.pictures is not None else settings.frames_per_clip
    pictures_per_rank = settings.batch_size * frames / ranks
    if pictures_per_rank > GROUP_SIZE and pictures_per_rank % GROUP_SIZE:
        raise DataError(
            f"prior.batch_size {settings.batch_size}: every one of {ranks} ranks needs a multiple of {GROUP_SIZE} pictures"
        )
    if settings.pictures is not None:
        return PictureFolder(
            Path(settings.pictures).expanduser(),
            side_px=side_px,
            batch_size=settings.batch_size,
            seed=run.settings.seed,
            rank=rank,
            num_ranks=ranks,
            shuffle=shuffle,
            upscale=recipe.reader.upscale,
        )
    wanted = {
        "picture_px": side_px,
        "num_frames": settings.frames_per_clip,
        "batch_size": settings.batch_size,
        "last_batch": None,
        "sound": False,
        "mel": False,
    }
    return Reader(
        run.mixes(split),
        recipe.reader.model_copy(update=wanted),
        split=split,
        seed=run.settings.seed,
        rank=rank,
        num_ranks=ranks,
        shuffle=shuffle,
    )
