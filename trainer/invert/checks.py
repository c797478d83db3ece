"""Checks of a recipe before the stages invert and video begin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encoders.pair import check_settings as check_pair
from pipeline.encoders.weights import is_url
from pipeline.errors import EncoderError, RecipeError
from trainer.align.frozen_encoders import check_partner
from trainer.invert.settings import GuideSettings
from trainer.invert.shared import PRIOR, generator_file

if TYPE_CHECKING:
    from trainer.invert.settings import InvertRecipe


def check_guide(settings: GuideSettings, recipe: InvertRecipe, field: str) -> None:
    """Raises UserError for settings that can be refused before any weights are loaded."""
    check_partner(recipe.align.partner, "align.partner")
    weights = settings.sound_weights
    if weights is not None and not is_url(weights) and not Path(weights).expanduser().is_file():
        raise EncoderError(f"{field}.sound_weights: {weights} is no file")
    if settings.sound_kind == "small" and not recipe.align.partner.is_packaged:
        raise RecipeError(
            f"{field}.sound_kind: small belongs to the packaged picture encoder, and align.partner is "
            f"{recipe.align.partner.picture_model}; take align, soundclip or wav2clip"
        )


def check_codes(recipe: InvertRecipe, field: str) -> None:
    """Raises RecipeError if the generator's file will have no encoder of frames."""
    generator, is_trained_here = recipe.invert.generator, recipe.stages is None or PRIOR in recipe.stages
    if generator is None and is_trained_here:
        if recipe.prior.reconstruction is None:
            raise RecipeError(
                f"{field}: the stage prior writes an encoder of frames only if it learns by reconstruction; add the table "
                f"[prior.reconstruction], or leave out [{field}]"
            )
        return
    if generator is None or not is_url(generator):
        file = generator_file(recipe, recipe.folder)
        if file.encoder_config is None:
            raise RecipeError(
                f"{field}: {file.origin} holds no encoder of frames; take the generator of a prior that learned by reconstruction, or "
                f"leave out [{field}]"
            )


def check_invert(recipe: InvertRecipe) -> None:
    """Raises UserError for settings that can be refused before any work."""
    settings = recipe.invert
    check_guide(settings.guide, recipe, "invert.guide")
    check_pair(settings.judge, "invert.judge")
    if recipe.reader.num_frames < 2:
        raise RecipeError("reader.num_frames: a clip of one frame is no video; take 2 or more, the paper's are 5")
    generator = settings.generator
    if settings.codes is not None:
        check_codes(recipe, "invert.codes")
    if generator is None:
        return
    if is_url(generator) and settings.generator_sha256 is None:
        raise RecipeError("invert.generator is a URL: give invert.generator_sha256, so that a changed file is refused")
    if not is_url(generator) and not Path(generator).expanduser().is_file():
        raise EncoderError(f"invert.generator: {generator} is no file")
