"""Frozen features of pictures, with a gradient back to the pixels.

Shape suffixes: N pictures, C = 3 colours, H W rows and columns.
"""

from __future__ import annotations

import copy
from typing import Self

import timm
import torch
from pydantic import Field, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.pair import Sha256
from pipeline.encoders.small.trunks import trunk
from pipeline.encoders.weights import load_into, read_state_dict, resolve_weights
from pipeline.errors import EncoderError
from pipeline.settings import Settings


class FeatureSettings(Settings):
    """The frozen network whose features describe real frames to the encoder, and compare them with their reconstructions."""

    network: str | None = None
    """Name of a timm network. None: the packaged EfficientNet-Lite0."""
    weights: str | None = None
    """Path of its weights (safetensors, or a .pth of tensors only); a URL with its SHA-256. None: those of the packaged network."""
    sha256: Sha256 | None = None
    """SHA-256 of that file. None: not checked; required for a URL."""
    picture_px: int = Field(128, ge=32, le=1024)
    """Side to which pictures are resized before the network, in pixels."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if (self.network is None) != (self.weights is None):
            raise ValueError(
                "network and weights are given together, or neither: features of random weights say little"
            )
        return self


class PictureFeatures(nn.Module):
    """Pictures (N, 3, H, W), -1..1, to maps of features, one for each stage of a frozen network, from fine to coarse."""

    mean: Tensor
    scale: Tensor

    def __init__(self, settings: FeatureSettings) -> None:
        """Raises EncoderError for a network that timm does not know, or weights of another one."""
        super().__init__()
        self.picture_px = settings.picture_px
        if settings.network is None:
            self.network: nn.Module = copy.deepcopy(trunk("picture")[0])
            mean, scale = torch.full((3,), -1.0), torch.full((3,), 127.5)  # to 0..255
        else:
            self.network = _timm_network(settings)
            mean = torch.tensor(IMAGENET_DEFAULT_MEAN) * 2 - 1
            scale = 0.5 / torch.tensor(IMAGENET_DEFAULT_STD)
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("scale", scale[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, pictures_NCHW: Tensor) -> list[Tensor]:
        size = (self.picture_px, self.picture_px)
        resized = functional.interpolate(
            pictures_NCHW, size=size, mode="bilinear", antialias=pictures_NCHW.shape[-1] > size[0]
        )
        maps: list[Tensor] = self.network((resized - self.mean) * self.scale)
        return maps

    def num_channels(self) -> list[int]:
        """Channels of each map."""
        side = self.picture_px
        with torch.no_grad():
            return [one.shape[1] for one in self(torch.zeros(1, 3, side, side, device=self.mean.device))]


def _timm_network(settings: FeatureSettings) -> nn.Module:
    assert settings.network is not None and settings.weights is not None
    if not timm.is_model(settings.network):
        raise EncoderError(
            f"prior.reconstruction.encoder.features.network: timm has no network named {settings.network!r}"
        )

    field = "prior.reconstruction.encoder.features.weights"
    path = resolve_weights(settings.weights, settings.sha256, field=field)
    whole = timm.create_model(settings.network, pretrained=False)
    load_into(whole, read_state_dict(path), path)
    network: nn.Module = timm.create_model(settings.network, pretrained=False, features_only=True)
    names = dict(network.named_parameters()) | dict(network.named_buffers())
    tensors = whole.state_dict()
    # features_only flattens names: "layer1.0.conv1" stays, "stages.0.x" becomes "stages_0.x"
    for name, tensor in names.items():
        tensor.data.copy_(tensors[_original(name, tensors)])
    return network


def _original(name: str, tensors: dict[str, Tensor]) -> str:
    """The name in the whole network of a tensor of its features."""
    if name in tensors:
        return name
    first, _, rest = name.partition(".")
    return f"{first.replace('_', '.', 1)}.{rest}"


def feature_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """(N,): the squared distance of features of length 1 at each position (after LPIPS, arXiv:1801.03924, without its weights): the mean
    over positions, summed over the maps."""
    distances = [
        (functional.normalize(one, dim=1) - functional.normalize(other, dim=1)).square().sum(1).mean((1, 2))
        for one, other in zip(maps, others, strict=True)
    ]
    return torch.stack(distances).sum(0)
