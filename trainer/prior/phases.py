"""The phases of a step of the prior stage. A phase gets real pictures (B, T, 3, H, W), -1..1.

Equations: StyleGAN2 (arXiv:1912.04958), with the lazy regularisation of its appendix B; StyleGAN2-ADA (arXiv:2006.06676).

Shape suffixes: B samples, T frames, N = B T pictures, C = 3 colours, H W rows and columns, Z numbers of a latent, L layers
that take a style each, D numbers of a style.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.adversarial.ada import augment
from trainer.adversarial.losses import discriminator_loss, generator_loss, lazy_adam_settings, path_lengths, r1_penalty
from trainer.engine.ema import average_weight
from trainer.engine.phases import Phase, Terms
from trainer.engine.ranks import num_ranks
from trainer.model.discriminator import Discriminator
from trainer.model.filters import blur
from trainer.model.frame_encoder import FrameCodes
from trainer.model.generator import Generator, build_generator, widths_of
from trainer.model.generator_file import DiscriminatorConfig, build_discriminator_of
from trainer.prior.networks import generator_config, read_init
from trainer.prior.settings import GROUP_SIZE, PriorSettings

GENERATOR_MEASURES = ("generator_loss",)
PATH_MEASURES = ("path_penalty", "path_length")
DISCRIMINATOR_MEASURES = ("discriminator_loss", "real_score", "fake_score")
R1_MEASURES = ("r1_penalty",)


@dataclass
class Adversaries:
    """Generator and discriminator, and the losses between them."""

    settings: PriorSettings
    generator: Generator
    discriminator: Discriminator
    path_mean: Tensor
    """(): running mean of the path lengths."""
    p: float = 0.0
    """Probability of augmentation, 0..1."""
    blur_px: float = 0.0
    """Half width, in pixels, of the blur of the discriminator's input."""
    signs: list[Tensor] = field(default_factory=list)
    """Signs of the discriminator's outputs for the real pictures of this step, one tensor for each micro-batch."""

    def generate(self, count: int, *, update_emas: bool = False) -> tuple[Tensor, Tensor]:
        """``count`` pictures (N, 3, H, W) of random latents and random noise, and their styles (N, L, D)."""
        generator, device = self.generator, self.path_mean.device
        half_life = self.settings.magnitude_half_life
        if update_emas and half_life is not None:  # all ranks generate as many, and average their magnitudes
            generator.use_magnitude_beta(average_weight(count * num_ranks(), half_life, 0, None))
        z_NZ = torch.randn(count, generator.z_dim).to(device)
        ws_NLD = generator.mapping(z_NZ, update_emas=update_emas)
        if self.settings.style_mixing:
            ws_NLD = torch.where(
                self._mixed(count).to(device), generator.mapping(torch.randn(count, generator.z_dim).to(device)), ws_NLD
            )
        pictures_NCHW: Tensor = generator.synthesis(ws_NLD, noise_mode="random", update_emas=update_emas)
        return pictures_NCHW, ws_NLD

    def _mixed(self, count: int) -> Tensor:
        """(N, L, 1) bool: the layers that take the second style, from a random layer on (StyleGAN, arXiv:1812.04948, section 3.1)."""
        num_ws = self.generator.num_ws
        first = torch.randint(1, num_ws, (count, 1))
        mixed = torch.rand(count, 1) < self.settings.style_mixing
        return ((torch.arange(num_ws) >= first) & mixed)[:, :, None]

    def shown(self, pictures: Tensor) -> Tensor:
        """The discriminator's input (N, 3, H, W) for pictures (N, 3, H, W) or clips (B, T, 3, H, W): blurred and augmented."""
        if self.blur_px:
            pictures = blur(pictures.flatten(0, -4), self.blur_px).reshape(pictures.shape)
        augmented = pictures if self.settings.ada is None else augment(pictures, self.p, self.settings.ada)
        return augmented.flatten(0, 1) if augmented.ndim == 5 else augmented

    def generator_main(self, reals_BTCHW: Tensor) -> Terms:
        """The generator's loss on as many generated pictures as there are real ones."""
        pictures, _ = self.generate(_num_pictures(reals_BTCHW))
        loss = generator_loss(self.discriminator(self.shown(pictures)))
        return Terms(loss, {"generator_loss": float(loss.detach())})

    def path_length(self, reals_BTCHW: Tensor) -> Terms:
        """(length - running mean)² (StyleGAN2, equation 4). Updates the running mean."""
        count = max(1, round(_num_pictures(reals_BTCHW) * self.settings.path_batch_share))
        pictures, ws_NLD = self.generate(count)
        lengths_N = path_lengths(pictures, ws_NLD, torch.randn(pictures.shape).to(pictures.device))
        self.path_mean.copy_(self.path_mean.lerp(lengths_N.detach().mean(), self.settings.path_decay))
        penalty = (lengths_N - self.path_mean).square().mean()
        measures = {"path_penalty": float(penalty.detach()), "path_length": float(lengths_N.detach().mean())}
        return Terms(penalty * self.settings.path_weight, measures)

    def discriminator_main(self, reals_BTCHW: Tensor) -> Terms:
        """The discriminator's loss. Generated and real pictures pass in two batches, because it compares pictures within a batch."""
        with torch.no_grad():
            pictures, _ = self.generate(_num_pictures(reals_BTCHW), update_emas=True)
        return self.tell_apart(pictures, reals_BTCHW)

    def tell_apart(self, drawn_NCHW: Tensor, reals_BTCHW: Tensor) -> Terms:
        """The discriminator's loss on drawn pictures, without gradient, and real ones."""
        fake = self.discriminator(self.shown(drawn_NCHW))
        real = self.discriminator(self.shown(reals_BTCHW))
        self.signs.append(real.detach().sign())
        loss = discriminator_loss(real, fake)
        measures = {
            "discriminator_loss": float(loss.detach()),
            "real_score": float(real.detach().mean()),
            "fake_score": float(fake.detach().mean()),
        }
        return Terms(loss, measures)

    def r1(self, reals_BTCHW: Tensor) -> Terms:
        """gamma / 2 · R1 with respect to the discriminator's input: real pictures after augmentation."""
        shown_NCHW = self.shown(reals_BTCHW).detach().requires_grad_()
        penalty = r1_penalty(self.discriminator(shown_NCHW), shown_NCHW)
        return Terms(penalty * (self.settings.r1_gamma / 2), {"r1_penalty": float(penalty.detach())})


def _num_pictures(clips_BTCHW: Tensor) -> int:
    return clips_BTCHW.shape[0] * clips_BTCHW.shape[1]


def make_networks(settings: PriorSettings) -> tuple[Generator, Discriminator, DiscriminatorConfig]:
    """Generator and discriminator, from the file ``init`` if it is set. A discriminator that the file lacks gets random weights."""
    config = generator_config(settings)
    judge_config = DiscriminatorConfig(
        resolution=config.resolution,
        widths=widths_of(config),
        num_half=config.num_half,
        conv_clamp=config.conv_clamp,
        group_size=GROUP_SIZE,
    )
    init_file = read_init(settings)
    if init_file is None:
        return build_generator(config), build_discriminator_of(judge_config), judge_config
    if init_file.discriminator_config is None:
        return init_file.generator(), build_discriminator_of(judge_config), judge_config
    return init_file.generator(), init_file.discriminator(), init_file.discriminator_config


def start_encoder(settings: PriorSettings, device: torch.device) -> FrameCodes | None:
    """The encoder of frames of the file ``init``. None: it holds none, or ``init`` is not set."""
    init_file = read_init(settings)
    return None if init_file is None or init_file.encoder_config is None else init_file.frame_codes(device)


def prior_phases(adversaries: Adversaries) -> Sequence[Phase[Tensor]]:
    """The phases in the order in which a step runs them. Phases of one network share its optimizer."""
    settings = adversaries.settings
    path_every = settings.path_every if settings.path_weight else None
    r1_every = settings.r1_every if settings.r1_gamma else None
    generator, discriminator = adversaries.generator, adversaries.discriminator
    of_generator = adam(generator.parameters(), settings.generator_learning_rate, settings.betas, path_every)
    learning = discriminator.parameters_below(settings.frozen_blocks)
    of_discriminator = adam(learning, settings.discriminator_learning_rate, settings.betas, r1_every)
    phases = [Phase("generator", of_generator, 1, adversaries.generator_main, GENERATOR_MEASURES)]
    if path_every is not None:
        phases.append(Phase("path_length", of_generator, path_every, adversaries.path_length, PATH_MEASURES, False))
    phases.append(
        Phase(
            "discriminator",
            of_discriminator,
            1,
            adversaries.discriminator_main,
            DISCRIMINATOR_MEASURES,
        )
    )
    if r1_every is not None:
        phases.append(Phase("r1", of_discriminator, r1_every, adversaries.r1, R1_MEASURES, False))
    return phases


def adam(
    parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float], every: int | None
) -> torch.optim.Optimizer:
    """Adam whose rate and betas allow for a regulariser that shares it every ``every`` steps. None: there is none."""
    rate, betas = lazy_adam_settings(rate, betas, every)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=1e-8)
