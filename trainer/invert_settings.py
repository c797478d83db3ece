"""What the student and invert stages are told, and where their generator and clips come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.encoders.pair import Sha256
from pipeline.encoders.weights import cached_path, is_url, resolve_weights
from pipeline.errors import CheckpointError, EncoderError, RecipeError
from pipeline.settings import Settings
from trainer.augment import AugmentSettings
from trainer.data import Reader
from trainer.guide import GuideSettings, check_guide
from trainer.learner import BEST, LAST, rank_reader
from trainer.model.generator_file import GeneratorFile
from trainer.model.load import read_generator_file
from trainer.model.sound_video import SoundVideoConfig
from trainer.prior_settings import generator_config
from trainer.run import Run

if TYPE_CHECKING:
    from trainer.config import FitRecipe

PRIOR = "prior"


class StudentSettings(Settings):
    """How a small network learns to see as a picture encoder without gradients does. Left out where the encoder has gradients."""

    backbone: str = "resnet10t"
    """Name of the timm network."""
    side_px: int = Field(64, ge=16, le=1024)
    """Side of what the network sees, in pixels."""
    num_samples: int = Field(20_000, ge=1)
    """Clips until it is done, counting a clip each time it is seen."""
    validate_every_samples: int = Field(2000, ge=1)
    """Clips from one validation to the next."""
    save_every_samples: int = Field(2000, ge=1)
    """Clips from one checkpoint to the next."""
    batch_size: int = Field(32, ge=1)
    """Clips of one step, on all ranks together; each gives all its frames."""
    generated_share: float = Field(0.5, ge=0, lt=1)
    """Share of a step's pictures that the generator draws; the others are frames."""
    style_spread: float = Field(0.5, ge=0)
    """Noise on the styles of generated pictures, in standard deviations of the generator's own: inverted sounds leave W too."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, after the warm-up; it falls along a cosine to 0."""
    refresh_pictures: int = Field(16, ge=0)
    """Pictures, generated and real ones, on which it goes on learning in each step of the stages invert and video, for each
    micro-batch. 0: it stays as it is, and what generates may come to deceive it."""
    refresh_learning_rate: float = Field(3e-4, gt=0)
    """Of AdamW then."""


class InvertSettings(Settings):
    """How the sound inversion encoder E_a is fitted: ŵ_a = E_a(x_a) + w."""

    generator: str | None = None
    """The generator: a path or URL as ``trainer.model.load`` reads it. None: what this run's prior stage left."""
    generator_sha256: Sha256 | None = None
    """SHA-256 of that file. None: not checked; a URL needs one."""
    backbone: str = "resnet18"
    """Name of the timm network that hears. The paper's is resnet18."""
    start_from_align: bool = True
    """Whether the encoder begins with what the align stage's network has learned to hear, where that has the same backbone."""
    augment: AugmentSettings = AugmentSettings(min_crop=1.0)
    """What is done to the sounds that are heard, here and in the stage ``video``. What is asked for stays that of the sound itself."""
    truncation: float = Field(0.7, gt=0, le=1)
    """psi of w, the style that the inversion is added to. The paper's authors take 0.7."""
    guide: GuideSettings = GuideSettings()
    """The shared space that says whether a picture fits a sound."""
    sound_weight: float = Field(1.0, ge=0)
    """Weight of L_CLIP(a↔v), between the generated picture and its sound. 0: without (one of the paper's ablations)."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of L_CLIP(a↔t), between the generated picture and caption or class."""
    style_weight: float = Field(0.1, ge=0)
    """λ_b: weight of the mean square of ŵ_a - w̄, which keeps styles where the generator draws well."""
    num_samples: int = Field(200_000, ge=1)
    """Clips until the stage is done, counting a clip each time it is seen."""
    validate_every_samples: int = Field(10_000, ge=1)
    """Clips from one validation to the next."""
    save_every_samples: int = Field(10_000, ge=1)
    """Clips from one checkpoint to the next."""
    validation_samples: int = Field(500, ge=1)
    """Most clips of the validation split that are used: the first ones in its order."""
    batch_size: int = Field(32, ge=1)
    """Clips of one step, on all ranks together."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Clips of one rank that activations are held of at once. None: all of them."""
    learning_rate: float = Field(5e-4, gt=0)
    """Of AdamW, after the warm-up; it falls along a cosine to 0."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Longer gradients are shortened to this."""


def generator_file(recipe: FitRecipe, folder: Path) -> GeneratorFile:
    """The generator that the run stands on. Raises CheckpointError where there is none, GeneratorError or EncoderError."""
    named = recipe.invert.generator
    if named is not None:
        return read_generator_file(resolve_weights(named, recipe.invert.generator_sha256, field="invert.generator"))
    for name in (BEST, LAST):
        if (folder / PRIOR / name).is_file():
            return read_generator_file(folder / PRIOR / name)
    raise CheckpointError(
        f"{folder / PRIOR / BEST} is not there: run the stage prior first, or name a generator with invert.generator"
    )


def generator_px(recipe: FitRecipe) -> int | None:
    """Side of the generator's pictures, which is that of the frames it is fitted to. None: its URL was not fetched yet.

    Raises CheckpointError, RecipeError, GeneratorError or EncoderError.
    """
    named, sha256 = recipe.invert.generator, recipe.invert.generator_sha256
    if named is not None and is_url(named) and (sha256 is None or not cached_path(named, sha256).is_file()):
        return None
    is_trained_here = named is None and (recipe.stages is None or PRIOR in recipe.stages)
    if is_trained_here and not any((recipe.folder / PRIOR / name).is_file() for name in (BEST, LAST)):
        return generator_config(recipe.prior).resolution
    return generator_file(recipe, recipe.folder).config.resolution


def model_config(recipe: FitRecipe) -> SoundVideoConfig:
    """Of the model that the stages invert and video train."""
    return SoundVideoConfig(
        backbone=recipe.invert.backbone,
        num_frames=recipe.reader.num_frames,
        window_seconds=recipe.reader.window_seconds,
        hidden_width=recipe.video.hidden_width,
        noise_width=recipe.video.noise_width,
        blocks=recipe.video.blocks,
        truncation=recipe.invert.truncation,
    )


def clip_reader(
    recipe: FitRecipe,
    run: Run,
    split: str,
    batch_size: int,
    side_px: int,
    *,
    sound: bool = True,
    mel: bool = False,
    whole: bool = False,
) -> Reader:
    """This rank's clips of a split, with frames of the generator's size; ``whole``: all ranks' clips. Raises DataError.

    Mels are left out unless they are wanted: in training the augmented sounds have their own.
    """
    wanted = {"picture_px": side_px, "batch_size": batch_size, "last_batch": None, "sound": sound, "mel": mel}
    return rank_reader(run.mixes(split), recipe.reader.model_copy(update=wanted), run, split, whole=whole)


def check_student(recipe: FitRecipe) -> None:
    """Raises UserError for what shows before any work."""
    check_invert(recipe)


def check_invert(recipe: FitRecipe) -> None:
    """Raises UserError for what shows before any work."""
    settings = recipe.invert
    check_guide(settings.guide, recipe, "invert.guide")
    if recipe.reader.num_frames < 2:
        raise RecipeError("reader.num_frames: a clip of one frame is no video; take 2 or more, the paper's are 5")
    named = settings.generator
    if named is None:
        return
    if is_url(named) and settings.generator_sha256 is None:
        raise RecipeError("invert.generator is a URL: give invert.generator_sha256, so that it cannot change unseen")
    if not is_url(named) and not Path(named).expanduser().is_file():
        raise EncoderError(f"invert.generator: {named} is no file")
