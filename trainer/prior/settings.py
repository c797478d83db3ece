"""Settings of the prior stage."""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import Field, model_validator

from pipeline.settings import Settings
from trainer.adversarial.ada import AdaSettings
from trainer.model.generator import GeneratorConfig
from trainer.prior.fidelity import FidelitySettings
from trainer.prior.reconstruction_settings import ReconstructionSettings
from trainer.streaming.reader import ReaderSettings

GROUP_SIZE = 4
"""Pictures in a group whose standard deviation the discriminator gets (Progressive GAN, arXiv:1710.10196, section 3)."""


class PriorSettings(Settings):
    """How a generator of pictures is trained.

    The table ``reader`` applies too, except for the side and number of frames and the batch size, which are set here.
    """

    pictures: str | None = None
    """Folder of pictures to learn from, with all folders below it. None: the frames of the datasets."""
    init: str | None = None
    """Path or URL of a generator to start from, in any supported format; or painted, the packaged one, which knows the painted scenes of
    the demo. None: random weights."""
    init_sha256: str | None = None
    """SHA-256 of ``init``. None: not checked; required for a URL."""
    generator: GeneratorConfig | None = None
    """Config of the generator. None: that of ``init``, or without ``init`` StyleGAN2 for 256 pixels."""
    batch_size: int = Field(32, ge=1)
    """Samples in one step, over all ranks."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Pictures of one rank whose activations are in memory at once. The discriminator compares pictures within a micro-batch.
    None: all pictures."""
    frames_per_clip: int = Field(1, ge=1)
    """Pictures that are read of each sample of a dataset. More are cheaper to read, but more similar. A folder's pictures count as one
    frame each."""
    mirror: bool = True
    """Whether half of the real pictures are mirrored, at random."""
    num_samples: int = Field(25_000_000, ge=1)
    """Number of real pictures to learn from; a picture counts each time it is read."""
    validate_every_samples: int = Field(200_000, ge=1)
    """Real pictures from one picture grid and measurement to the next."""
    save_every_samples: int = Field(200_000, ge=1)
    """Real pictures from one checkpoint to the next."""
    generator_learning_rate: float = Field(0.0025, gt=0)
    """Learning rate of Adam for the generator."""
    discriminator_learning_rate: float = Field(0.0025, gt=0)
    """Learning rate of Adam for the discriminator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Betas of Adam for both networks."""
    r1_gamma: float = Field(1.0, ge=0)
    """gamma of R1; the penalty has the weight gamma / 2, as in its paper. 0: no R1. Higher resolutions need more, larger batches less."""
    r1_every: int = Field(16, ge=1)
    """Steps from one R1 phase to the next."""
    path_weight: float = Field(0.0, ge=0)
    """Weight of the path length regulariser. StyleGAN2 uses 2, StyleGAN3 0. 0: no regulariser."""
    path_every: int = Field(4, ge=1)
    """Steps from one path length phase to the next."""
    path_batch_share: float = Field(0.5, gt=0, le=1)
    """Size of the path length regulariser's batch, as a share of a micro-batch."""
    path_decay: float = Field(0.01, gt=0, le=1)
    """Weight of each new mean path length in the running mean."""
    blur_px: float = Field(0.0, ge=0)
    """Half width, in pixels, of the blur of the discriminator's input at the start of the fit: the distance at which the Gaussian is half
    as high as in its middle. StyleGAN3-R uses 10, so that the discriminator does not rely on high frequencies first. 0: no blur."""
    blur_samples: float = Field(200_000.0, gt=0)
    """Number of real pictures over which the blur fades to 0."""
    frozen_blocks: int = Field(0, ge=0)
    """Number of highest-resolution blocks of the discriminator of ``init`` that are not trained, for small datasets (freeze-D, Mo et al.,
    arXiv:2002.10964). A block has 3 layers, the first one 4 (with the layer from colours): 10 and 13 layers are 3 and 4 blocks."""
    style_mixing: float = Field(0.9, ge=0, le=1)
    """Probability that the later layers of a picture take the style of a second latent. StyleGAN3 uses 0."""
    ema_half_life: float = Field(10_000.0, gt=0)
    """Half-life of the averaged generator, in real pictures."""
    ema_ramp_up: float | None = Field(0.05, gt=0)
    """Limit of the half-life, as a share of the pictures seen. None: no limit."""
    magnitude_half_life: float | None = Field(None, gt=0)
    """Half-life of StyleGAN3's running magnitudes, in generated pictures; StyleGAN3 uses 20 000. None: ``generator.magnitude_beta`` in each
    update, so that the half-life is proportional to the micro-batch."""
    ada: AdaSettings | None = AdaSettings()
    """The transforms of augmentation. None: no augmentation."""
    ada_target: float = Field(0.6, gt=-1, lt=1)
    """Target for the mean sign of the discriminator's outputs on real pictures; the probability of augmentation is adapted to it."""
    ada_every: int = Field(4, ge=1)
    """Steps from one adaptation to the next."""
    ada_samples: float = Field(500_000.0, gt=0)
    """Number of real pictures in which the probability can rise from 0 to 1."""
    ada_fixed_p: float | None = Field(None, ge=0, le=1)
    """A fixed probability of augmentation. None: it is adapted, from 0."""
    grid_seeds: int = Field(64, ge=1, le=1024)
    """Number of pictures in the grid of generated pictures: the seeds 0, 1, 2, ..."""
    grid_truncation: float = Field(1.0, ge=0, le=1)
    """psi of the grid: the distance of its styles from the average style, as a share."""
    reconstruction: ReconstructionSettings | None = None
    """Learns by reconstruction: an encoder of frames learns together with the generator, which is faster than learning from a discriminator
    alone. The generator then has ``styles = "w_plus"``. None: StyleGAN2-ADA's training."""
    fidelity: FidelitySettings = FidelitySettings()
    """How generated pictures are compared with real ones."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas}: each is from 0 up to, not including, 1")
        if self.init_sha256 is not None and self.init is None:
            raise ValueError("init_sha256 is given without init")
        if self.frozen_blocks and self.init is None:
            raise ValueError("frozen_blocks is given without init: blocks with random weights must be trained")
        if self.reconstruction is not None and self.path_weight:
            raise ValueError("path_weight has no meaning with reconstruction; leave it out")
        size = self.micro_batch_size
        if size is not None and size > GROUP_SIZE and size % GROUP_SIZE:
            raise ValueError(f"micro_batch_size {size}: take a multiple of {GROUP_SIZE}, or fewer than that")
        return self

    def blur_at(self, samples_seen: int) -> float:
        """Half width of the blur, in pixels, after ``samples_seen`` real pictures; it fades as in StyleGAN3 (arXiv:2106.12423)."""
        return self.blur_px * max(0.0, 1 - samples_seen / self.blur_samples)


class PriorRecipe(Protocol):
    """The parts of a recipe that the stage uses."""

    @property
    def reader(self) -> ReaderSettings: ...

    @property
    def prior(self) -> PriorSettings: ...
