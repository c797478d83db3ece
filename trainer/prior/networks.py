"""The generator of the prior stage as the recipe describes it, and the checks of the stage's settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encoders.weights import resolve_weights
from pipeline.errors import RecipeError
from trainer.model.discriminator import BASE
from trainer.model.generator import GeneratorConfig
from trainer.model.generator_file import GeneratorFile
from trainer.model.load import read_generator_file
from trainer.prior.fidelity import check_fidelity
from trainer.prior.settings import GROUP_SIZE, PriorSettings

if TYPE_CHECKING:
    from trainer.prior.settings import PriorRecipe

DEFAULT_GENERATOR = GeneratorConfig(
    kind="stylegan2", resolution=256, mapping_layers=2, channel_base=16384, num_half=4, conv_clamp=256
)
"""StyleGAN2-ADA's own settings for 256 pixels."""


def clips_per_group(num_frames: int) -> int:
    """The smallest number of clips whose pictures, ``num_frames`` each, fill whole groups of ``GROUP_SIZE``."""
    return GROUP_SIZE // math.gcd(GROUP_SIZE, num_frames)


PAINTED = "painted"
"""The value of ``prior.init`` for the packaged generator of painted scenes."""
PAINTED_FILE = Path(__file__).parent / "painted" / "generator.safetensors"


def read_init(settings: PriorSettings) -> GeneratorFile | None:
    """The file that training starts from. None: ``init`` is not set. Raises GeneratorError or EncoderError."""
    if settings.init is None:
        return None
    if settings.init == PAINTED:
        return read_generator_file(PAINTED_FILE)
    return read_generator_file(resolve_weights(settings.init, settings.init_sha256, field="prior.init"))


def generator_config(settings: PriorSettings) -> GeneratorConfig:
    """The config of the generator that is trained. Raises GeneratorError, EncoderError or RecipeError if ``init`` cannot be used."""
    wanted = settings.generator
    if settings.reconstruction is not None and (wanted is not None or settings.init is None):
        wanted = (wanted or DEFAULT_GENERATOR).with_codes()
    init_file = read_init(settings)
    if init_file is None:
        config = wanted or DEFAULT_GENERATOR
    else:
        config = init_file.config
        if wanted is not None and not _same_network(wanted, config):
            raise RecipeError(
                f"prior.generator: is not the network that prior.init ({settings.init}) holds: {config.model_dump_json()}; "
                f"leave it out"
            )
        if settings.frozen_blocks and init_file.discriminator_config is None:
            raise RecipeError(
                f"prior.frozen_blocks: {settings.init} holds no discriminator, and a random one has to learn; leave it out"
            )
    if settings.reconstruction is not None and config.styles != "w_plus":
        raise RecipeError(
            f"prior.reconstruction: {settings.init} maps to one style for all layers (W), and codes have one for each; leave "
            f"prior.init out"
        )
    if config.c_dim or config.num_colours != 3:
        raise RecipeError(
            f"prior: a generator with {config.c_dim} classes and {config.num_colours} colours cannot be trained here; "
            f"take one without classes and with 3 colours"
        )
    if config.resolution < 16:
        raise RecipeError(f"prior.generator.resolution: {config.resolution} pixels are too few; frames have 16 or more")
    num_blocks = int(math.log2(config.resolution // BASE))
    if settings.frozen_blocks > num_blocks:
        raise RecipeError(
            f"prior.frozen_blocks: {settings.frozen_blocks}; a discriminator of {config.resolution} pixels has {num_blocks}"
        )
    return config


def _same_network(one: GeneratorConfig, other: GeneratorConfig) -> bool:
    """Whether the weights of one config fit the other. Settings of precision and of running averages may differ."""
    ignored = {"num_half", "conv_clamp", "w_avg_beta", "magnitude_beta"}
    return one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def check_prior(recipe: PriorRecipe) -> None:
    """Raises UserError for settings that can be refused before any work."""
    settings = recipe.prior
    generator_config(settings)
    check_fidelity(settings.fidelity)
    if settings.pictures is not None and not Path(settings.pictures).expanduser().is_dir():
        raise RecipeError(f"prior.pictures: {settings.pictures} is not a folder")
