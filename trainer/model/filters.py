"""Finite impulse response filters on pictures: the design of low-pass filters, and up- and downsampling with them.

Equations: StyleGAN3 (arXiv:2106.12423), section 3 and appendix C. Plain PyTorch, differentiable any number of times.

Shape suffixes: B batch, C channels, H W rows and columns, K taps of a filter.
"""

from __future__ import annotations

import numpy as np
import scipy.signal
import scipy.special
import torch
from torch import Tensor
from torch.nn import functional

BINOMIAL_TAPS = (1.0, 3.0, 3.0, 1.0)
"""StyleGAN2's filter, before it is divided by its sum."""


def binomial_filter() -> Tensor:
    """(4, 4): StyleGAN2's resampling filter, its sum 1."""
    taps = torch.tensor(BINOMIAL_TAPS) / sum(BINOMIAL_TAPS)
    return torch.outer(taps, taps)


def low_pass(num_taps: int, cutoff: float, width: float, rate: float, *, radial: bool = False) -> Tensor:
    """Taps of a Kaiser-windowed low-pass filter, their sum 1: (K,), used along both axes, or (K, K) if ``radial``.

    ``cutoff``, the width of the transition band ``width`` and the sampling rate ``rate`` are in cycles per picture width. The radial
    filter is a jinc, equal in all directions (StyleGAN3-R). One tap is the identity.
    """
    if num_taps == 1:
        return torch.ones(1)
    if not radial:
        taps = scipy.signal.firwin(num_taps, cutoff=cutoff, width=width, fs=rate)
        return torch.tensor(np.asarray(taps, dtype=np.float32))
    at = (np.arange(num_taps) - (num_taps - 1) / 2) / rate
    radius = np.maximum(np.hypot(*np.meshgrid(at, at)), 1e-12)  # an odd number of taps has one in the middle
    jinc = scipy.special.j1(2 * np.pi * cutoff * radius) / (np.pi * radius)
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(num_taps, width / (rate / 2)))
    window = np.kaiser(num_taps, beta)
    taps = jinc * np.outer(window, window)
    return torch.tensor((taps / taps.sum()).astype(np.float32))


def upsample(x_BCHW: Tensor, taps: Tensor, factor: int, padding: tuple[int, int], gain: float = 1.0) -> Tensor:
    """Inserts ``factor - 1`` zeros after every pixel and row, then convolves with ``taps``.

    ``taps`` is (K,) for both axes or (K, K). ``padding`` (before, after) counts pixels of the result, along both axes;
    negative ones cut off. Sides become ``side * factor + before + after - K + 1``. ``gain`` times ``factor`` squared
    multiplies the result, so that a gain of 1 keeps the brightness.
    """
    taps = taps.to(x_BCHW.dtype)
    if taps.ndim == 2:
        return _upsample_once(x_BCHW, taps * (gain * factor**2), (factor, factor), padding)
    rows = _upsample_once(x_BCHW, taps[:, None] * (gain * factor**2), (factor, 1), padding)
    return _upsample_once(rows, taps[None, :], (1, factor), padding)


def downsample(x_BCHW: Tensor, taps: Tensor, factor: int, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Convolves with ``taps``, (K,) for both axes or (K, K), and keeps every ``factor``-th pixel and row.

    ``padding`` (before, after) adds zeros along both axes, or cuts off where negative. Sides become
    ``(side + before + after - K) // factor + 1``.
    """
    taps = taps.to(x_BCHW.dtype)
    if padding != (0, 0):
        x_BCHW = functional.pad(x_BCHW, (*padding, *padding))
    if taps.ndim == 2:
        return _downsample_once(x_BCHW, taps, (factor, factor))
    return _downsample_once(_downsample_once(x_BCHW, taps[:, None], (factor, 1)), taps[None, :], (1, factor))


def blur(x_BCHW: Tensor, half_width: float) -> Tensor:
    """Gaussian blur. The Gaussian is half as high at ``half_width`` pixels from its middle. Sides are kept; the outside counts as 0.

    The standard deviation is ``half_width`` / sqrt(2 ln 2). The kernel ends after three half widths; a half width below a third of a pixel
    changes nothing.
    """
    reach = int(3 * half_width)
    if reach == 0:
        return x_BCHW
    offsets_K = torch.arange(-reach, reach + 1, device=x_BCHW.device, dtype=torch.float32)
    taps_K = torch.exp2(-((offsets_K / half_width) ** 2))
    return downsample(x_BCHW, taps_K / taps_K.sum(), 1, padding=(reach, reach))


def _upsample_once(x_BCHW: Tensor, taps_KK: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    num_channels = x_BCHW.shape[1]
    # the transposed convolution returns the full result; the padding selects a window of it
    weight = taps_KK.expand(num_channels, 1, *taps_KK.shape)
    full = functional.conv_transpose2d(x_BCHW, weight, stride=stride, groups=num_channels)
    cuts: list[int] = []
    for axis in (1, 0):  # functional.pad starts with the last axis
        size, taps = x_BCHW.shape[2 + axis], taps_KK.shape[axis]
        if taps == 1 and stride[axis] == 1:
            cuts += [0, 0]
            continue
        start = taps - 1 - padding[0]
        wanted = size * stride[axis] + sum(padding) - taps + 1
        cuts += [-start, start + wanted - full.shape[2 + axis]]
    return functional.pad(full, cuts) if any(cuts) else full


def _downsample_once(x_BCHW: Tensor, taps_KK: Tensor, stride: tuple[int, int]) -> Tensor:
    num_channels = x_BCHW.shape[1]
    weight = taps_KK.flip((0, 1)).expand(num_channels, 1, *taps_KK.shape)  # conv2d correlates
    return functional.conv2d(x_BCHW, weight, stride=stride, groups=num_channels)


def upsampling_matrix(side: int, taps_K: Tensor, factor: int, padding: tuple[int, int]) -> Tensor:
    """(new side, side): what ``upsample`` does along one axis, as a matrix, with its gain of ``factor``."""
    units = torch.eye(side).reshape(side, 1, side, 1)
    return _upsample_once(units, (taps_K * factor)[:, None], (factor, 1), padding)[:, 0, :, 0].T.contiguous()


def downsampling_matrix(side: int, taps_K: Tensor, factor: int) -> Tensor:
    """(new side, side): what ``downsample`` does along one axis without padding, as a matrix."""
    units = torch.eye(side).reshape(side, 1, side, 1)
    return _downsample_once(units, taps_K[:, None], (factor, 1))[:, 0, :, 0].T.contiguous()
