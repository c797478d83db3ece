"""Settings of the video stage."""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import Field, model_validator

from pipeline.encoders.pair import EncoderPairSettings
from pipeline.settings import Settings
from trainer.adversarial.ada import AdaSettings
from trainer.invert.settings import CodeSettings, InvertRecipe
from trainer.model.recurrent_block import Blocks


class MotionSettings(Settings):
    """The fast path: how a sound moves the picture from frame to frame. It learns from the codes of neighbouring frames, in their principal
    directions, which are measured before the first step."""

    fps: float = Field(12.5, gt=0, le=240)
    """Moments to the second, and rate of the neighbouring frames that are read of each clip."""
    frames: int = Field(25, ge=2, le=256)
    """Neighbouring frames that are read of each clip."""
    width: int = Field(64, ge=1, le=65536)
    """Numbers of the state."""
    directions: int = Field(16, ge=1, le=1024)
    """Directions of W+ in which pictures move."""
    measured_clips: int = Field(64, ge=1)
    """Largest number of training clips from whose neighbouring frames the directions are measured."""
    weight: float = Field(1.0, gt=0)
    """Weight of the sum of both losses: the distance of the mean movement from the real one, as a share of it, and how unlikely the rest is
    as the chance movement that the path expects."""
    learning_rate: float = Field(5e-3, gt=0)
    """Learning rate of AdamW for the fast path."""


class VideoSettings(Settings):
    """How the recurrent blocks are trained, against a discriminator of frames and one of clips."""

    blocks: Blocks = "three"
    """three: a recurrent block each for coarse, middle and fine layers. one: a single block for all, with fewer parameters. one_equal: a
    single block, so wide that it has the parameters of three (one of the paper's ablations)."""
    pull: bool = True
    """Whether a recurrent block also moves the styles towards the inversion of the segment that is heard. Not in the paper; without it,
    sound reaches later frames through the memory of the block alone."""
    hidden_width: int = Field(256, ge=1)
    """Width of a recurrent block's hidden state; for one_equal, of each of the three blocks that it is compared with."""
    noise_width: int = Field(32, ge=1)
    """Width of the noise that a block gets in each step."""
    guide_weight: float = Field(1.0, ge=0)
    """λ_enc: weight of L_enc, with the weights of ``invert``, on every frame. 0: left out (one of the paper's ablations)."""
    image_weight: float = Field(1.0, ge=0)
    """Weight of the image discriminator's loss L_DI. 0: no image discriminator (one of the paper's ablations)."""
    video_weight: float = Field(1.0, ge=0)
    """Weight of the video discriminator's loss L_Dv. 0: no video discriminator (one of the paper's ablations)."""
    balance_gradients: bool = True
    """Whether L_DI and L_Dv are scaled so that, before its weight, the gradient of each at the styles is as long as that of L_enc. The
    weights then mean the same at every resolution and for every guide. Without the guide, L_Dv is scaled to L_DI."""
    measure_gradients_every: int = Field(16, ge=1)
    """Steps from one measurement of these gradients to the next. They are logged as image_gradient, video_gradient and guide_gradient."""
    codes: CodeSettings | None = None
    """Learns from the codes of real frames, too: the walk of a sound goes near those of its own clip. None: not, as in the paper."""
    motion: MotionSettings | None = None
    """The fast path, which moves the picture between segments; it needs ``codes``. None: there is none, as in the paper."""
    hears: bool = True
    """Whether the video discriminator gets the sound too, and learns that a real clip with another clip's sound is wrong."""
    mismatch_weight: float = Field(0.5, ge=0)
    """Weight, in the video discriminator's loss, of real clips with the sound of another class."""
    spliced_share: float = Field(0.3, ge=0, le=1)
    """Share of the clips whose sound changes to another clip's sound at a random segment, so that every segment matters."""
    inversion_learning_rate: float | None = Field(1e-4, gt=0)
    """Learning rate of AdamW for the inversion encoder. None: the encoder is not trained."""
    block_learning_rate: float = Field(5e-4, gt=0)
    """Learning rate of AdamW for the recurrent blocks."""
    generator_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of AdamW for the generator's synthesis network. None: the generator is not trained."""
    discriminator_learning_rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam for both discriminators."""
    discriminator_widths: tuple[int, ...] = Field((256, 256, 128, 64, 32), min_length=2, max_length=9)
    """Channels of the video discriminator at 4, 8, 16, ... pixels. The last of these sizes is the size of its input."""
    judged_frames: int = Field(2, ge=1)
    """Frames of each clip that the image discriminator gets."""
    image_discriminator_from_prior: bool = True
    """Whether the image discriminator starts with the weights of the discriminator in the generator's file, if it has one."""
    r1_gamma: float = Field(1.0, ge=0)
    """gamma of R1 for both discriminators; the penalty has the weight gamma / 2. 0: no R1."""
    r1_every: int = Field(16, ge=1)
    """Steps from one R1 phase to the next."""
    augment: AdaSettings | None = AdaSettings(quarter_turn=0.0, luma_flip=0.0, hue=0.0)
    """Transforms of the discriminators' input; all frames of a clip are changed in the same way. None: no augmentation."""
    augment_p: float = Field(0.3, ge=0, le=1)
    """p: the probability of a transform whose own number is 1."""
    ema_half_life: float = Field(2000.0, ge=0)
    """Half-life of the averaged model, in clips. The averaged model is the one that generates. 0: no average, the latest weights."""
    ema_ramp_up: float | None = Field(0.1, gt=0)
    """Limit of the half-life, as a share of the clips seen. None: no limit."""
    num_samples: int = Field(300_000, ge=1)
    """Number of clips to learn from; a clip counts each time it is read."""
    validate_every_samples: int = Field(20_000, ge=1)
    """Clips from one validation to the next."""
    save_every_samples: int = Field(20_000, ge=1)
    """Clips from one checkpoint to the next."""
    validation_samples: int = Field(200, ge=1)
    """Largest number of clips of the validation split that are used, the first in its order."""
    batch_size: int = Field(16, ge=1)
    """Clips in one step, over all ranks."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Clips of one rank whose frames are in memory at once. Their sounds and styles always pass together. The image discriminator
    compares pictures within a micro-batch, and random transforms are drawn for each. None: all clips."""
    max_gradient_norm: float = Field(5.0, gt=0)
    """Longer gradients of the model are scaled down to this norm."""
    num_shown: int = Field(4, ge=1, le=64)
    """Clips for which each validation writes a strip of frames and a short mp4."""
    judge: EncoderPairSettings = EncoderPairSettings()
    """The encoders that measure whether the sound matters. They should not be the guide's, which the model may learn to deceive."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not (self.guide_weight or self.image_weight or self.video_weight):
            raise ValueError("guide_weight, image_weight and video_weight are all 0: nothing would be learned")
        if self.motion is not None and self.codes is None:
            raise ValueError(
                "motion learns from the codes of neighbouring frames: add the table codes, or leave motion out"
            )
        return self

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights of the losses of generated clips that are not left out."""
        weights = {"image": self.image_weight, "video": self.video_weight, "guide": self.guide_weight}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def discriminator_px(self) -> int:
        """Side of the video discriminator's input, in pixels."""
        return 4 << (len(self.discriminator_widths) - 1)


class VideoRecipe(InvertRecipe, Protocol):
    """The parts of a recipe that the stage uses."""

    @property
    def video(self) -> VideoSettings: ...
