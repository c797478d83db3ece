"""StyleGAN3's running magnitudes: their half-life is in pictures, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from trainer.model.generator import Generator, GeneratorConfig, build_discriminator, build_generator
from trainer.prior.phases import Adversaries
from trainer.prior.settings import PriorSettings

SMALL = GeneratorConfig(
    kind="stylegan3", resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8, magnitude_beta=0.9
)  # fmt: skip


def adversaries(half_life: float | None) -> Adversaries:
    torch.manual_seed(0)
    settings = PriorSettings(generator=SMALL, magnitude_half_life=half_life, style_mixing=0.0)
    return Adversaries(settings, build_generator(SMALL), build_discriminator(SMALL), torch.zeros(()))


def magnitude(generator: Generator) -> float:
    """Of the first layer."""
    first = getattr(generator.synthesis, generator.synthesis.layer_names[0])  # type: ignore[union-attr]
    return float(first.magnitude_ema)


@pytest.mark.parametrize("size", [1, 2, 8])
@torch.no_grad()
def test_after_its_half_life_half_of_the_first_magnitude_is_left(size: int) -> None:
    both = adversaries(8.0)
    powers: list[float] = []
    layer = getattr(both.generator.synthesis, both.generator.synthesis.layer_names[0])
    layer.register_forward_pre_hook(lambda _, inputs: powers.append(float(inputs[0].square().mean())))
    for _ in range(8 // size):
        both.generate(size, update_emas=True)
    wanted = 1.0
    for power in powers:
        wanted = power + (wanted - power) * 0.5 ** (size / 8)
    assert magnitude(both.generator) == pytest.approx(wanted, rel=1e-5)
    mean = sum(powers) / len(powers)
    assert magnitude(both.generator) == pytest.approx((1 + mean) / 2, rel=0.02)  # powers of pictures hardly differ
    assert abs(mean - 1) > 0.1


@torch.no_grad()
def test_without_a_half_life_the_generator_has_its_own_weight() -> None:
    both = adversaries(None)
    both.generate(4, update_emas=True)
    assert getattr(both.generator.synthesis, both.generator.synthesis.layer_names[0]).magnitude_beta == 0.9


@torch.no_grad()
def test_what_does_not_move_the_magnitudes_leaves_them() -> None:
    both = adversaries(8.0)
    both.generate(4)
    assert magnitude(both.generator) == 1.0
