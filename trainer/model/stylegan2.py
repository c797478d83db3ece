"""StyleGAN2's synthesis network: a constant, modulated convolutions, and a picture that is the sum of all resolutions' pictures.

Equations: StyleGAN2 (arXiv:1912.04958), sections 2 and 4; StyleGAN2-ADA (arXiv:2006.06676) for the half precision of the
highest resolutions. The state dict has the names of the published StyleGAN2-ADA files.

Shape suffixes: B batch, C channels, H W rows and columns, D numbers of a style, L layers that take a style each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.model.filters import binomial_filter, downsample, upsample
from trainer.model.layers import GAIN, EqualLinear, activate, modulated_conv, styles_of_layers

NoiseMode = Literal["const", "random", "none"]
"""const: the network's own noise pictures. random: new noise for every picture. none: no noise."""
BASE = 4
"""Side of the constant input, in pixels."""


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky rectifier. ``up`` doubles the sides: (B, I, H, W) -> (B, O, 2H, 2W)."""

    filter: Tensor
    noise_const: Tensor

    def __init__(
        self, num_in: int, num_out: int, w_dim: int, resolution: int, *, up: bool, clamp: float | None, grouped: bool
    ) -> None:
        super().__init__()
        self.up, self.clamp, self.grouped = up, clamp, grouped
        self.affine = EqualLinear(w_dim, num_in, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(num_out, num_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(num_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("filter", binomial_filter(), persistent=False)

    def forward(self, x: Tensor, w_BD: Tensor, noise_mode: NoiseMode) -> Tensor:
        style_BI = self.affine(w_BD)
        if self.up:
            x = modulated_conv(x, self.weight, style_BI, up=2, grouped=self.grouped)
            # the transposed convolution gives 2H + 1 rows; three of four of its inputs are zeros, which the gain of 4 makes up for
            x = downsample(x, self.filter * 4, 1, padding=(1, 1))
        else:
            x = modulated_conv(x, self.weight, style_BI, padding=1, grouped=self.grouped)
        if noise_mode != "none":
            x = x + (self._noise(x, noise_mode) * self.noise_strength).to(x.dtype)
        return activate(
            x + self.bias.to(x.dtype)[:, None, None], clamp=None if self.clamp is None else self.clamp * GAIN
        )

    def _noise(self, x: Tensor, noise_mode: NoiseMode) -> Tensor:
        """(H, W), or (B, 1, H, W) with different noise for each picture."""
        if noise_mode == "const":
            return self.noise_const
        return torch.randn(len(x), 1, *x.shape[2:], device=x.device)


class ToPicture(nn.Module):
    """Modulated 1x1 convolution to colours, without demodulation: (B, I, H, W) -> (B, colours, H, W), float32."""

    def __init__(self, num_in: int, num_colours: int, w_dim: int, *, clamp: float | None, grouped: bool) -> None:
        super().__init__()
        self.clamp, self.grouped = clamp, grouped
        self.affine = EqualLinear(w_dim, num_in, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(num_colours, num_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_colours))
        self.weight_gain = 1 / math.sqrt(num_in)

    def forward(self, x: Tensor, w_BD: Tensor) -> Tensor:
        style_BI = self.affine(w_BD) * self.weight_gain
        x = modulated_conv(x, self.weight, style_BI, demodulate=False, grouped=self.grouped)
        x = x + self.bias.to(x.dtype)[:, None, None]
        return (x if self.clamp is None else x.clamp(-self.clamp, self.clamp)).float()


class SynthesisBlock(nn.Module):
    """One resolution: two convolutions, and a picture that is added to that of the block before. The first block has a constant and one
    convolution."""

    filter: Tensor

    def __init__(
        self,
        num_in: int,
        num_out: int,
        w_dim: int,
        resolution: int,
        num_colours: int,
        *,
        clamp: float | None,
        grouped: bool,
    ) -> None:
        super().__init__()
        self.resolution, self.num_convs = resolution, 1 + (num_in > 0)
        if num_in:
            self.conv0 = StyledConv(num_in, num_out, w_dim, resolution, up=True, clamp=clamp, grouped=grouped)
        else:
            self.const = nn.Parameter(torch.randn(num_out, resolution, resolution))
        self.conv1 = StyledConv(num_out, num_out, w_dim, resolution, up=False, clamp=clamp, grouped=grouped)
        self.torgb = ToPicture(num_out, num_colours, w_dim, clamp=clamp, grouped=grouped)
        self.register_buffer("filter", binomial_filter(), persistent=False)

    def forward(
        self, x: Tensor | None, picture: Tensor | None, ws_BLD: Tensor, noise_mode: NoiseMode, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Feature maps and picture, from those of the block before (None: this is the first block).

        ``ws_BLD`` holds one style for each convolution and one for the picture.
        """
        x = (
            self.const.to(dtype).expand(len(ws_BLD), -1, -1, -1)
            if x is None
            else self.conv0(x.to(dtype), ws_BLD[:, 0], noise_mode)
        )
        x = self.conv1(x, ws_BLD[:, self.num_convs - 1], noise_mode)
        own_picture = self.torgb(x, ws_BLD[:, self.num_convs])
        if picture is not None:
            own_picture = own_picture + upsample(picture, self.filter, 2, padding=(2, 1))
        return x, own_picture


class StyleGan2Synthesis(nn.Module):
    """Styles to pictures: W (B, D) or W+ (B, L, D) -> (B, colours, resolution, resolution), about -1..1.

    ``widths`` are the channels at 4, 8, ..., ``resolution`` pixels. ``half_dtype`` is the number type of the ``num_half`` highest
    resolutions of at least 8 pixels; None: float32. ``grouped`` chooses the form of the modulated convolution, ``channels_last`` the
    memory format of activations: both change speed only.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        num_colours: int,
        widths: Sequence[int],
        *,
        num_half: int = 0,
        clamp: float | None = None,
        grouped: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        sides = [BASE << index for index in range(len(widths))]
        if sides[-1] != resolution:
            raise ValueError(f"{len(widths)} widths are for {sides[-1]} pixels, the resolution is {resolution}")
        self.w_dim, self.resolution, self.num_colours, self.widths = w_dim, resolution, num_colours, tuple(widths)
        self.sides, self.channels_last = sides, channels_last
        self.num_ws = 2 * len(sides)
        self.half_from = max(2 * resolution >> num_half, 8)
        self.half_dtype: torch.dtype | None = None
        for num_in, num_out, side in zip((0, *widths), widths, sides, strict=False):
            block = SynthesisBlock(num_in, num_out, w_dim, side, num_colours, clamp=clamp, grouped=grouped)
            setattr(self, f"b{side}", block)

    def forward(self, ws: Tensor, *, noise_mode: NoiseMode = "const", update_emas: bool = False) -> Tensor:
        """``update_emas`` is accepted as for StyleGAN3, and ignored: there are no averages."""
        del update_emas
        ws_BLD = styles_of_layers(ws, self.num_ws, self.w_dim).float()
        x: Tensor | None = None
        picture: Tensor | None = None
        first = 0
        for side in self.sides:
            block = getattr(self, f"b{side}")
            dtype = self.half_dtype if self.half_dtype is not None and side >= self.half_from else torch.float32
            if x is not None and self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            # the style of a block's picture is also that of the next block's first convolution
            x, picture = block(x, picture, ws_BLD[:, first : first + block.num_convs + 1], noise_mode, dtype)
            first += block.num_convs
        assert picture is not None
        return picture
