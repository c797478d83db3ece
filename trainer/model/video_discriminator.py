"""The video discriminator: a logit for a pair of clip and sound, from convolutions over space and time.

Residual blocks as in StyleGAN2's discriminator (arXiv:1912.04958, section 4), with 3 x 3 x 3 kernels. The sound is combined by projection
(Miyato and Koyama, arXiv:1802.05637, equation 3).

Shape suffixes: B clips, T frames, C channels, H W rows and columns, D width of the space of sounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.discriminator import BASE
from trainer.model.layers import GAIN, EqualLinear, activate


class Conv3d(nn.Module):
    """(B, I, T, H, W) -> (B, O, T, H, W) with an equalised learning rate. ``plain``: without bias and rectifier."""

    def __init__(self, num_in: int, num_out: int, kernel: tuple[int, int, int], *, plain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, *kernel))
        self.bias = None if plain else nn.Parameter(torch.zeros(num_out))
        self.weight_gain = 1 / math.sqrt(num_in * math.prod(kernel))
        self.padding = tuple(size // 2 for size in kernel)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        x = functional.conv3d(x, (self.weight * self.weight_gain).to(x.dtype), padding=self.padding)
        if self.bias is None:
            return x * gain
        return activate(x + self.bias.to(x.dtype)[:, None, None, None], GAIN * gain)


class ClipBlock(nn.Module):
    """Residual block of two convolutions over space and time that halves the sides of the frames."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv0 = Conv3d(num_in, num_in, (3, 3, 3))
        self.conv1 = Conv3d(num_in, num_out, (3, 3, 3))
        self.skip = Conv3d(num_in, num_out, (1, 1, 1), plain=True)

    def forward(self, x: Tensor) -> Tensor:
        half_variance = math.sqrt(0.5)
        halved = functional.avg_pool3d(x, (1, 2, 2))
        skipped: Tensor = self.skip(halved, half_variance)
        return skipped + functional.avg_pool3d(self.conv1(self.conv0(x), half_variance), (1, 2, 2))


class VideoDiscriminator(nn.Module):
    """Clips (B, T, colours, side, side), -1..1, and unit vectors of their sounds (B, D), to logits (B, 1).

    ``widths`` are the channels at 4, 8, ..., ``side`` pixels. ``sound_width`` is D; 0: the
    discriminator judges clips without sounds.
    """

    def __init__(self, num_frames: int, side_px: int, widths: Sequence[int], *, sound_width: int = 0) -> None:
        super().__init__()
        if BASE << (len(widths) - 1) != side_px:
            raise ValueError(f"{len(widths)} widths are for {BASE << (len(widths) - 1)} pixels, not {side_px}")
        self.num_frames, self.side_px, self.sound_width = num_frames, side_px, sound_width
        self.fromrgb = Conv3d(3, widths[-1], (1, 1, 1))
        self.blocks = nn.Sequential(
            *(ClipBlock(widths[index], widths[index - 1]) for index in range(len(widths) - 1, 0, -1))
        )
        self.conv = Conv3d(widths[0], widths[0], (3, 3, 3))
        self.fc = EqualLinear(widths[0] * BASE**2, widths[0], rectified=True)
        self.out = EqualLinear(widths[0], 1)
        if sound_width:
            self.hear = EqualLinear(sound_width, widths[0])

    def forward(self, clips_BTCHW: Tensor, sounds_BD: Tensor | None = None) -> Tensor:
        """Frames of another size are scaled to ``side_px`` first."""
        clips = clips_BTCHW
        if clips.shape[-1] != self.side_px:
            frames = clips.flatten(0, 1)
            frames = functional.interpolate(frames, (self.side_px, self.side_px), mode="bilinear", antialias=True)
            clips = frames.view(*clips.shape[:2], *frames.shape[1:])
        x = self.blocks(self.fromrgb(clips.transpose(1, 2)))
        features_BC = self.fc(self.conv(x).float().mean(2).flatten(1))
        logits: Tensor = self.out(features_BC)
        if not self.sound_width:
            return logits
        if sounds_BD is None:
            raise ValueError(f"this discriminator needs sounds of shape (batch, {self.sound_width})")
        projected_BC = self.hear(sounds_BD * math.sqrt(self.sound_width))
        match_B1: Tensor = (features_BC * projected_BC).sum(1, keepdim=True) / math.sqrt(projected_BC.shape[1])
        return logits + match_B1
