"""What the video stage is told, and what of it can be refused before any work."""

from __future__ import annotations

from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from pipeline.encoders.pair import EncoderPairSettings
from pipeline.settings import Settings
from trainer.adversarial.ada import AdaSettings
from trainer.invert.settings import InvertRecipe


class VideoSettings(Settings):
    """How the recurrent blocks are fitted, against a discriminator of frames and one of clips."""

    blocks: Literal["three", "one"] = "three"
    """three: a recurrent block for coarse, middle and fine layers each. one: a single one (one of the paper's ablations)."""
    hidden_width: int = Field(256, ge=1)
    """Numbers that a recurrent block remembers."""
    noise_width: int = Field(32, ge=1)
    """Numbers of noise that a block gets in each step."""
    guide_weight: float = Field(1.0, ge=0)
    """λ_enc: weight of L_enc, as ``invert`` has it, on every frame. 0: without (one of the paper's ablations)."""
    image_weight: float = Field(1.0, ge=0)
    """Weight of the image discriminator's loss. 0: there is none (one of the paper's ablations)."""
    video_weight: float = Field(1.0, ge=0)
    """Weight of the video discriminator's loss. 0: there is none (one of the paper's ablations)."""
    hears: bool = True
    """Whether the video discriminator is told the sound, and learns that a real clip with another's sound is no match."""
    mismatch_weight: float = Field(0.5, ge=0)
    """Weight of those mismatched real clips in the video discriminator's loss."""
    spliced_share: float = Field(0.3, ge=0, le=1)
    """Share of the clips whose sound changes to another clip's on the way, so that every segment has to be heard."""
    inversion_learning_rate: float | None = Field(1e-4, gt=0)
    """Of AdamW for the inversion encoder. None: it stays as ``invert`` left it."""
    block_learning_rate: float = Field(5e-4, gt=0)
    """Of AdamW for the recurrent blocks."""
    generator_learning_rate: float | None = Field(None, gt=0)
    """Of AdamW for the generator's synthesis network. None: it stays as it is."""
    discriminator_learning_rate: float = Field(2e-3, gt=0)
    """Of Adam for both discriminators."""
    discriminator_widths: tuple[int, ...] = Field((256, 256, 128, 64, 32), min_length=2, max_length=9)
    """Channels of the video discriminator at 4, 8, 16, ... pixels; it looks at clips of the last of these sizes."""
    judged_frames: int = Field(2, ge=1)
    """Frames of each clip that the image discriminator sees."""
    image_discriminator_from_prior: bool = True
    """Whether the image discriminator begins as the one beside the generator, where there is one."""
    r1_gamma: float = Field(1.0, ge=0)
    """Weight of R1 (half of it, as in the formula) in both discriminators. 0: none."""
    r1_every: int = Field(16, ge=1)
    """Steps from one R1 to the next."""
    augment: AdaSettings | None = AdaSettings(quarter_turn=0.0, luma_flip=0.0, hue=0.0)
    """What augmentation may do to what the discriminators see; all frames of a clip alike. None: none."""
    augment_p: float = Field(0.3, ge=0, le=1)
    """Probability of each augmentation."""
    ema_half_life: float = Field(2000.0, gt=0)
    """Clips after which an earlier model counts half in the averaged one, which generates."""
    ema_ramp_up: float | None = Field(0.1, gt=0)
    """The half-life is at most this share of the clips seen. None: the whole half-life from the start."""
    num_samples: int = Field(300_000, ge=1)
    """Clips until the stage is done, counting a clip each time it is seen."""
    validate_every_samples: int = Field(20_000, ge=1)
    """Clips from one validation to the next."""
    save_every_samples: int = Field(20_000, ge=1)
    """Clips from one checkpoint to the next."""
    validation_samples: int = Field(200, ge=1)
    """Most clips of the validation split that are used: the first ones in its order."""
    batch_size: int = Field(16, ge=1)
    """Clips of one step, on all ranks together."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Clips of one rank that activations are held of at once. None: all of them."""
    max_gradient_norm: float = Field(5.0, gt=0)
    """Longer gradients of what generates are shortened to this."""
    num_shown: int = Field(4, ge=1, le=64)
    """Clips of the validation split of which each validation writes a picture strip and a short mp4."""
    judge: EncoderPairSettings = EncoderPairSettings()
    """The encoders that measure in validations whether the sound matters: best ones that are not the guide's."""

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not (self.guide_weight or self.image_weight or self.video_weight):
            raise ValueError("guide_weight, image_weight and video_weight are all 0: nothing would be learned")
        return self

    @property
    def discriminator_px(self) -> int:
        """Side of the clips that the video discriminator sees, in pixels."""
        return 4 << (len(self.discriminator_widths) - 1)


class VideoRecipe(InvertRecipe, Protocol):
    """What the stage asks of a recipe."""

    @property
    def video(self) -> VideoSettings: ...
