"""StyleGAN3's synthesis network: signals that are band limited everywhere, so that pictures have no fixed grid.

Equations: StyleGAN3 (arXiv:2106.12423), sections 2 and 3, appendices C and F. Kernels of 3x3 and separable filters are
configuration T (translation), 1x1 and radial filters configuration R (rotation). Rates, cutoffs and half-widths are in
cycles per picture width. The state dict has the names of the published StyleGAN3 files.

Shape suffixes: B batch, C channels, H W rows and columns, D numbers of a style, L layers that take a style each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.model.filters import downsample, downsampling_matrix, low_pass, upsample, upsampling_matrix
from trainer.model.layers import GAIN, EqualLinear, activate, modulated_conv, styles_of_layers

FirForm = Literal["convolution", "matrix"]
"""Form of separable filters: depthwise convolutions, or products with a banded matrix for each axis."""


@dataclass(frozen=True, slots=True)
class Band:
    """Band and size of the signal between two layers."""

    cutoff: float
    half_width: float
    """Half width of the transition band above the cutoff."""
    rate: int
    """Samples per picture width."""
    side: int
    """Rows and columns, with the margin around the picture."""
    num_channels: int


def bands(
    resolution: int,
    num_colours: int,
    *,
    channel_base: int,
    channel_max: int,
    num_layers: int = 14,
    num_critical: int = 2,
    first_cutoff: float = 2.0,
    first_stopband: float = 2**2.1,
    last_stopband_rel: float = 2**0.3,
    margin: int = 10,
) -> list[Band]:
    """The bands of ``num_layers + 1`` signals: the outputs of the layers, of which the last is the picture (appendix C.1).

    Cutoff and stopband grow geometrically up to the last ``num_critical`` layers, which sample critically.
    """
    signals = []
    last_cutoff = resolution / 2
    last_stopband = last_cutoff * last_stopband_rel
    for index in range(num_layers + 1):
        exponent = min(index / (num_layers - num_critical), 1.0)
        cutoff = first_cutoff * (last_cutoff / first_cutoff) ** exponent
        stopband = first_stopband * (last_stopband / first_stopband) ** exponent
        rate = int(2 ** math.ceil(math.log2(min(stopband * 2, resolution))))
        half_width = max(stopband, rate / 2) - cutoff
        is_last = index >= num_layers - 1
        num_channels = max(1, round(min(channel_base / 2 / cutoff, channel_max)))
        signals.append(
            Band(
                cutoff=cutoff,
                half_width=half_width,
                rate=rate,
                side=resolution if is_last else rate + 2 * margin,
                num_channels=num_colours if index == num_layers else num_channels,
            )
        )
    return signals


class FourierInput(nn.Module):
    """(B, D) -> (B, C, side, side): waves with random directions and phases within the band, then a 1x1 convolution (appendix F).

    The style rotates and moves the waves by (cos, sin, x, y). ``transform`` (3, 3) does the same for all pictures, in units of the
    picture's width; the picture moves by its inverse. ``frozen_w_D``, if set, replaces every style.
    """

    freqs: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, w_dim: int, num_channels: int, side: int, rate: float, bandwidth: float) -> None:
        super().__init__()
        self.num_channels, self.side, self.rate, self.bandwidth = num_channels, side, rate, bandwidth
        angles, radii = torch.rand(num_channels) * 2 * math.pi, torch.rand(num_channels).sqrt() * bandwidth
        freqs = torch.stack([radii * angles.cos(), radii * angles.sin()], 1)  # evenly within the band's disc
        self.weight = nn.Parameter(torch.randn(num_channels, num_channels))
        self.affine = EqualLinear(w_dim, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand(num_channels) - 0.5)
        self.frozen_w_D: Tensor | None = None

    def forward(self, w_BD: Tensor) -> Tensor:
        if self.frozen_w_D is not None:
            w_BD = self.frozen_w_D.to(w_BD).expand(len(w_BD), -1)
        inverse_B33 = self._style_transform(w_BD) @ self.transform
        phases_BC = self.phases + (self.freqs @ inverse_B33[:, :2, 2:]).squeeze(2)
        freqs_BC2 = self.freqs @ inverse_B33[:, :2, :2]
        # waves that a transform moves out of the band are attenuated
        above = freqs_BC2.norm(dim=2) - self.bandwidth
        amplitudes_BC = (1 - above / (self.rate / 2 - self.bandwidth)).clamp(0, 1)
        half_side = 0.5 * self.side / self.rate  # in picture widths
        positions = (torch.arange(self.side, device=w_BD.device) + 0.5) * (2 * half_side / self.side) - half_side
        columns, rows = freqs_BC2[:, :, 0, None] * positions, freqs_BC2[:, :, 1, None] * positions
        angles_BCHW = rows[:, :, :, None] + columns[:, :, None, :] + phases_BC[:, :, None, None]
        waves_BCHW = (2 * math.pi * angles_BCHW).sin() * amplitudes_BC[:, :, None, None]
        mix = self.weight / math.sqrt(self.num_channels)
        return functional.conv2d(waves_BCHW, mix[:, :, None, None])

    def _style_transform(self, w_BD: Tensor) -> Tensor:
        """(B, 3, 3): rotation, then translation, both inverted, because the transform acts on the sampling grid."""
        raw_B4 = self.affine(w_BD)
        cos, sin, right, down = (raw_B4 / raw_B4[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).reshape(-1, 3, 3)
        translation = torch.stack([one, zero, -right, zero, one, -down, zero, zero, one], 1).reshape(-1, 3, 3)
        return rotation @ translation


class FilteredConv(nn.Module):
    """Modulated convolution, bias, and a rectifier between up- and downsampling: (B, I, H, W) -> (B, O, H', W').

    A rectifier creates unlimited frequencies. It runs at ``oversampling`` times the higher rate, and the filter after it removes the
    frequencies that the new rate cannot represent (section 3, figure 2). The last layer, to colours, has no rectifier.
    """

    up_filter: Tensor
    down_filter: Tensor
    magnitude_ema: Tensor
    up_matrix: Tensor
    down_matrix: Tensor

    def __init__(
        self,
        w_dim: int,
        source: Band,
        target: Band,
        *,
        kernel: int,
        to_picture: bool,
        radial: bool,
        filter_size: int = 6,
        oversampling: int = 2,
        clamp: float | None = 256.0,
        magnitude_beta: float = 0.999,
        fir: FirForm = "convolution",
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.to_picture, self.kernel, self.clamp = to_picture, 1 if to_picture else kernel, clamp
        self.magnitude_beta, self.grouped = magnitude_beta, grouped
        self.affine = EqualLinear(w_dim, source.num_channels, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(target.num_channels, source.num_channels, self.kernel, self.kernel))
        self.bias = nn.Parameter(torch.zeros(target.num_channels))
        self.register_buffer("magnitude_ema", torch.ones(()))

        rate = max(source.rate, target.rate) * (1 if to_picture else oversampling)
        self.up, self.down = rate // source.rate, rate // target.rate
        num_up = filter_size * self.up if self.up > 1 and not to_picture else 1
        num_down = filter_size * self.down if self.down > 1 and not to_picture else 1
        up_filter = low_pass(num_up, source.cutoff, source.half_width * 2, rate)
        down_filter = low_pass(num_down, target.cutoff, target.half_width * 2, rate, radial=radial)
        self.register_buffer("up_filter", up_filter, persistent=False)
        self.register_buffer("down_filter", down_filter, persistent=False)

        convolved_side = source.side + self.kernel - 1
        upsampled_side = (target.side - 1) * self.down + num_down  # what the down filter reads
        padding = upsampled_side - convolved_side * self.up + num_up - 1
        before = (padding + self.up) // 2
        self.padding = (before, padding - before)
        by_matrix = fir == "matrix" and num_up > 1 and down_filter.ndim == 1
        self.by_matrix = by_matrix
        if by_matrix:
            up_matrix = upsampling_matrix(convolved_side, up_filter, self.up, self.padding)
            self.register_buffer("up_matrix", up_matrix, persistent=False)
            down_matrix = downsampling_matrix(upsampled_side, down_filter, self.down)
            self.register_buffer("down_matrix", down_matrix, persistent=False)

    def forward(self, x: Tensor, w_BD: Tensor, *, update_emas: bool = False, recompute: bool = False) -> Tensor:
        if update_emas:
            power = x.detach().float().square().mean()
            self.magnitude_ema.copy_(power.lerp(self.magnitude_ema, self.magnitude_beta))
        style_BI = self.affine(w_BD)
        if self.to_picture:
            style_BI = style_BI / math.sqrt(self.weight[0].numel())
        x = modulated_conv(
            x,
            self.weight,
            style_BI,
            demodulate=not self.to_picture,
            padding=self.kernel - 1,
            gain=self.magnitude_ema.rsqrt(),
            grouped=self.grouped,
        )
        if recompute:
            return checkpoint(self._filtered, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self._filtered(x)

    def _filtered(self, x: Tensor) -> Tensor:
        x = x + self.bias.to(x.dtype)[:, None, None]
        if self.to_picture:
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        if self.by_matrix:
            up, down = self.up_matrix.to(x.dtype), self.down_matrix.to(x.dtype)
            return down @ activate(up @ x @ up.T, GAIN, self.clamp) @ down.T
        x = upsample(x, self.up_filter, self.up, self.padding)
        return downsample(activate(x, GAIN, self.clamp), self.down_filter, self.down)


class StyleGan3Synthesis(nn.Module):
    """Styles to pictures: W (B, D) or W+ (B, L, D) -> (B, colours, resolution, resolution), about -1..1.

    ``signals`` come from ``bands``. ``half_dtype`` (None: float32) is the number type of layers with a rate above
    ``resolution / 2**num_half``. ``recompute`` saves memory in training: the activations between up- and downsampling are computed again
    for the gradient. ``fir``, ``grouped`` and ``channels_last`` change speed only.
    """

    def __init__(
        self,
        w_dim: int,
        signals: list[Band],
        *,
        num_critical: int = 2,
        kernel: int = 3,
        radial: bool = False,
        filter_size: int = 6,
        oversampling: int = 2,
        output_scale: float = 0.25,
        num_half: int = 0,
        clamp: float | None = 256.0,
        magnitude_beta: float = 0.999,
        fir: FirForm = "convolution",
        grouped: bool = False,
        channels_last: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        last = len(signals) - 1
        self.w_dim, self.resolution, self.num_colours = w_dim, signals[last].side, signals[last].num_channels
        self.signals, self.output_scale, self.num_half = tuple(signals), output_scale, num_half
        self.num_ws = last + 2
        self.half_dtype: torch.dtype | None = None
        self.channels_last, self.recompute = channels_last, recompute
        first = signals[0]
        self.input = FourierInput(w_dim, first.num_channels, first.side, first.rate, first.cutoff)
        self.layer_names = []
        for index, target in enumerate(signals):
            layer = FilteredConv(
                w_dim,
                signals[max(index - 1, 0)],
                target,
                kernel=kernel,
                to_picture=index == last,
                radial=radial and index < last - num_critical,
                filter_size=filter_size,
                oversampling=oversampling,
                clamp=clamp,
                magnitude_beta=magnitude_beta,
                fir=fir,
                grouped=grouped,
            )
            self.layer_names.append(f"L{index}_{target.side}_{target.num_channels}")
            setattr(self, self.layer_names[-1], layer)

    def forward(self, ws: Tensor, *, noise_mode: str = "const", update_emas: bool = False) -> Tensor:
        """``update_emas`` updates the magnitudes. ``noise_mode`` is accepted as for StyleGAN2, and ignored: there is no noise."""
        del noise_mode
        ws_BLD = styles_of_layers(ws, self.num_ws, self.w_dim).float()
        x: Tensor = self.input(ws_BLD[:, 0])
        for index, (name, band) in enumerate(zip(self.layer_names, self.signals, strict=True)):
            half = self.half_dtype is not None and band.rate << self.num_half > self.resolution
            x = x.to(self.half_dtype if half else torch.float32)
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            recompute = self.recompute and torch.is_grad_enabled()
            x = getattr(self, name)(x, ws_BLD[:, index + 1], update_emas=update_emas, recompute=recompute)
        return x.float() * self.output_scale
