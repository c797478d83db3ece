"""The layers that all generators share: equalised linear layers, modulated convolution, the mapping network.

Equations: StyleGAN2 (arXiv:1912.04958), with the equalised learning rate of Progressive GAN (arXiv:1710.10196): weights
are kept with variance 1 / lr_multiplier² and multiplied by lr_multiplier / sqrt(fan-in) when used.

Shape suffixes: B batch, I O channels in and out, H W rows and columns, K kernel, Z numbers of a latent, D of a style,
L layers that take a style each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import pipeline.runtime.processor  # noqa: F401 - before any network computes

SLOPE = 0.2
"""Slope of the leaky rectifier below zero."""
GAIN = math.sqrt(2)
"""Factor after a rectifier, which keeps the variance."""
EPSILON = 1e-8


def activate(x: Tensor, gain: float = GAIN, clamp: float | None = None) -> Tensor:
    """Leaky rectifier times ``gain``, clamped to ±``clamp`` (None: not clamped)."""
    x = functional.leaky_relu(x, SLOPE) * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def unit_rms(x_BZ: Tensor) -> Tensor:
    """Rows scaled so that their mean square is 1 (Progressive GAN, section 4.2)."""
    return x_BZ * (x_BZ.square().mean(1, keepdim=True) + EPSILON).rsqrt()


class EqualLinear(nn.Module):
    """(B, I) -> (B, O), with an equalised learning rate. ``rectified`` adds the leaky rectifier and its gain."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        lr_multiplier: float = 1.0,
        initial_bias: float = 0.0,
        rectified: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((num_out,), initial_bias / lr_multiplier))
        self.lr_multiplier = lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(num_in)
        self.rectified = rectified

    def forward(self, x_BI: Tensor) -> Tensor:
        x = functional.linear(x_BI, self.weight * self.weight_gain, self.bias * self.lr_multiplier)
        return activate(x) if self.rectified else x


class MappingNetwork(nn.Module):
    """Latents z, (B, Z), and labels c, (B, num classes), to styles w, (B, L, D), the same for every layer.

    ``num_ws`` None gives (B, D). Truncation (StyleGAN, arXiv:1812.04948, section 2.2 and appendix B):
    w' = w_avg + psi (w - w_avg), in the first ``cutoff`` layers (None: in all).
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        *,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        self.w_avg_beta = w_avg_beta
        if c_dim:
            self.embed = EqualLinear(c_dim, w_dim)
        widths = [z_dim + (w_dim if c_dim else 0), *[w_dim] * num_layers]
        for index in range(num_layers):
            layer = EqualLinear(widths[index], widths[index + 1], lr_multiplier=lr_multiplier, rectified=True)
            setattr(self, f"fc{index}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z_BZ: Tensor | None,
        c_BC: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """(B, L, D), or (B, D) without ``num_ws``. ``update_emas`` moves w_avg towards the mean of these w.

        Always float32, under autocast too: w_avg is a mean of many steps, and truncation needs both in one type.
        """
        with torch.autocast(self._autocast_device, enabled=False):
            return self._styles(z_BZ, c_BC, truncation_psi, truncation_cutoff, update_emas)

    @property
    def _autocast_device(self) -> str:
        """Device type for autocast. Meta tensors, which have shapes only, are not known to it: they count as cpu."""
        device_type = next(self.parameters()).device.type
        return "cpu" if device_type == "meta" else device_type

    def _styles(
        self, z_BZ: Tensor | None, c_BC: Tensor | None, psi: float, cutoff: int | None, update_emas: bool
    ) -> Tensor:
        parts = [unit_rms(z_BZ.float())] if z_BZ is not None and self.z_dim else []
        if self.c_dim:
            if c_BC is None:
                raise ValueError(f"this generator is conditional: give labels c of shape (batch, {self.c_dim})")
            parts.append(unit_rms(self.embed(c_BC.float())))
        w_BD = torch.cat(parts, 1)
        for index in range(self.num_layers):
            w_BD = getattr(self, f"fc{index}")(w_BD)
        if self.num_ws is None:
            return w_BD
        if update_emas:
            self.w_avg.copy_(w_BD.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws_BLD = w_BD[:, None].expand(-1, self.num_ws, -1)
        if psi != 1:
            return truncate(ws_BLD, self.w_avg, psi, cutoff)
        return ws_BLD


def truncate(ws_BLD: Tensor, w_avg_D: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """Styles moved towards the average: w_avg + psi (w - w_avg), in the first ``cutoff`` layers (None: in all)."""
    near = w_avg_D.lerp(ws_BLD, psi)
    return near if cutoff is None else torch.cat([near[:, :cutoff], ws_BLD[:, cutoff:]], 1)


def modulated_conv(
    x_BIHW: Tensor,
    weight_OIKK: Tensor,
    style_BI: Tensor,
    *,
    demodulate: bool = True,
    padding: int = 0,
    up: int = 1,
    gain: Tensor | None = None,
    grouped: bool = False,
) -> Tensor:
    """Convolution whose input channels are scaled by a style, with demodulation of its outputs to unit variance.

    StyleGAN2, equations 1 and 3. ``up`` 2 is a transposed convolution of stride 2, before any filter. ``gain`` is a
    scalar on the result. The default scales activations before and after one convolution that the whole batch shares;
    ``grouped`` makes a kernel for each sample and runs them as groups: the same numbers, up to rounding.
    """
    style_BI = style_BI.float()
    scale_BO = None
    if demodulate:
        energy_OI = weight_OIKK.float().square().sum((2, 3))
        scale_BO = (style_BI.square() @ energy_OI.T + EPSILON).rsqrt()
    if x_BIHW.dtype in (torch.float16, torch.bfloat16) and scale_BO is not None:
        # factors that demodulation cancels; they keep half precision from overflowing
        largest_B1 = style_BI.abs().amax(1, keepdim=True).clamp(min=EPSILON)
        fan_in = weight_OIKK[0].numel()
        style_BI, scale_BO = style_BI / largest_B1, scale_BO * largest_B1 * math.sqrt(fan_in)
        weight_OIKK = weight_OIKK * (1 / math.sqrt(fan_in))
    if gain is not None:
        batch, num_out = len(style_BI), len(weight_OIKK)
        scale_BO = gain.expand(batch, num_out) if scale_BO is None else scale_BO * gain
    if grouped:
        return _grouped(x_BIHW, weight_OIKK, style_BI, scale_BO, padding, up)
    x = x_BIHW * style_BI.to(x_BIHW.dtype)[:, :, None, None]
    x = _convolve(x, weight_OIKK.to(x.dtype), padding, up)
    return x if scale_BO is None else x * scale_BO.to(x.dtype)[:, :, None, None]


def _convolve(x: Tensor, weight_OIKK: Tensor, padding: int, up: int, groups: int = 1) -> Tensor:
    if up == 1:
        return functional.conv2d(x, weight_OIKK, padding=padding, groups=groups)
    num_out, num_in, *kernel = weight_OIKK.shape
    by_group = weight_OIKK.reshape(groups, num_out // groups, num_in, *kernel).transpose(1, 2)
    return functional.conv_transpose2d(x, by_group.flatten(0, 1), stride=up, padding=padding, groups=groups)


def _grouped(
    x_BIHW: Tensor, weight_OIKK: Tensor, style_BI: Tensor, scale_BO: Tensor | None, padding: int, up: int
) -> Tensor:
    batch = len(x_BIHW)
    weight_BOIKK = weight_OIKK * style_BI[:, None, :, None, None]
    if scale_BO is not None:
        weight_BOIKK = weight_BOIKK * scale_BO[:, :, None, None, None]
    joined = x_BIHW.reshape(1, -1, *x_BIHW.shape[2:])
    out = _convolve(joined, weight_BOIKK.flatten(0, 1).to(x_BIHW.dtype), padding, up, groups=batch)
    return out.reshape(batch, -1, *out.shape[2:])


def styles_of_layers(ws: Tensor, num_ws: int, w_dim: int) -> Tensor:
    """W or W+ to W+: (B, D) is repeated for every layer, (B, L, D) is returned. Raises ValueError for other shapes."""
    if ws.ndim == 2 and ws.shape[1] == w_dim:
        return ws[:, None].expand(-1, num_ws, -1)
    if ws.ndim == 3 and ws.shape[1:] == (num_ws, w_dim):
        return ws
    raise ValueError(
        f"styles have shape {tuple(ws.shape)}; give W of shape (batch, {w_dim}) or W+ of shape (batch, {num_ws}, {w_dim})"
    )
