"""What the prior stage is told, and what of it can be refused before any work."""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import Field, model_validator

from pipeline.settings import Settings
from trainer.adversarial.ada import AdaSettings
from trainer.model.generator import GeneratorConfig
from trainer.prior.fidelity import FidelitySettings
from trainer.streaming.reader import ReaderSettings

GROUP_SIZE = 4
"""Pictures whose deviation the discriminator sees together (Progressive GAN, section 3)."""


class PriorSettings(Settings):
    """How a generator of pictures is trained.

    The table ``reader`` holds for it too, but for what the network decides or is named here: side and number of frames, size of a batch.
    """

    pictures: str | None = None
    """Folder of pictures to learn from, with all folders below it. None: the frames of the datasets."""
    init: str | None = None
    """Path or URL of a generator to go on from, of any kind that can be read. None: from random weights."""
    init_sha256: str | None = None
    """SHA-256 of ``init``; a URL needs it."""
    generator: GeneratorConfig | None = None
    """The network. None: that of ``init``, or without one StyleGAN2 for 256 pixels."""
    batch_size: int = Field(32, ge=1)
    """Samples that are read for a step, by all ranks together."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Pictures of one rank that the networks hold activations of at once. The discriminator compares pictures within it.
    None: all of them."""
    frames_per_clip: int = Field(1, ge=1)
    """Pictures out of each sample of a dataset: more are cheaper to read, and more alike. A folder's pictures are read alone."""
    mirror: bool = True
    """Whether real pictures are shown mirrored half of the time."""
    num_samples: int = Field(25_000_000, ge=1)
    """Real pictures until the fit is done, counting a picture each time it is seen."""
    validate_every_samples: int = Field(200_000, ge=1)
    """Real pictures from one sample grid and measurement to the next."""
    save_every_samples: int = Field(200_000, ge=1)
    """Real pictures from one checkpoint to the next."""
    generator_learning_rate: float = Field(0.0025, gt=0)
    """Of Adam."""
    discriminator_learning_rate: float = Field(0.0025, gt=0)
    """Of Adam."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Of Adam, in both networks."""
    r1_gamma: float = Field(1.0, ge=0)
    """Weight of R1, which is halved as in its paper. 0: without it. What suits grows with the resolution and falls with the batch."""
    r1_every: int = Field(16, ge=1)
    """Steps from one R1 to the next."""
    path_weight: float = Field(0.0, ge=0)
    """Weight of the path length regulariser; StyleGAN2's is 2. 0: without it, as for StyleGAN3."""
    path_every: int = Field(4, ge=1)
    """Steps from one path length regulariser to the next."""
    path_batch_share: float = Field(0.5, gt=0, le=1)
    """Share of a micro-batch that the path length regulariser takes."""
    path_decay: float = Field(0.01, gt=0, le=1)
    """Weight of each new mean path length in the running one."""
    blur_px: float = Field(0.0, ge=0)
    """How much the discriminator's pictures, real and generated, are blurred at the start: pixels from a point to where its
    blur is half as high. StyleGAN3-R wants 10, so that it does not settle on high frequencies at once. 0: not at all."""
    blur_samples: float = Field(200_000.0, gt=0)
    """Real pictures in which the blur fades to nothing."""
    frozen_blocks: int = Field(0, ge=0)
    """Highest resolutions of the discriminator of ``init`` that stay as they are, for small datasets (freeze-D, Mo et al.,
    arXiv:2002.10964). A block is 3 layers, the first one 4 with that from colours: 10 and 13 layers are 3 and 4 blocks."""
    style_mixing: float = Field(0.9, ge=0, le=1)
    """Probability that the later layers of a picture take the style of another latent. StyleGAN3 uses 0."""
    ema_half_life: float = Field(10_000.0, gt=0)
    """Real pictures after which an earlier generator counts half in the averaged one."""
    ema_ramp_up: float | None = Field(0.05, gt=0)
    """The half-life is at most this share of the pictures seen. None: the whole half-life from the start."""
    ada: AdaSettings | None = AdaSettings()
    """What augmentation may do. None: no augmentation."""
    ada_target: float = Field(0.6, gt=-1, lt=1)
    """Mean sign of the discriminator's outputs for real pictures that the probability of augmentation is adapted to."""
    ada_every: int = Field(4, ge=1)
    """Steps from one adaptation to the next."""
    ada_samples: float = Field(500_000.0, gt=0)
    """Real pictures in which the probability could go from 0 to 1."""
    ada_fixed_p: float | None = Field(None, ge=0, le=1)
    """A probability that stays. None: it is adapted, from 0."""
    grid_seeds: int = Field(64, ge=1, le=1024)
    """Pictures in a sample grid: those of the seeds 0, 1, 2, ..."""
    grid_truncation: float = Field(1.0, ge=0, le=1)
    """How far the styles of the sample grid may be from the average one: psi."""
    fidelity: FidelitySettings = FidelitySettings()
    """How generated pictures are compared with real ones."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas}: each is from 0 up to, not including, 1")
        if self.init_sha256 is not None and self.init is None:
            raise ValueError("init_sha256 is given without init")
        if self.frozen_blocks and self.init is None:
            raise ValueError("frozen_blocks is given without init: what is random has to learn")
        size = self.micro_batch_size
        if size is not None and size > GROUP_SIZE and size % GROUP_SIZE:
            raise ValueError(f"micro_batch_size {size}: take a multiple of {GROUP_SIZE}, or fewer than that")
        return self

    def blur_at(self, samples_seen: int) -> float:
        """Half width of the blur, in pixels, once so many real pictures were seen; the fade is StyleGAN3's (arXiv:2106.12423)."""
        return self.blur_px * max(0.0, 1 - samples_seen / self.blur_samples)


class PriorRecipe(Protocol):
    """What the stage asks of a recipe."""

    @property
    def reader(self) -> ReaderSettings: ...

    @property
    def prior(self) -> PriorSettings: ...
