"""Settings of the stage invert, and of the guide."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from pipeline.encoders.pair import EncoderPairSettings, Sha256
from pipeline.encoders.weights import is_url
from pipeline.settings import Settings
from trainer.align.augment import AugmentSettings
from trainer.align.settings import AlignRecipe
from trainer.model.recurrent_block import Blocks
from trainer.prior.settings import PriorSettings


class GuideSettings(Settings):
    """The sound encoder of the guide, and the cutouts of generated pictures. The picture encoder is ``align.partner``."""

    sound_kind: Literal["align", "soundclip", "wav2clip", "small"] = "align"
    """Kind of the sound encoder F_a: from the align stage, the published SoundCLIP or Wav2CLIP, or the packaged one."""
    sound_weights: str | None = None
    """Weights of the sound encoder: a path, or a URL with its SHA-256. None: those that this run's align stage wrote; for small, the
    packaged ones."""
    sound_sha256: Sha256 | None = None
    """SHA-256 of that file. None: not checked; required for a URL."""
    num_cutouts: int = Field(32, ge=1, le=1024)
    """Random squares of each generated picture that are embedded. The paper's authors use 32."""
    smallest_cutout: float = Field(0.5, gt=0, le=1)
    """Side of the smallest square, as a share of the picture's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sound_kind in ("soundclip", "wav2clip") and self.sound_weights is None:
            raise ValueError(f"sound_kind {self.sound_kind} needs sound_weights: a path, or a URL with its SHA-256")
        if self.sound_weights is not None and is_url(self.sound_weights) and self.sound_sha256 is None:
            raise ValueError("sound_weights is a URL: give sound_sha256, so that changed weights are refused")
        return self


class CodeSettings(Settings):
    """How E_a learns from codes: those in W+ of the frames of a sound's own clip, by the encoder of frames in the generator's file."""

    weight: float = Field(1.0, gt=0)
    """Weight of the distance between the inversions of a sound and the code of a frame that belongs to it, as a share of the codes' mean
    square distance from the average style."""
    draws: int = Field(4, ge=1, le=256)
    """Latents that are drawn for each sound. Of their inversions the nearest to the code counts, so that a sound keeps several pictures."""
    mean_share: float = Field(0.3, ge=0)
    """Weight of the mean over these inversions beside the nearest one, so that none stays far from all codes."""
    alone_share: float = Field(0.7, ge=0, le=1)
    """Share of the stage that learns from codes alone. No picture is drawn in it, so that a step costs a small part of others. In the rest
    L_enc is added."""


class InvertSettings(Settings):
    """How the sound inversion encoder E_a is fitted: ŵ_a = E_a(x_a) + w."""

    generator: str | None = None
    """The generator: a path or URL that ``trainer.model.load`` can read. None: the one that this run's prior stage wrote."""
    generator_sha256: Sha256 | None = None
    """SHA-256 of that file. None: not checked; required for a URL."""
    backbone: str = "resnet18"
    """Name of the timm network that encodes mels. The paper's is resnet18."""
    mel_reference: Literal["full_scale", "maximum"] = "full_scale"
    """The level that the encoder's mels are relative to. full_scale: a fixed one, over a range of 100 dB, so that the encoder is told how
    loud a sound is, and silence is the lowest input. maximum: that of the window, over 80 dB, as in the published script; a segment's mel
    then depends on the loudest moment of its window, and digital silence is the highest input."""
    start_from_align: bool = True
    """Whether the encoder starts with the weights of the align stage's network, if that has the same backbone."""
    augment: AugmentSettings = AugmentSettings(min_crop=1.0)
    """Augmentation of the encoder's input, here and in the stage ``video``. The targets F_a are those of the sounds without it."""
    truncation: float = Field(0.7, ge=0, le=1)
    """psi of w, the style that the inversion is added to. The paper's authors use 0.7. 0: the generator's average style."""
    latent_width: int = Field(0, ge=0, le=65536)
    """Numbers of the latent that the encoder gets beside the sound, so that one sound has several inversions. 0: none, as in the paper; a
    latent then only chooses w."""
    codes: CodeSettings | None = None
    """Learns from the codes of real frames, too. The generator's prior must have learned by reconstruction. None: from L_enc alone, as in
    the paper."""
    guide: GuideSettings = GuideSettings()
    """The encoders whose space compares pictures with sounds."""
    sound_weight: float = Field(1.0, ge=0)
    """Weight of L_CLIP(a↔v), between the generated picture and its sound. 0: left out (one of the paper's ablations)."""
    text_weight: float = Field(1.0, ge=0)
    """Weight of L_CLIP(a↔t), between the generated picture and caption or class."""
    text_against: Literal["picture", "sound"] = "picture"
    """What L_CLIP(a↔t) compares the text with. picture: F_v of the picture that the sound generates. sound: F_a of the sound, as the
    formula can be read, too; F_a is frozen, so that this term is a constant, from which nothing is learned."""
    style_weight: float = Field(0.1, ge=0)
    """λ_b: weight of the mean square of ŵ_a - w̄, which keeps styles near those that the generator was trained on."""
    style_mean: Literal["generator", "encoder"] = "generator"
    """What w̄ is. generator: the generator's average style. encoder: w̄_a, the mean of the encoder's own codes, as in the paper. It is a
    running mean over clips, one for each layer, that begins at the generator's average and is moved after each step, also in ``video``."""
    style_mean_half_life: float = Field(2000.0, gt=0)
    """Half-life of that running mean, in clips."""
    num_samples: int = Field(200_000, ge=1)
    """Number of clips to learn from; a clip counts each time it is read."""
    validate_every_samples: int = Field(10_000, ge=1)
    """Clips from one validation to the next."""
    save_every_samples: int = Field(10_000, ge=1)
    """Clips from one checkpoint to the next."""
    validation_samples: int = Field(500, ge=1)
    """Largest number of clips of the validation split that are used, the first in its order."""
    batch_size: int = Field(32, ge=1)
    """Clips in one step, over all ranks."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Clips of one rank whose pictures are in memory at once. Their sounds always pass together. None: all clips."""
    learning_rate: float = Field(5e-4, gt=0)
    """Learning rate of AdamW after the warm-up; it falls along a cosine to 0."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Longer gradients are scaled down to this norm."""
    judge: EncoderPairSettings = EncoderPairSettings()
    """The encoders whose measures choose the best model. They should not be the guide's, which the model may learn to deceive."""


class WalkMotion(Protocol):
    """The settings of the fast path that decide the shapes of its weights, and what is read for it."""

    @property
    def fps(self) -> float: ...

    @property
    def frames(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def directions(self) -> int: ...


class WalkSettings(Protocol):
    """The settings of the video stage that decide the shapes of the model's weights."""

    @property
    def hidden_width(self) -> int: ...

    @property
    def noise_width(self) -> int: ...

    @property
    def blocks(self) -> Blocks: ...

    @property
    def pull(self) -> bool: ...

    @property
    def motion(self) -> WalkMotion | None: ...


class InvertRecipe(AlignRecipe, Protocol):
    """The parts of a recipe that the stages invert and video use."""

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
