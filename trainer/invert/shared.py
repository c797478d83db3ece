"""What the stages invert and video share: model, guide, the encoder's input in training, the reader, and the files they write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.weights import cached_path, is_url, resolve_weights
from pipeline.errors import CheckpointError
from pipeline.settings import Settings
from trainer.align.augment import augmented_mels
from trainer.engine.learner import BEST, LAST, Learner, rank_reader
from trainer.engine.ranks import average_over_ranks
from trainer.engine.run import Run
from trainer.invert.guide import Guide
from trainer.invert.inversion_loss import CodeMean
from trainer.model.generator import GeneratorConfig
from trainer.model.generator_file import GeneratorFile
from trainer.model.load import read_generator_file
from trainer.model.sound_video import SoundVideoConfig, SoundVideoModel
from trainer.model.sound_video_file import SoundVideoHeader, save_model
from trainer.prior.networks import generator_config
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader

if TYPE_CHECKING:
    from trainer.invert.settings import CodeSettings, InvertRecipe

PRIOR = "prior"
TOP_DB = {"full_scale": 100.0, "maximum": 80.0}
"""Range of the encoder's mels, in dB. A range below a fixed level must hold quiet recordings, too."""


class SoundVideoStage(Learner):
    """Base class of the stages that train a sound-to-video model, or a part of it, with the guide ``invert.guide``."""

    def __init__(
        self, recipe: InvertRecipe, run: Run, model: SoundVideoModel, generator_config: GeneratorConfig
    ) -> None:
        """Loads the guide's encoders. Raises EncoderError or CheckpointError if one is missing."""
        super().__init__(run)
        self.recipe, self.generator_config = recipe, generator_config
        self.model = model.to(self.device).eval()
        if run.settings.precision == "bf16":
            model.generator.use_half(torch.bfloat16)
        self.guide = Guide(recipe.invert.guide, recipe, run, "invert.guide")
        self.code_mean = CodeMean(self.model, recipe.invert.style_mean_half_life)

    def config(self) -> Settings:
        return self.model.config

    def generates(self) -> SoundVideoModel:
        """The model that is exported."""
        return self.model

    def export(self) -> None:
        self.save_model(LAST)
        if self.best is None:
            self.save_model(BEST)

    def save_model(self, name: str) -> None:
        """Writes the model that ``generates`` returns to the file ``name`` in the stage's folder."""
        header = SoundVideoHeader(
            stage=cast("Literal['invert', 'video']", self.name),
            model=self.model.config,
            generator=self.generator_config,
            encoder_ids=self.guide.encoder_ids,
            classes=tuple(self.run.classes),
            samples_seen=self.samples_seen,
        )
        save_model(self.folder / name, header, self.generates())

    def keep_if_best(self, value: float | None) -> None:
        """Writes the model as the best if ``value`` is larger than all before. None: nothing was measured."""
        if value is not None and (self.best is None or value > self.best):
            self.best = value
            if self.run.fabric.is_global_zero:
                self.save_model(BEST)

    def identity(self) -> tuple[str, int, int]:
        """Identity of the current step. With a sample's dataset and key it decides the sample's random choices."""
        return self.name, self.run.settings.seed, self.num_steps

    def heard_mels(self, batch: Batch) -> Tensor:
        """(B, M, T): the augmented mels of a batch, the encoder's input in training."""
        if len(batch):
            settings = self.recipe.invert.augment
            return augmented_mels(batch, self.model.front_end, settings, self.device, *self.identity())
        mel = self.model.config.mel
        return torch.zeros(0, mel.num_mels, mel.num_frames(batch.sounds_BN.shape[1]), device=self.device)

    def share_statistics(self) -> None:
        """Averages the running statistics of the trained networks over ranks. Every rank must call it."""
        average_over_ranks([one for one in self.model.inversion.buffers() if one.is_floating_point()])


def draws_pictures(codes: CodeSettings | None, samples_seen: int, num_samples: int) -> bool:
    """Whether a step of a stage draws pictures. False: it learns from codes alone."""
    return codes is None or samples_seen >= codes.alone_share * num_samples


def generator_file(recipe: InvertRecipe, folder: Path) -> GeneratorFile:
    """The run's generator: ``invert.generator``, else the prior stage's. Raises CheckpointError, GeneratorError or EncoderError."""
    location = recipe.invert.generator
    if location is not None:
        return read_generator_file(resolve_weights(location, recipe.invert.generator_sha256, field="invert.generator"))
    for name in (BEST, LAST):
        if (folder / PRIOR / name).is_file():
            return read_generator_file(folder / PRIOR / name)
    raise CheckpointError(
        f"{folder / PRIOR / BEST} is not there: run the stage prior first, or name a generator with invert.generator"
    )


def generator_px(recipe: InvertRecipe) -> int | None:
    """Side of the generator's pictures, in pixels; frames are read at this size. None: the generator is a URL that is not fetched yet.

    Raises CheckpointError, RecipeError, GeneratorError or EncoderError.
    """
    location, sha256 = recipe.invert.generator, recipe.invert.generator_sha256
    if location is not None and is_url(location) and (sha256 is None or not cached_path(location, sha256).is_file()):
        return None
    is_trained_here = location is None and (recipe.stages is None or PRIOR in recipe.stages)
    if is_trained_here and not any((recipe.folder / PRIOR / name).is_file() for name in (BEST, LAST)):
        return generator_config(recipe.prior).resolution
    return generator_file(recipe, recipe.folder).config.resolution


def model_config(recipe: InvertRecipe) -> SoundVideoConfig:
    """The config of the model that the stages invert and video train."""
    motion = recipe.video.motion
    return SoundVideoConfig(
        motion_fps=0.0 if motion is None else motion.fps,
        motion_width=64 if motion is None else motion.width,
        motion_directions=16 if motion is None else motion.directions,
        backbone=recipe.invert.backbone,
        num_frames=recipe.reader.num_frames,
        window_seconds=recipe.reader.window_seconds,
        hidden_width=recipe.video.hidden_width,
        noise_width=recipe.video.noise_width,
        blocks=recipe.video.blocks,
        pull=recipe.video.pull,
        truncation=recipe.invert.truncation,
        latent_width=recipe.invert.latent_width,
        style_mean=recipe.invert.style_mean,
        mel=MelConfig(reference=recipe.invert.mel_reference, top_db=TOP_DB[recipe.invert.mel_reference]),
    )


def clip_reader(
    recipe: InvertRecipe,
    run: Run,
    split: str,
    batch_size: int,
    side_px: int,
    *,
    pictures: bool = True,
    bursts: bool = False,
    whole: bool = False,
) -> Reader:
    """This rank's reader of the clips of a split, with frames of ``side_px`` (none without ``pictures``). Raises DataError.

    ``bursts``: with the neighbouring frames that the fast path learns from. ``whole``: it reads the clips of all ranks. Mels are not
    computed: the model has a front end of its own.
    """
    wanted: dict[str, object] = {
        "picture_px": side_px,
        "batch_size": batch_size,
        "last_batch": None,
        "pictures": pictures,
        "mel": False,
    }
    motion = recipe.video.motion
    if bursts and motion is not None:
        wanted |= {"burst_frames": motion.frames, "burst_fps": motion.fps}
    return rank_reader(run.mixes(split), recipe.reader.model_copy(update=wanted), run, split, whole=whole)
