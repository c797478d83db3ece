"""The mapping to W+: what it draws is what it has learned."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from trainer.model.code_mapping import NUM_STEPS, SIGMA_MAX, SIGMA_MIN, CodeMapping, noise_levels
from trainer.model.generator import GeneratorConfig, build_generator

NUM_WS, W_DIM = 2, 3


def two_groups(count: int) -> torch.Tensor:
    """(count, L, D): a third of the codes lies near 5, the others near -1, each with a standard deviation of 0.5."""
    codes = -torch.ones(count, NUM_WS, W_DIM)
    codes[: count // 3] = 5
    return codes + 0.5 * torch.randn(codes.shape)


@pytest.fixture(scope="module")
def learned() -> CodeMapping:
    torch.manual_seed(0)
    mapping = CodeMapping(W_DIM, NUM_WS, width=64, num_layers=2)
    optimizer = torch.optim.Adam(mapping.parameters(), 3e-3)
    for _ in range(50):
        mapping.learn_average(two_groups(30), 0.9)
    for _ in range(600):
        optimizer.zero_grad()
        mapping.loss(two_groups(30), 8).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return mapping.requires_grad_(False)


def test_draws_have_the_distribution_of_the_codes(learned: CodeMapping) -> None:
    drawn = learned(torch.randn(1000, learned.z_dim, generator=torch.Generator().manual_seed(1)))
    assert drawn.shape == (1000, NUM_WS, W_DIM)
    high, low = (drawn > 3).all((1, 2)), (drawn < 1).all((1, 2))
    assert 0.23 < float(high.float().mean()) < 0.43
    assert float((high | low).float().mean()) > 0.95
    assert 0.25 < float(drawn[high].std(0).mean()) < 0.75


def test_a_latent_gives_its_own_code_and_its_neighbours_are_near(learned: CodeMapping) -> None:
    z = torch.randn(50, learned.z_dim, generator=torch.Generator().manual_seed(2))
    drawn = learned(z)
    torch.testing.assert_close(learned(z[7:8]), drawn[7:8], rtol=1e-4, atol=1e-4)
    assert float((learned(z + 1e-4) - drawn).abs().median()) < 1e-2


def test_the_average_is_that_of_the_codes_and_the_target_of_truncation(learned: CodeMapping) -> None:
    codes = two_groups(3000)
    torch.testing.assert_close(learned.w_avg, codes.mean(0), rtol=0, atol=0.3)
    torch.testing.assert_close(learned.spread, codes.std(0), rtol=0, atol=0.3)
    z = torch.randn(4, learned.z_dim)
    torch.testing.assert_close(learned(z, truncation_psi=0.0), learned.w_avg.expand(4, -1, -1))
    half = learned(z, truncation_psi=0.5, truncation_cutoff=1)
    torch.testing.assert_close(half[:, 0], (learned(z)[:, 0] + learned.w_avg[0]) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half[:, 1], learned(z)[:, 1])


def test_noise_levels_fall_from_the_most_to_the_least() -> None:
    levels = noise_levels(NUM_STEPS)
    assert levels == sorted(levels, reverse=True)
    assert (levels[0], levels[-1]) == pytest.approx((SIGMA_MAX, SIGMA_MIN))


def test_a_generator_of_codes_has_latents_of_their_size() -> None:
    plain = GeneratorConfig(kind="stylegan2", resolution=16, z_dim=8, w_dim=4, widths=(4, 4, 4), code_width=16)
    config = plain.with_codes()
    generator = build_generator(config)
    assert (config.num_ws, config.z_dim) == (6, 24) == (generator.num_ws, generator.z_dim)
    assert generator(torch.randn(2, 24)).shape == (2, 3, 16, 16)
    assert GeneratorConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="styles w_plus: give z_dim 24"):
        GeneratorConfig.model_validate({**plain.model_dump(), "styles": "w_plus"})


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_a_config_knows_how_many_layers_take_a_style(kind: str) -> None:
    config = GeneratorConfig.model_validate(
        {"kind": kind, "resolution": 32, "w_dim": 8, "channel_base": 64, "channel_max": 8}
    )
    assert build_generator(config).num_ws == config.num_ws
