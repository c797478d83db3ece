"""The phases of a prior that learns by reconstruction: real frames are encoded into W+ and drawn again.

Encoder and synthesis network learn together that the drawn picture is the frame: by pixels, by averages of squares, by frozen features,
and by a small adversarial loss. The mapping network learns the distribution of the codes (:mod:`trainer.model.code_mapping`).

Shape suffixes: B samples, T frames, N = B T pictures, C = 3 colours, H W rows and columns, L layers that take a style each,
D numbers of a style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from trainer.adversarial.losses import generator_loss
from trainer.engine.optimizing import learning_rate_share
from trainer.engine.phases import Phase, Terms
from trainer.model.code_mapping import CodeMapping
from trainer.model.features import feature_distance
from trainer.model.frame_encoder import FrameCodes
from trainer.prior.phases import DISCRIMINATOR_MEASURES, R1_MEASURES, Adversaries, adam
from trainer.prior.reconstruction_settings import ReconstructionSettings

RECONSTRUCTION, CODES = "reconstruction", "codes"
"""Names of phases."""
WARMUP_SHARE = 0.02
"""Share of the stage in which the learning rates rise."""
RECONSTRUCTION_MEASURES = ("pixel_loss", "pooled_loss", "feature_loss", "generator_loss", "reconstruction_loss")
CODE_MEASURES = ("code_loss",)
POOLED_SIDE = 8
"""Squares along a side that pictures are averaged to."""


@dataclass
class Reconstruction:
    """The encoder of frames, and the losses of reconstructed pictures."""

    settings: ReconstructionSettings
    adversaries: Adversaries
    codes: FrameCodes
    drawn_of: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """The real pictures of this step's micro-batches as the phases get them, their reconstructions and their codes, without gradient."""

    def reconstruct(self, reals_BTCHW: Tensor) -> Terms:
        """The loss of encoder and synthesis network."""
        settings, adversaries = self.settings, self.adversaries
        reals_NCHW = reals_BTCHW.flatten(0, 1)
        with torch.no_grad():
            maps = self.codes.features(reals_NCHW)
        codes_NLD = self.codes.encoder(reals_NCHW, maps)
        drawn_NCHW = adversaries.generator.synthesis(codes_NLD, noise_mode="random")
        self.drawn_of.append((reals_BTCHW, drawn_NCHW.detach(), codes_NLD.detach()))
        losses = {
            "pixel_loss": functional.l1_loss(drawn_NCHW, reals_NCHW),
            "pooled_loss": functional.l1_loss(_pooled(drawn_NCHW), _pooled(reals_NCHW)),
            "feature_loss": feature_distance(maps, self.codes.features(drawn_NCHW)).mean(),
        }
        loss = (
            settings.pixel_weight * losses["pixel_loss"]
            + settings.pooled_weight * losses["pooled_loss"]
            + settings.feature_weight * losses["feature_loss"]
        )
        if settings.adversarial_weight:
            losses["generator_loss"] = generator_loss(adversaries.discriminator(adversaries.shown(drawn_NCHW)))
            loss = loss + settings.adversarial_weight * losses["generator_loss"]
        measures = {name: float(value.detach()) for name, value in losses.items()}
        return Terms(loss, {**measures, "reconstruction_loss": float(loss.detach())})

    def discriminate(self, reals_BTCHW: Tensor) -> Terms:
        """The discriminator's loss on reconstructions and real pictures."""
        drawn_NCHW, _ = self._of(reals_BTCHW)
        return self.adversaries.tell_apart(drawn_NCHW, reals_BTCHW)

    def map_codes(self, reals_BTCHW: Tensor) -> Terms:
        """The mapping network's loss on the codes of this step."""
        mapping = self.adversaries.generator.mapping
        assert isinstance(mapping, CodeMapping)
        _, codes_NLD = self._of(reals_BTCHW)
        loss = mapping.loss(codes_NLD, self.settings.noises_per_code)
        return Terms(loss, {"code_loss": float(loss.detach())})

    def set_rates(self, phases: Sequence[Phase[Tensor]], samples_seen: int) -> None:
        """Sets the learning rates of encoder, synthesis network and mapping: after a short warm-up they fall along half a cosine to 0."""
        share = learning_rate_share(samples_seen, self.adversaries.settings.num_samples, WARMUP_SHARE)
        rates = {RECONSTRUCTION: self.settings.learning_rate, CODES: self.settings.mapping_learning_rate}
        for phase in phases:
            for group in phase.optimizer.param_groups if phase.name in rates else ():
                group["lr"] = share * rates[phase.name]

    def learn_average(self, weight: float) -> None:
        """Moves the average style towards that of this step's codes; ``weight`` is the old average's. Nothing happens without codes."""
        mapping = self.adversaries.generator.mapping
        assert isinstance(mapping, CodeMapping)
        if self.drawn_of:
            mapping.learn_average(torch.cat([codes for _, _, codes in self.drawn_of]), weight)

    def _of(self, reals_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What was drawn in this step for these pictures, and their codes."""
        return next((drawn, codes) for reals, drawn, codes in self.drawn_of if reals is reals_BTCHW)


def _pooled(pictures_NCHW: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(pictures_NCHW, POOLED_SIDE)


def reconstruction_phases(reconstruction: Reconstruction) -> Sequence[Phase[Tensor]]:
    """The phases in the order in which a step runs them."""
    settings, adversaries = reconstruction.settings, reconstruction.adversaries
    prior, generator = adversaries.settings, adversaries.generator
    learning = [*reconstruction.codes.encoder.parameters(), *generator.synthesis.parameters()]
    measures = tuple(
        name for name in RECONSTRUCTION_MEASURES if settings.adversarial_weight or name != "generator_loss"
    )
    phases = [
        Phase(
            RECONSTRUCTION,
            torch.optim.Adam(learning, settings.learning_rate, betas=(0.5, 0.99)),
            1,
            reconstruction.reconstruct,
            measures,
            max_gradient_norm=settings.max_gradient_norm,
        ),
        Phase(
            CODES,
            torch.optim.Adam(generator.mapping.parameters(), settings.mapping_learning_rate, betas=(0.5, 0.99)),
            1,
            reconstruction.map_codes,
            CODE_MEASURES,
            max_gradient_norm=settings.max_gradient_norm,
        ),
    ]
    if settings.adversarial_weight:
        r1_every = prior.r1_every if prior.r1_gamma else None
        learning = adversaries.discriminator.parameters_below(prior.frozen_blocks)
        optimizer = adam(learning, prior.discriminator_learning_rate, prior.betas, r1_every)
        phases.append(Phase("discriminator", optimizer, 1, reconstruction.discriminate, DISCRIMINATOR_MEASURES))
        if r1_every is not None:
            phases.append(Phase("r1", optimizer, r1_every, adversaries.r1, R1_MEASURES, False))
    return phases
