"""A mapping network that learns the distribution of codes in W+ by denoising them: noise to styles, a style for each layer.

Shape suffixes: B batch, L layers that take a style each, D numbers of a style, Z = L D numbers of a code, F Fourier features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.model.layers import truncate

SIGMA_MIN = 0.05
"""The least noise, in standard deviations of the codes, from which the last step goes straight to a code."""
SIGMA_MAX = 80.0
"""The noise from which drawing starts: the codes vanish in it."""
RHO = 7.0
"""How much closer the noise levels lie at the low end (Karras and others, arXiv:2206.00364, equation 5)."""
NUM_STEPS = 16
"""Denoising steps of a draw."""
NUM_FREQUENCIES = 16
"""Fourier features of a noise level."""
LEAST_SCALE = 1e-2
"""The least standard deviation by which a number of a code is divided."""


class Denoiser(nn.Module):
    """Noisy standardised codes (B, Z) and their noise levels (B, 1) to the codes that are most likely in them, (B, Z)."""

    def __init__(self, num_numbers: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.level = nn.Linear(2 * NUM_FREQUENCIES, width)
        self.first = nn.Linear(num_numbers, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(num_blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_numbers))

    def forward(self, noisy_BZ: Tensor, sigma_B1: Tensor) -> Tensor:
        x = self.first(noisy_BZ / (1 + sigma_B1.square()).sqrt()) + self.level(_fourier(sigma_B1.log() / 4))
        for block in self.blocks:
            x = x + block(x)
        denoised: Tensor = self.last(x)
        return denoised


def _fourier(number_B1: Tensor) -> Tensor:
    """(B, F): sines and cosines of a number of about -1..1."""
    frequencies_F = math.pi * torch.arange(1, NUM_FREQUENCIES + 1, device=number_B1.device) / 2
    angles_BF = number_B1 * frequencies_F
    return torch.cat([angles_BF.sin(), angles_BF.cos()], 1)


class CodeMapping(nn.Module):
    """Latents z, (B, Z), to styles (B, L, D), by the diffusion's deterministic sampler (arXiv:2206.00364, algorithm 1 without its second
    order): each latent gives one code, and neighbouring latents neighbouring codes. It has the interface of ``MappingNetwork``."""

    w_avg: Tensor
    spread: Tensor

    def __init__(
        self, w_dim: int, num_ws: int, *, width: int = 512, num_layers: int = 2, w_avg_beta: float = 0.998
    ) -> None:
        super().__init__()
        self.w_dim, self.num_ws, self.num_layers, self.w_avg_beta = w_dim, num_ws, num_layers, w_avg_beta
        self.z_dim, self.c_dim = num_ws * w_dim, 0
        self.denoiser = Denoiser(self.z_dim, width, num_layers)
        self.register_buffer("w_avg", torch.zeros(num_ws, w_dim))
        self.register_buffer("spread", torch.ones(num_ws, w_dim))

    def forward(
        self,
        z_BZ: Tensor,
        c_BC: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """(B, L, D). Labels and ``update_emas`` have no effect: the average style is that of the codes, see ``learn_average``.

        Always float32, under autocast too.
        """
        with torch.autocast(z_BZ.device.type, enabled=False):
            ws_BLD = self._drawn(z_BZ.float()).view(-1, self.num_ws, self.w_dim) * self.spread + self.w_avg
        return ws_BLD if truncation_psi == 1 else truncate(ws_BLD, self.w_avg, truncation_psi, truncation_cutoff)

    def _drawn(self, z_BZ: Tensor) -> Tensor:
        """(B, Z): standardised codes."""
        sigmas = noise_levels(NUM_STEPS)
        x_BZ = z_BZ * sigmas[0]
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            clean_BZ = self.denoiser(x_BZ, x_BZ.new_full((len(x_BZ), 1), sigma))
            x_BZ = clean_BZ + (x_BZ - clean_BZ) * (following / sigma)
        return x_BZ

    def loss(self, codes_BLD: Tensor, noises_per_code: int) -> Tensor:
        """(): how far codes with noise of random levels are denoised from the codes, each level by its own weight; about 1 at first.

        Noise is drawn from torch's generator of the CPU.
        """
        device = codes_BLD.device
        clean_BZ = ((codes_BLD - self.w_avg) / self.spread).flatten(1).repeat(noises_per_code, 1)
        share_B1 = torch.rand(len(clean_BZ), 1).to(device)
        sigma_B1 = (math.log(SIGMA_MIN) + share_B1 * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
        noisy_BZ = clean_BZ + sigma_B1 * torch.randn(clean_BZ.shape).to(device)
        error_B1 = (self.denoiser(noisy_BZ, sigma_B1) - clean_BZ).square().mean(1, keepdim=True)
        weight_B1 = (1 + sigma_B1.square()) / (SIGMA_MIN + sigma_B1.square())
        loss: Tensor = (error_B1 * weight_B1).mean()
        return loss

    @torch.no_grad()
    def learn_average(self, codes_BLD: Tensor, weight: float) -> None:
        """Moves the average style, and the spread that codes are divided by, towards those of these codes. ``weight`` is the old ones'."""
        mean_LD = codes_BLD.mean(0)
        self.w_avg.copy_(mean_LD.lerp(self.w_avg, weight))
        squares_LD = (codes_BLD - self.w_avg).square().mean(0)
        self.spread.copy_(squares_LD.lerp(self.spread.square(), weight).sqrt().clamp_min(LEAST_SCALE))


def noise_levels(count: int) -> list[float]:
    """Falling noise levels (arXiv:2206.00364, equation 5)."""
    top, bottom = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(top + index / (count - 1) * (bottom - top)) ** RHO for index in range(count)]
