"""Tiny networks whose every number matters: nothing stays at the zero or one that it starts with."""

from __future__ import annotations

import torch
from torch import nn

from trainer.model.discriminator import Discriminator
from trainer.model.generator import Generator, GeneratorConfig, build_discriminator, build_generator

TINY2 = GeneratorConfig(
    kind="stylegan2", resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8
)
TINY3T = GeneratorConfig(
    kind="stylegan3", resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8, conv_clamp=256
)
TINY3R = TINY3T.model_copy(update={"conv_kernel": 1, "radial_filters": True})
TINY = {"stylegan2": TINY2, "stylegan3-t": TINY3T, "stylegan3-r": TINY3R}


def stirred(network: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, averages, strengths and magnitudes moved away from where they start. Returns ``network``."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("magnitude_ema"):
                tensor.fill_(1.3)
            elif name.endswith("noise_strength"):
                tensor.fill_(0.1)
            elif name.endswith("input.affine.weight"):
                tensor.copy_(torch.randn(tensor.shape, generator=source) * 0.1)
            elif name.endswith(("bias", "w_avg")):
                tensor.add_(torch.randn(tensor.shape, generator=source) * 0.1)
    return network


def tiny(config: GeneratorConfig, seed: int = 0, **form: bool) -> Generator:
    torch.manual_seed(seed)
    generator = build_generator(config, **form)  # type: ignore[arg-type]
    stirred(generator)
    return generator.eval()


def tiny_judge(config: GeneratorConfig, seed: int = 1) -> Discriminator:
    torch.manual_seed(seed)
    judge = build_discriminator(config)
    stirred(judge)
    return judge.eval()
