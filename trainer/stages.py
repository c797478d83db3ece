"""The stages of a fit. A new stage is its own files, a field in ``FitRecipe`` for its settings, and an entry in ``STAGES``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import RecipeError
from trainer.align.stage import NAME as ALIGN
from trainer.align.stage import check_align, fit_align
from trainer.engine.loop import Ended
from trainer.engine.run import Run
from trainer.engine.stats import Display
from trainer.invert.checks import check_invert
from trainer.invert.shared import generator_px
from trainer.invert.stage import NAME as INVERT
from trainer.invert.stage import fit_invert
from trainer.prior.networks import check_prior, generator_config
from trainer.prior.stage import NAME as PRIOR
from trainer.prior.stage import fit_prior
from trainer.recipe import FitRecipe
from trainer.video.stage import NAME as VIDEO
from trainer.video.stage import check_video, fit_video


@dataclass(frozen=True, slots=True)
class StageEntry:
    """How a stage is checked before any work, and how it runs."""

    check: Callable[[FitRecipe], None]
    """Raises UserError."""
    fit: Callable[[FitRecipe, Run, Display], Ended]
    picture_px: Callable[[FitRecipe], int | None]
    """Side of the frames that it reads; None: the generator is a URL that is not fetched yet. Raises UserError."""
    reads_shards: Callable[[FitRecipe], bool] = lambda _: True
    """Whether it reads datasets with this recipe."""


STAGES = {
    PRIOR: StageEntry(
        check_prior,
        fit_prior,
        lambda recipe: generator_config(recipe.prior).resolution,
        lambda recipe: recipe.prior.pictures is None,
    ),
    ALIGN: StageEntry(check_align, fit_align, lambda recipe: recipe.reader.picture_px),
    INVERT: StageEntry(check_invert, fit_invert, generator_px),
    VIDEO: StageEntry(check_video, fit_video, generator_px),
}
"""In the order in which they run."""


def chosen_stages(names: Sequence[str] | None) -> list[str]:
    """The named stages in the order in which they run. None: all stages. Raises RecipeError for an unknown name or an empty list."""
    if names is None:
        return list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        raise RecipeError(f"stages: there is no stage {', '.join(map(repr, unknown))}; there are: {', '.join(STAGES)}")
    if not names:
        raise RecipeError(f"stages: none is named; there are: {', '.join(STAGES)}")
    return [name for name in STAGES if name in names]
