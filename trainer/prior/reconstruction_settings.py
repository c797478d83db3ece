"""Settings of a prior that learns by reconstruction."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipeline.settings import Settings
from trainer.model.frame_encoder import FrameEncoderConfig


class ReconstructionSettings(Settings):
    """How generator, encoder of frames and mapping learn together."""

    encoder: FrameEncoderConfig = FrameEncoderConfig()
    """The encoder of frames, and the frozen features that it sees; the features also compare frames with their reconstructions. If the file
    ``prior.init`` holds an encoder, that one is taken."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam for encoder and synthesis network; it falls along half a cosine to 0."""
    pixel_weight: float = Field(2.0, ge=0)
    """Weight of the mean absolute difference of pixels."""
    pooled_weight: float = Field(2.0, ge=0)
    """Weight of the same after averaging over squares of an eighth of the side: layout and colours."""
    feature_weight: float = Field(1.0, ge=0)
    """Weight of the squared distance of features, normalised at each position, summed over the network's stages."""
    adversarial_weight: float = Field(0.1, ge=0)
    """Weight of the discriminator's loss of reconstructions. 0: no discriminator learns."""
    mapping_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam for the mapping network, which learns the distribution of the codes; it falls in the same way."""
    noises_per_code: int = Field(8, ge=1, le=1024)
    """How often each code of a batch is shown to the mapping network, with other noise each time."""
    max_gradient_norm: float = Field(5.0, gt=0)
    """Longer gradients are scaled down to this norm."""

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if not (self.pixel_weight or self.pooled_weight or self.feature_weight):
            raise ValueError("pixel_weight, pooled_weight and feature_weight are all 0: nothing is reconstructed")
        return self
