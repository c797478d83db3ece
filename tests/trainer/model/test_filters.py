"""Filters against scipy's own, and against what a low-pass filter is for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from trainer.model.filters import (
    binomial_filter,
    blur,
    downsample,
    downsampling_matrix,
    low_pass,
    upsample,
    upsampling_matrix,
)


def _scipy(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int]) -> np.ndarray:
    """Zeros between, padding or cutting, a full 2-D convolution of which the inner part counts, every n-th sample."""
    side = x.shape[-1] * up
    wide = np.zeros((side, side))
    wide[::up, ::up] = x.numpy()
    before, after = padding
    wide = np.pad(wide, [(max(before, 0), max(after, 0))] * 2)
    wide = wide[max(-before, 0) : len(wide) - max(-after, 0), max(-before, 0) : len(wide) - max(-after, 0)]
    kernel = taps.numpy() if taps.ndim == 2 else np.outer(taps.numpy(), taps.numpy())
    return scipy.signal.convolve2d(wide, kernel, mode="valid")[::down, ::down]


@pytest.mark.parametrize("padding", [(0, 0), (3, 2), (9, 12), (-2, 4), (5, -3)])
@pytest.mark.parametrize("radial", [False, True])
def test_upsampling_is_scipys(padding: tuple[int, int], radial: bool) -> None:
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    lopsided = torch.arange(1.0, 7.0) if not radial else torch.arange(36.0).reshape(6, 6)
    found = upsample(x, lopsided, 2, padding)
    for sample in range(2):
        for channel in range(3):
            np.testing.assert_allclose(
                found[sample, channel].numpy(),
                4 * _scipy(x[sample, channel], lopsided, 2, 1, padding),
                rtol=2e-5,
                atol=1e-3,
            )


@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (-1, 3)])
@pytest.mark.parametrize("radial", [False, True])
def test_downsampling_is_scipys(padding: tuple[int, int], radial: bool) -> None:
    x = torch.randn(1, 2, 13, 13, generator=torch.Generator().manual_seed(0))
    lopsided = torch.arange(1.0, 6.0) if not radial else torch.arange(25.0).reshape(5, 5)
    found = downsample(x, lopsided, 2, padding)
    for channel in range(2):
        expected = _scipy(x[0, channel], lopsided, 1, 2, padding)
        np.testing.assert_allclose(found[0, channel].numpy(), expected, rtol=2e-5, atol=1e-3)


def test_matrices_do_what_convolutions_do() -> None:
    x = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    taps = torch.arange(1.0, 13.0) / 78
    up = upsampling_matrix(10, taps, 2, (7, 6))
    torch.testing.assert_close(up @ x @ up.T, upsample(x, taps, 2, (7, 6)))
    down = downsampling_matrix(10, taps[:5], 2)
    torch.testing.assert_close(down @ x @ down.T, downsample(x, taps[:5], 2))


def test_a_constant_keeps_its_brightness() -> None:
    x = torch.full((1, 1, 8, 8), 0.7)
    inner = upsample(x, binomial_filter(), 2, (2, 1))[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


@pytest.mark.parametrize("radial", [False, True])
def test_low_pass_passes_what_is_low_and_stops_what_is_high(radial: bool) -> None:
    taps = low_pass(48, cutoff=8, width=8, rate=64, radial=radial).double().numpy()
    line = taps.sum(0) if radial else taps  # a slice through the middle of the spectrum
    frequencies, response = scipy.signal.freqz(line, fs=64, worN=512)
    gain = np.abs(response)
    assert taps.sum() == pytest.approx(1, abs=1e-6)
    assert gain[frequencies < 4].min() == pytest.approx(1, abs=0.02)
    assert gain[frequencies > 12].max() < 0.02
    np.testing.assert_allclose(taps, np.flip(taps), atol=1e-7)


def test_the_radial_filter_is_equal_in_all_directions() -> None:
    taps = low_pass(24, cutoff=8, width=8, rate=64, radial=True).double().numpy()
    spectrum = np.abs(np.fft.fft2(taps, (512, 512)))
    straight = spectrum[0, 80]  # 80 of 512 bins along one axis, and as far along the diagonal
    diagonal = spectrum[57, 56]
    assert straight == pytest.approx(diagonal, abs=0.01)
    separable = low_pass(24, cutoff=8, width=8, rate=64).double().numpy()
    square = np.abs(np.fft.fft2(np.outer(separable, separable), (512, 512)))
    assert abs(square[0, 80] - square[57, 56]) > 0.1


def test_one_tap_is_no_filter() -> None:
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(upsample(x, low_pass(1, 2, 2, 16), 1, (0, 0)), x)


def test_a_blurred_dot_is_half_as_bright_at_the_half_width() -> None:
    dot = torch.zeros(2, 3, 41, 41)
    dot[:, :, 20, 20] = 1
    found = blur(dot, 4.0)
    assert found.shape == dot.shape
    middle = found[0, 0, 20, 20]
    assert float(found[0, 0, 20, 24] / middle) == pytest.approx(0.5, rel=1e-4)
    assert float(found[0, 0, 16, 16] / middle) == pytest.approx(0.25, rel=1e-4)
    assert float(found[1, 2].sum()) == pytest.approx(1, rel=1e-4)
    assert float(found[0, 0, 20, 33]) == 0  # it ends after three half widths
    assert torch.equal(blur(dot, 0.3), dot)
    flat = blur(torch.ones(1, 1, 9, 9), 1.0)
    assert float(flat[0, 0, 4, 4]) == pytest.approx(1, rel=1e-5)
    assert float(flat[0, 0, 0, 4]) < 0.8  # what is outside is 0
