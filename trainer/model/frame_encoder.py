"""The encoder of frames: pictures to codes in W+ whose pictures they are.

Shape suffixes: N pictures, C = 3 colours, H W rows and columns, L layers that take a style each, D numbers of a style.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.settings import Settings
from trainer.model.features import FeatureSettings, PictureFeatures

MAP_SIDE = 4
"""Rows and columns to which maps of features are averaged."""
PIXEL_SIDE = 8
"""Rows and columns to which the picture itself is averaged: its colours."""
NUM_COARSE = 128
"""Channels that the two coarsest maps are brought to."""
NUM_FINE = 64
"""Channels that the other maps are brought to."""


class FrameEncoderConfig(Settings):
    """The settings that define an encoder of frames beside its generator; stored in the generator's file."""

    features: FeatureSettings = FeatureSettings()
    """The frozen network of features."""
    width: int = Field(512, ge=8, le=8192)
    """Width of the encoder's hidden layers."""


class FrameEncoder(nn.Module):
    """Pictures and the maps of their features to codes (N, L, D)."""

    def __init__(self, num_channels: Sequence[int], width: int, num_ws: int, w_dim: int) -> None:
        """``num_channels``: of each map, from fine to coarse. ``width``: of the hidden layers."""
        super().__init__()
        self.num_ws, self.w_dim = num_ws, w_dim
        sizes = [NUM_COARSE if index >= len(num_channels) - 2 else NUM_FINE for index in range(len(num_channels))]
        self.reduce = nn.ModuleList(nn.Conv2d(own, size, 1) for own, size in zip(num_channels, sizes, strict=True))
        num_inputs = sum(sizes) * MAP_SIDE**2 + 3 * PIXEL_SIDE**2
        self.body = nn.Sequential(
            nn.Linear(num_inputs, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, num_ws * w_dim),
        )

    def forward(self, pictures_NCHW: Tensor, maps: Sequence[Tensor]) -> Tensor:
        parts = [
            functional.adaptive_avg_pool2d(reduce(one), MAP_SIDE).flatten(1)
            for reduce, one in zip(self.reduce, maps, strict=True)
        ]
        parts.append(functional.adaptive_avg_pool2d(pictures_NCHW, PIXEL_SIDE).flatten(1))
        codes: Tensor = self.body(torch.cat(parts, 1))
        return codes.view(len(codes), self.num_ws, self.w_dim)


class FrameCodes:
    """An encoder of frames together with the features that it needs: pictures to codes."""

    def __init__(self, config: FrameEncoderConfig, num_ws: int, w_dim: int, device: torch.device) -> None:
        """Random weights. Raises EncoderError for features that cannot be had."""
        self.config = config
        self.features = PictureFeatures(config.features).to(device)
        self.encoder = FrameEncoder(self.features.num_channels(), config.width, num_ws, w_dim).to(device)

    @torch.no_grad()
    def __call__(self, pictures_NCHW: Tensor) -> Tensor:
        """(N, L, D): the codes of pictures (N, 3, H, W), -1..1, without gradient."""
        codes: Tensor = self.encoder(pictures_NCHW, self.features(pictures_NCHW))
        return codes
