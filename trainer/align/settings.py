"""Settings of the align stage."""

from __future__ import annotations

from typing import Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from pipeline.encoders.norms import Norm
from pipeline.settings import Settings
from trainer.align.augment import AugmentSettings
from trainer.align.frozen_encoders import PartnerSettings
from trainer.streaming.reader import ReaderSettings


class AlignSettings(Settings):
    """How the sound encoder is fitted."""

    partner: PartnerSettings = PartnerSettings()
    """The frozen picture and text encoder."""
    backbone: str = "resnet18"
    """Name of the timm network after the first convolution. The paper's is resnet18."""
    norm: Norm = "group"
    """Its normalisation. group: GroupNorm, by which every sound is alone. batch: BatchNorm, as in the published networks; a step then
    depends on ``micro_batch_size``, since each micro-batch is normalised by itself."""
    num_samples: int = Field(1_000_000, ge=1)
    """Number of samples to learn from; a sample counts each time it is read."""
    validate_every_samples: int = Field(20_000, ge=1)
    """Samples from one validation to the next."""
    save_every_samples: int = Field(20_000, ge=1)
    """Samples from one checkpoint to the next."""
    validation_samples: int = Field(2000, ge=1)
    """Largest number of samples of the validation split that are used, the first in its order."""
    best_by: Literal[
        "auc", "picture_recall_at_1", "picture_recall_at_5", "picture_recall_at_10", "zero_shot_accuracy"
    ] = "auc"
    """The validation measure that decides which network is kept as the best."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Samples of one rank whose activations are in memory at once. The losses still see the whole batch. None: all samples."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of AdamW after the warm-up."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of ``num_samples`` in which the learning rate rises to its full value. After it, the rate falls along a cosine to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW for weights; biases, norms and the temperature have none."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Longer gradients are scaled down to this norm. None: no limit."""
    picture_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and picture."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and text."""
    augmented_weight: float = Field(1.0, ge=0)
    """Weight of the loss between sound and augmented sound."""
    picture_positives: Literal["own", "class"] = "own"
    """Positives between sound and picture. own: only the sound's own picture. class: every picture in the batch that shares a label
    with the sound, for datasets with few classes."""
    use_captions: bool = True
    """Whether the caption of a sample is its text. False, or no caption: a prompt with its class."""
    prompts: tuple[str, ...] = ("the sound of {}", "a video of {}", "{}")
    """Sentences with {} for the class. Training draws one for each sample; validation uses the mean embedding of all."""
    augment: AugmentSettings = AugmentSettings()
    """The augmented view of a sound."""

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or any(prompt.count("{}") != 1 or prompt.count("{") != 1 for prompt in prompts):
            raise ValueError("each prompt needs one {} for the class, and there must be one prompt at least")
        return prompts

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not (self.picture_weight or self.text_weight or self.augmented_weight):
            raise ValueError("picture_weight, text_weight and augmented_weight are all 0: nothing would be learned")
        return self


class AlignRecipe(Protocol):
    """The parts of a recipe that the stage uses."""

    @property
    def reader(self) -> ReaderSettings: ...

    @property
    def align(self) -> AlignSettings: ...
