"""Mapping, truncation and modulated convolution against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from trainer.model.layers import EqualLinear, MappingNetwork, modulated_conv, styles_of_layers, truncate, unit_rms


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equalised_linear_layer_by_hand() -> None:
    layer = EqualLinear(2, 1, lr_multiplier=0.5, initial_bias=3.0, rectified=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -4.0]]))
    found = layer(torch.tensor([[1.0, 1.0], [10.0, 0.0], [0.0, 10.0]]))[:, 0]
    scaled = [3 + 0.5 / math.sqrt(2) * x for x in (-2.0, 20.0, -40.0)]
    expected = [math.sqrt(2) * (x if x > 0 else 0.2 * x) for x in scaled]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_latents_of_any_length_map_to_the_same_style() -> None:
    mapping = MappingNetwork(8, 0, 4, 3, num_layers=2)
    z = _random(5, 8)
    torch.testing.assert_close(mapping(z), mapping(z * 7), rtol=1e-4, atol=1e-5)
    assert mapping(z).shape == (5, 3, 4)
    torch.testing.assert_close(unit_rms(z).square().mean(1), torch.ones(5))


def test_truncation_moves_the_first_layers_towards_the_average() -> None:
    ws, average = _random(2, 4, 3), _random(3, seed=1)
    near = truncate(ws, average, 0.7, cutoff=3)
    torch.testing.assert_close(near[:, :3], average + 0.7 * (ws[:, :3] - average))
    assert torch.equal(near[:, 3:], ws[:, 3:])
    torch.testing.assert_close(truncate(ws, average, 0.0), average.expand_as(ws))


def test_the_average_style_follows_in_training_alone() -> None:
    mapping = MappingNetwork(8, 0, 4, 3, num_layers=2, w_avg_beta=0.75)
    z = _random(6, 8)
    w = mapping(z)[:, 0]
    assert torch.equal(mapping.w_avg, torch.zeros(4))
    mapping(z, update_emas=True)
    torch.testing.assert_close(mapping.w_avg, 0.25 * w.detach().mean(0))


def test_labels_choose_the_style() -> None:
    mapping = MappingNetwork(8, 3, 4, 2, num_layers=2)
    z = _random(1, 8).expand(3, -1)
    w = mapping(z, torch.eye(3))[:, 0]
    assert torch.cdist(w, w)[0, 1] > 1e-3
    with pytest.raises(ValueError, match=r"conditional: give labels c of shape \(batch, 3\)"):
        mapping(z)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
def test_modulated_convolution_is_its_formula(up: int, demodulate: bool, grouped: bool) -> None:
    x, weight, style = _random(3, 4, 6, 6), _random(5, 4, 3, 3, seed=1), _random(3, 4, seed=2)
    padding = 1 if up == 1 else 0
    gain = torch.tensor(0.5)
    found = modulated_conv(x, weight, style, demodulate=demodulate, padding=padding, up=up, gain=gain, grouped=grouped)
    for sample in range(3):
        kernel = weight * style[sample, None, :, None, None]  # equation 1
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # equation 3
        if up == 1:
            expected = functional.conv2d(x[sample : sample + 1], kernel, padding=1)
        else:
            expected = functional.conv_transpose2d(x[sample : sample + 1], kernel.transpose(0, 1), stride=2)
        torch.testing.assert_close(found[sample : sample + 1], expected * 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    x, weight, style = _random(2, 64, 8, 8), _random(8, 64, 3, 3, seed=1) * 300, _random(2, 64, seed=2) * 3000
    exact = modulated_conv(x, weight, style, padding=1)
    rough = modulated_conv(x.to(dtype), weight, style, padding=1)
    assert rough.dtype == dtype
    assert float((rough.float() - exact).abs().max()) < 0.06 * float(exact.abs().max())


def test_styles_of_other_shapes_are_refused() -> None:
    w = _random(2, 4)
    assert torch.equal(styles_of_layers(w, 3, 4)[:, 2], w)
    for wrong in (_random(2, 5), _random(2, 4, 4), _random(4)):
        with pytest.raises(ValueError, match=r"give W of shape \(batch, 4\) or W\+ of shape \(batch, 3, 4\)"):
            styles_of_layers(wrong, 3, 4)


def test_styles_are_whole_under_autocast_and_truncated_as_without() -> None:
    mapping = MappingNetwork(8, 0, 4, 3, num_layers=2)
    wanted = mapping(_random(5, 8), truncation_psi=0.7, update_emas=True)
    average = mapping.w_avg.clone()
    mapping.w_avg.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mapping(_random(5, 8), truncation_psi=0.7, update_emas=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(mapping.w_avg, average)
