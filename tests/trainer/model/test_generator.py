"""Both StyleGANs: recorded outputs, what their designs promise, and that they can be trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.trainer.model.networks import TINY, TINY2, TINY3R, TINY3T, tiny, tiny_judge
from trainer.model.discriminator import Discriminator, deviation_of_batch
from trainer.model.generator import (
    Generator,
    GeneratorConfig,
    build_generator,
    estimate_w_avg,
    latents,
    weights_sha256,
    widths_of,
)
from trainer.model.parity import TOLERANCE, main, output_differences
from trainer.model.stylegan3 import FilteredConv, StyleGan3Synthesis, bands

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS = sorted(TINY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("fir", ["convolution", "matrix"])
def test_recorded_networks_give_their_outputs(kind: str, grouped: bool, fir: str) -> None:
    found = output_differences(FIXTURES / f"{kind}.safetensors", grouped=grouped, fir=fir)  # type: ignore[arg-type]
    assert {"mapping", "truncation", "image", "image from z"} <= set(found)
    assert ("logits" in found) == (kind == "stylegan2")
    assert max(found.values()) < TOLERANCE


def test_the_parity_command_says_how_far_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(FIXTURES)]) == 0
    assert "largest relative difference" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 2
    assert "holds no .safetensors files" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_w_and_w_plus_give_the_same_picture(kind: str) -> None:
    generator = tiny(TINY[kind])
    w = generator.mapping(latents([0, 1], 8))
    assert w.shape == (2, generator.num_ws, 8)
    with torch.no_grad():
        # W is spread with strides of 0, for which a product may take another kernel
        torch.testing.assert_close(generator.synthesis(w[:, 0]), generator.synthesis(w), rtol=1e-4, atol=1e-5)
        other = w.clone()
        other[:, -1] += 1
        assert not torch.allclose(generator.synthesis(other), generator.synthesis(w), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "resolution", "num_ws", "groups"),
    [
        ("stylegan2", 1024, 18, (range(4), range(4, 8), range(8, 18))),
        ("stylegan2", 256, 14, (range(4), range(4, 8), range(8, 14))),
        ("stylegan3", 256, 16, (range(4), range(4, 8), range(8, 16))),
        ("stylegan2", 32, 8, (range(3), range(3, 6), range(6, 8))),
    ],
)
def test_layer_groups(kind: str, resolution: int, num_ws: int, groups: tuple[range, ...]) -> None:
    config = GeneratorConfig(kind=kind, resolution=resolution, channel_base=64, channel_max=4)  # type: ignore[arg-type]
    with torch.device("meta"):
        generator = build_generator(config)
    assert generator.num_ws == num_ws
    assert generator.layer_groups == groups


def test_published_designs() -> None:
    """Sizes and widths of StyleGAN3-R at 1024 pixels and of StyleGAN2 at 256, as their authors list them."""
    found = [(band.side, band.num_channels) for band in bands(1024, 3, channel_base=65536, channel_max=1024)]
    assert found == [
        *[(36, 1024), (36, 1024), (52, 1024), (52, 1024), (84, 1024), (148, 1024), (148, 1024), (276, 645), (276, 406)],
        *[(532, 256), (1044, 161), (1044, 102), (1044, 64), (1024, 64), (1024, 3)],
    ]
    widths = widths_of(GeneratorConfig(kind="stylegan2", resolution=256, channel_base=16384))
    assert widths == (512, 512, 512, 512, 256, 128, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_pictures(kind: str) -> None:
    z = latents([3], 8)
    with torch.no_grad():
        reference = tiny(TINY[kind], grouped=False, channels_last=False)(z)
        for form in ({"grouped": True}, {"channels_last": True}, {"recompute": True}):
            torch.testing.assert_close(tiny(TINY[kind], **form)(z), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(kind: str) -> None:
    generator = tiny(TINY[kind].model_copy(update={"num_half": 4}))
    z = latents([3], 8)
    with torch.no_grad():
        exact = generator(z)
        generator.use_half(torch.bfloat16)
        rough = generator(z)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_noise_modes() -> None:
    generator = tiny(TINY2)
    z = latents([0, 1], 8)
    with torch.no_grad():
        assert torch.equal(generator(z), generator(z))
        assert not torch.equal(generator(z, noise_mode="random"), generator(z, noise_mode="random"))
        plain = generator(z, noise_mode="none")
        assert not torch.equal(plain, generator(z))
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
        assert torch.equal(generator(z), plain)


def test_latents_do_not_depend_on_their_neighbours() -> None:
    assert torch.equal(latents([5, 6], 8)[1], latents([6], 8)[0])
    assert not torch.equal(latents([5], 8), latents([6], 8))


def _moved(generator: Generator, w: torch.Tensor, right: float, down: float) -> torch.Tensor:
    """The picture whose waves were moved by parts of its width."""
    assert isinstance(generator.synthesis, StyleGan3Synthesis)
    source = generator.synthesis.input
    source.affine.weight.zero_()
    source.affine.bias.copy_(torch.tensor([1.0, 0.0, right, down]))
    return generator.synthesis(w)


@torch.no_grad()
def test_pictures_move_with_the_input() -> None:
    """Equivariance to translation, StyleGAN3 section 2: 8 of 64 pixels to the right, 4 down, and nothing else changes."""
    generator = tiny(TINY3T.model_copy(update={"resolution": 64}))
    w = generator.mapping(latents([0], 8))
    still, moved = _moved(generator, w, 0, 0), _moved(generator, w, 8 / 64, 4 / 64)
    inner = slice(16, 48)
    expected = still[..., 12:44, 8:40]
    error = (moved[..., inner, inner] - expected).square().mean()
    psnr = 10 * math.log10(float(expected.var()) / float(error))
    assert psnr > 30
    unmoved = (still[..., inner, inner] - expected).square().mean()
    assert float(unmoved) > 100 * float(error)


@torch.no_grad()
def test_pictures_turn_with_the_input() -> None:
    """Equivariance to rotation, configuration R: a quarter turn of the waves is a quarter turn of the picture."""
    generator = tiny(TINY3R.model_copy(update={"resolution": 64}))
    assert isinstance(generator.synthesis, StyleGan3Synthesis)
    w = generator.mapping(latents([0], 8))
    still = _moved(generator, w, 0, 0)
    generator.synthesis.input.affine.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0]))
    turned = generator.synthesis(w)
    inner = slice(16, 48)
    expected = still.rot90(1, (2, 3))[..., inner, inner]
    error = (turned[..., inner, inner] - expected).square().mean()
    assert 10 * math.log10(float(expected.var()) / float(error)) > 25


@torch.no_grad()
def test_a_frozen_input_places_every_picture_alike() -> None:
    generator = tiny(TINY3T)
    assert isinstance(generator.synthesis, StyleGan3Synthesis)
    w = generator.mapping(latents([0, 1], 8))[:, 0]
    free = generator.synthesis.input(w)
    assert not torch.allclose(free[0], free[1], atol=1e-3)
    generator.freeze_input()
    frozen = generator.synthesis.input(w)
    torch.testing.assert_close(frozen[0], frozen[1])  # rows of one product; the last may be left over to another kernel
    assert not torch.allclose(frozen[0], free[0], atol=1e-3)
    generator.freeze_input(w[1])
    torch.testing.assert_close(generator.synthesis.input(w)[0], free[1])


def test_magnitudes_follow_in_training_alone() -> None:
    generator = tiny(TINY3T)
    assert isinstance(generator.synthesis, StyleGan3Synthesis)
    layer = generator.synthesis.get_submodule(generator.synthesis.layer_names[0])
    assert isinstance(layer, FilteredConv)
    with torch.no_grad():
        w = generator.mapping(latents([0], 8))
        power = generator.synthesis.input(w[:, 0]).square().mean()
        generator(latents([0], 8))
        assert float(layer.magnitude_ema) == pytest.approx(1.3)
        generator(latents([0], 8), update_emas=True)
    assert float(layer.magnitude_ema) == pytest.approx(0.999 * 1.3 + 0.001 * float(power), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_gets_a_gradient(kind: str, recompute: bool) -> None:
    generator = tiny(TINY[kind], recompute=recompute)
    generator(latents([0, 1], 8)).square().mean().backward()
    without = [name for name, one in generator.named_parameters() if one.grad is None or not bool(one.grad.any())]
    assert without == []


def test_recomputing_changes_no_gradient() -> None:
    found = []
    for recompute in (False, True):
        generator = tiny(TINY3T, recompute=recompute)
        generator(latents([0], 8)).square().mean().backward()
        found.append({name: one.grad for name, one in generator.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_path_lengths_can_be_learned_from(kind: str) -> None:
    """The penalty of StyleGAN2, section 3.2, needs the gradient of a gradient."""
    generator = tiny(TINY[kind])
    ws = generator.mapping(latents([0, 1], 8)).detach().requires_grad_()
    pictures = generator.synthesis(ws)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0)) / pictures.shape[2]
    (slope,) = torch.autograd.grad((pictures * noise).sum(), ws, create_graph=True)
    slope.square().sum(2).mean(1).sqrt().var().backward()
    kernels = [one.grad for one in generator.synthesis.parameters() if one.ndim == 4]
    assert len(kernels) == (8 if kind == "stylegan2" else 15)
    assert all(one is not None and bool(one.any()) and bool(one.isfinite().all()) for one in kernels)


def test_r1_penalty_is_the_derivative_that_differences_show() -> None:
    judge = tiny_judge(TINY2)
    pictures = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def penalty() -> torch.Tensor:
        (slope,) = torch.autograd.grad(judge(pictures).sum(), pictures, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()

    weight = judge.get_parameter("b8.conv0.weight")
    (exact,) = torch.autograd.grad(penalty(), weight)
    direction = exact / exact.norm()
    step = 1e-3  # so short that hardly a value crosses 0, where the slope jumps, and not so short that rounding shows
    with torch.no_grad():
        weight += step * direction
    above = penalty().detach()
    with torch.no_grad():
        weight -= 2 * step * direction
    below = penalty().detach()
    assert float(exact.norm()) == pytest.approx(float(above - below) / (2 * step), rel=2e-2)


def test_deviation_of_a_batch_by_hand() -> None:
    x = torch.zeros(4, 1, 2, 2)
    x[0], x[2] = 1.0, 3.0  # with groups of 2, samples 0 and 2 are one group, 1 and 3 the other
    found = deviation_of_batch(x, 2)
    assert found.shape == (4, 1, 2, 2)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([1.0, 1e-4, 1.0, 1e-4], rel=1e-4)
    with pytest.raises(ValueError, match="a batch of 6 cannot be divided into groups of 4"):
        deviation_of_batch(torch.zeros(6, 1, 2, 2), 4)


def test_labels_reach_the_logits() -> None:
    torch.manual_seed(0)
    judge = Discriminator(3, 16, 3, (8, 8, 8), mapping_layers=2)
    pictures = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    logits = judge(pictures, torch.eye(3)).detach()
    assert logits.shape == (3, 1)
    assert float((logits[0] - logits[1]).abs()) > 1e-4


def test_every_parameter_of_the_discriminator_gets_a_gradient() -> None:
    judge = tiny_judge(TINY2)
    judge(torch.randn(4, 3, 16, 16)).mean().backward()
    assert [name for name, one in judge.named_parameters() if one.grad is None or not bool(one.grad.any())] == []


def test_the_average_style_is_estimated_the_same_every_time() -> None:
    generator = tiny(TINY2)
    found = estimate_w_avg(generator.mapping, 2000)
    assert torch.equal(found, estimate_w_avg(generator.mapping, 2000))
    z = torch.randn(4000, 8, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(found, generator.mapping(z)[:, 0].mean(0).detach(), atol=0.1, rtol=0)


def test_equal_weights_have_an_equal_sum() -> None:
    assert weights_sha256(tiny(TINY2)) == weights_sha256(tiny(TINY2, grouped=True))
    assert weights_sha256(tiny(TINY2)) != weights_sha256(tiny(TINY2, seed=1))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "stylegan2", "resolution": 48}, "48 is no power of two"),
        ({"kind": "stylegan2", "resolution": 16, "widths": (4, 4)}, "takes 3"),
        ({"kind": "stylegan3", "resolution": 64, "num_critical": 13}, "leaves too few of 14"),
        ({"kind": "stylegan3", "resolution": 64, "first_cutoff": 40.0}, "not below first_stopband"),
        ({"kind": "stylegan3", "resolution": 4096, "num_layers": 4}, "take more layers"),
    ],
)
def test_configs_that_design_nothing_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GeneratorConfig.model_validate(values)


def test_state_dicts_have_the_published_names() -> None:
    two, three = tiny(TINY2).state_dict(), tiny(TINY3T).state_dict()
    assert {"mapping.fc0.weight", "synthesis.b4.const", "synthesis.b16.torgb.affine.bias"} <= set(two)
    assert {"synthesis.input.freqs", "synthesis.L0_36_8.magnitude_ema", "synthesis.L14_16_3.weight"} <= set(three)
