"""StyleGAN2's residual discriminator.

Equations: StyleGAN2 (arXiv:1912.04958), section 4; the deviation of a batch from Progressive GAN (arXiv:1710.10196),
section 3; labels by projection as in StyleGAN2-ADA (arXiv:2006.06676). The state dict has the names of the published
StyleGAN2-ADA files.

Shape suffixes: B batch, C channels, H W rows and columns, G samples of a group, S groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.filters import binomial_filter, downsample
from trainer.model.layers import EPSILON, GAIN, EqualLinear, MappingNetwork, activate

BASE = 4
"""Side of the last feature maps, in pixels."""


class Conv(nn.Module):
    """Convolution with an equalised learning rate, bias and rectifier: (B, I, H, W) -> (B, O, H, W), halved if ``down``."""

    filter: Tensor

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel: int,
        *,
        plain: bool = False,
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        """``plain``: without bias and rectifier."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel))
        self.bias = None if plain else nn.Parameter(torch.zeros(num_out))
        self.weight_gain = 1 / math.sqrt(num_in * kernel**2)
        self.kernel, self.down, self.clamp = kernel, down, clamp
        self.register_buffer("filter", binomial_filter(), persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        if not self.down:
            x = functional.conv2d(x, weight, padding=self.kernel // 2)
        elif self.kernel == 1:
            x = functional.conv2d(downsample(x, self.filter, 2, padding=(1, 1)), weight)
        else:
            x = functional.conv2d(downsample(x, self.filter, 1, padding=(2, 2)), weight, stride=2)
        if self.bias is None:
            return x * gain
        clamp = None if self.clamp is None else self.clamp * gain
        return activate(x + self.bias.to(x.dtype)[:, None, None], GAIN * gain, clamp)


class DiscriminatorBlock(nn.Module):
    """Residual block of two convolutions that halves the sides. With ``num_colours`` above 0 it is the first block, and reads pictures."""

    def __init__(self, num_in: int, num_out: int, num_colours: int, *, clamp: float | None) -> None:
        super().__init__()
        self.num_colours = num_colours
        if num_colours:
            self.fromrgb = Conv(num_colours, num_in, 1, clamp=clamp)
        self.conv0 = Conv(num_in, num_in, 3, clamp=clamp)
        self.conv1 = Conv(num_in, num_out, 3, down=True, clamp=clamp)
        self.skip = Conv(num_in, num_out, 1, plain=True, down=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_colours:
            x = self.fromrgb(x)
        half_variance = math.sqrt(0.5)
        return torch.add(self.skip(x, half_variance), self.conv1(self.conv0(x), half_variance))


def deviation_of_batch(x_BCHW: Tensor, group_size: int) -> Tensor:
    """(B, 1, H, W): a constant map for each sample, the mean standard deviation within its group (Progressive GAN, section 3).

    A group is every S-th sample of the batch; S is the number of groups. A batch smaller than ``group_size`` is one group. Raises
    ValueError for a larger batch that ``group_size`` does not divide.
    """
    batch = len(x_BCHW)
    group = min(group_size, batch)
    if batch % group:
        raise ValueError(f"a batch of {batch} cannot be divided into groups of {group}; use a multiple of {group}")
    x_GSCHW = x_BCHW.float().reshape(group, -1, *x_BCHW.shape[1:])
    deviation_S = (x_GSCHW.var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))
    deviation_B = deviation_S.repeat(group).to(x_BCHW.dtype)
    return deviation_B[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])


class Epilogue(nn.Module):
    """The last layers: (B, C, 4, 4) -> (B, ``num_out``); 1 output without labels. ``group_size`` 0: without the deviation map."""

    def __init__(self, num_in: int, num_out: int, group_size: int, *, clamp: float | None) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = Conv(num_in + (group_size > 0), num_in, 3, clamp=clamp)
        self.fc = EqualLinear(num_in * BASE**2, num_in, rectified=True)
        self.out = EqualLinear(num_in, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.group_size:
            x = torch.cat([x, deviation_of_batch(x, self.group_size)], 1)
        logits: Tensor = self.out(self.fc(self.conv(x).flatten(1)))
        return logits


class Discriminator(nn.Module):
    """Pictures (B, colours, resolution, resolution), -1..1, and labels (B, num classes), to logits (B, 1).

    ``widths`` are the channels at 4, 8, ..., ``resolution`` pixels. ``half_dtype`` is the number type of the ``num_half`` highest
    resolutions of at least 8 pixels; None: float32. ``group_size`` 0: without the deviation map.
    """

    def __init__(
        self,
        c_dim: int,
        resolution: int,
        num_colours: int,
        widths: Sequence[int],
        *,
        num_half: int = 0,
        clamp: float | None = None,
        group_size: int = 4,
        mapping_layers: int = 8,
        mapping_width: int | None = None,
        channels_last: bool = False,
    ) -> None:
        """``mapping_width``: width of the embedded labels. None: the number of channels of the last feature maps."""
        super().__init__()
        self.sides = [BASE << index for index in range(len(widths))][:0:-1]
        if [*self.sides, BASE][0] != resolution:
            raise ValueError(f"{len(widths)} widths are for {[*self.sides, BASE][0]} pixels, not {resolution}")
        self.c_dim, self.resolution, self.num_colours, self.widths = c_dim, resolution, num_colours, tuple(widths)
        self.half_from = max(2 * resolution >> num_half, 8)
        self.half_dtype: torch.dtype | None = None
        self.channels_last = channels_last
        for index in range(len(widths) - 1, 0, -1):
            colours = num_colours if BASE << index == resolution else 0
            block = DiscriminatorBlock(widths[index], widths[index - 1], colours, clamp=clamp)
            setattr(self, f"b{BASE << index}", block)
        num_out = (mapping_width or widths[0]) if c_dim else 1
        if c_dim:
            self.mapping = MappingNetwork(0, c_dim, num_out, None, num_layers=mapping_layers)
        self.b4 = Epilogue(widths[0], num_out, group_size, clamp=clamp)

    def parameters_below(self, num_blocks: int) -> list[nn.Parameter]:
        """All parameters except those of the ``num_blocks`` highest resolutions, 0..``len(self.sides)``."""
        prefixes = tuple(f"b{side}." for side in self.sides[:num_blocks])
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(prefixes)]

    def forward(self, pictures_BCHW: Tensor, c_BC: Tensor | None = None) -> Tensor:
        x = pictures_BCHW
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for side in self.sides:
            is_half = self.half_dtype is not None and side >= self.half_from
            x = getattr(self, f"b{side}")(x.to(self.half_dtype if is_half else torch.float32))
        logits: Tensor = self.b4(x)
        if not self.c_dim:
            return logits
        labels_BD: Tensor = self.mapping(None, c_BC)
        return (logits * labels_BD).sum(1, keepdim=True) / math.sqrt(self.mapping.w_dim)
