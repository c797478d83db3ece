"""What the student and invert stages are told, and where their generator and clips come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from pipeline.encoders.pair import EncoderPairSettings, Sha256
from pipeline.encoders.weights import is_url
from pipeline.settings import Settings
from trainer.align.augment import AugmentSettings
from trainer.align.settings import AlignRecipe
from trainer.prior.settings import PriorSettings


class GuideSettings(Settings):
    """Which sound encoder guides, and how generated pictures are looked at. The picture encoder is ``align.partner``."""

    sound_kind: Literal["align", "soundclip", "wav2clip", "small"] = "align"
    """The sound encoder F_a: one of the align stage, SoundCLIP's or Wav2CLIP's as published, or the packaged one."""
    sound_weights: str | None = None
    """Its weights: a path, or a URL with its SHA-256. None: what this run's align stage left; for small, those in the package."""
    sound_sha256: Sha256 | None = None
    """SHA-256 of that file. None: not checked; a URL needs one."""
    num_cutouts: int = Field(32, ge=1, le=1024)
    """Random squares of each generated picture that the picture encoder sees. The paper's authors take 32."""
    smallest_cutout: float = Field(0.5, gt=0, le=1)
    """Side of the smallest square, as a share of the picture's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sound_kind in ("soundclip", "wav2clip") and self.sound_weights is None:
            raise ValueError(f"sound_kind {self.sound_kind} needs sound_weights: a path, or a URL with its SHA-256")
        if self.sound_weights is not None and is_url(self.sound_weights) and self.sound_sha256 is None:
            raise ValueError("sound_weights is a URL: give sound_sha256, so that the weights cannot change unseen")
        return self


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
    judge: EncoderPairSettings = EncoderPairSettings()
    """The encoders by which a validation chooses the best model: best ones that are not the guide's, which can be deceived."""


class WalkSettings(Protocol):
    """What of the walk's settings the shape of the model depends on."""

    @property
    def hidden_width(self) -> int: ...

    @property
    def noise_width(self) -> int: ...

    @property
    def blocks(self) -> Literal["three", "one"]: ...


class InvertRecipe(AlignRecipe, Protocol):
    """What the stages that turn sounds into styles ask of a recipe."""

    @property
    def student(self) -> StudentSettings: ...

    @property
    def invert(self) -> InvertSettings: ...

    @property
    def video(self) -> WalkSettings: ...

    @property
    def prior(self) -> PriorSettings: ...

    @property
    def folder(self) -> Path: ...

    @property
    def stages(self) -> tuple[str, ...] | None: ...
