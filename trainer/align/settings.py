"""What the align stage is told, and what of it can be refused before any work."""

from __future__ import annotations

from typing import Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from pipeline.settings import Settings
from trainer.align.augment import AugmentSettings
from trainer.align.frozen_encoders import PartnerSettings
from trainer.streaming.reader import ReaderSettings


class AlignSettings(Settings):
    """How the sound encoder is fitted."""

    partner: PartnerSettings = PartnerSettings()
    """The frozen picture and text encoder."""
    backbone: str = "resnet18"
    """Name of the timm network behind the first convolution. The paper's is resnet18."""
    num_samples: int = Field(1_000_000, ge=1)
    """Samples until the fit is done, counting a sample each time it is seen."""
    validate_every_samples: int = Field(20_000, ge=1)
    """Samples from one validation to the next."""
    save_every_samples: int = Field(20_000, ge=1)
    """Samples from one checkpoint to the next."""
    validation_samples: int = Field(2000, ge=1)
    """Most samples of the validation split that are used: the first ones in its order."""
    best_by: Literal[
        "auc", "picture_recall_at_1", "picture_recall_at_5", "picture_recall_at_10", "zero_shot_accuracy"
    ] = "auc"
    """The measure of the validation that decides which network is kept as the best."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Samples of one rank that the network holds activations of at once; a batch of any size is one batch to the losses.
    None: all of them."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, after the warm-up."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of ``num_samples`` in which the learning rate rises to its value; then it falls along a cosine to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW, on weights; biases, norms and the temperature have none."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Longer gradients are shortened to this. None: never."""
    picture_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and picture."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and text."""
    augmented_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and augmented sound."""
    picture_positives: Literal["own", "class"] = "own"
    """own: only a sound's own picture fits it. class: every picture in the batch that shares a label with it fits as well,
    for datasets of few classes."""
    use_captions: bool = True
    """Whether a sample's caption is its text. False, or no caption: one of the prompts with its class."""
    prompts: tuple[str, ...] = ("the sound of {}", "a video of {}", "{}")
    """Sentences with {} for the class. Training draws one for each sample; classes are recognised by the mean of all."""
    augment: AugmentSettings = AugmentSettings()
    """The augmented view."""

    @field_validator("prompts")
    @classmethod
    def _with_a_place(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or any(prompt.count("{}") != 1 or prompt.count("{") != 1 for prompt in prompts):
            raise ValueError("each prompt needs one {} for the class, and there must be one prompt at least")
        return prompts

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not (self.picture_weight or self.text_weight or self.augmented_weight):
            raise ValueError("picture_weight, text_weight and augmented_weight are all 0: nothing would be learned")
        return self


class AlignRecipe(Protocol):
    """What the stage asks of a recipe."""

    @property
    def reader(self) -> ReaderSettings: ...

    @property
    def align(self) -> AlignSettings: ...
