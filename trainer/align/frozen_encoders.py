"""The frozen picture and text encoder that a sound network is trained against.

Shape suffixes: B samples, T frames of a sample, C channels, H height, W width, N pictures, D width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.device import ComputeOptions, unit_rows
from pipeline.encoders.pair import SMALL_MODEL, EncoderPairSettings, Sha256, check_settings, load_pair
from pipeline.encoders.picture import PictureEncoder, check_model, check_weights, find_weights
from pipeline.encoders.small.towers import SmallPictureEncoder
from pipeline.encoders.small.trunks import prepared_pictures
from pipeline.encoders.weights import file_sha256, is_url
from pipeline.settings import Settings

OPENAI = "openai"
"""open_clip's tag for the weights that OpenAI published."""


class PartnerSettings(Settings):
    """The picture and text encoder whose space the sound network learns. Fields are named as in ``encoders`` of a build recipe."""

    picture_model: str = "ViT-B-32-quickgelu"
    """Name of an open_clip model, or hearscape-small for the packaged encoder, which knows a few classes and no captions."""
    picture_weights: str | None = None
    """Weights of the model: a pretrained tag of open_clip, a path, or a URL with its SHA-256. None: the packaged weights for
    hearscape-small, the tag openai for any other model."""
    picture_sha256: Sha256 | None = None
    """SHA-256 of the file of weights. None: not checked; required for a URL."""
    batch_size: int = Field(256, ge=1)
    """Pictures or texts that are embedded at once."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.is_packaged and self.picture_weights is not None:
            raise ValueError(f"{SMALL_MODEL} takes no picture_weights: they are in the package")
        if self.picture_weights is not None and is_url(self.picture_weights) and self.picture_sha256 is None:
            raise ValueError("picture_weights is a URL: give picture_sha256, so that changed weights are refused")
        return self

    @property
    def is_packaged(self) -> bool:
        return self.picture_model == SMALL_MODEL


class Partner(Protocol):
    """Maps pictures and texts to unit vectors in one space."""

    encoder_id: str
    width: int
    network: nn.Module
    """Of the picture encoder."""

    def resized(self, pictures_NCHW: Tensor) -> Tensor:
        """Square pictures at the size that the encoder sees, with gradients. Pictures of all sizes then go through it together."""

    def look(self, pictures_NCHW: Tensor) -> Tensor:
        """Square RGB pictures, about -1..1 -> (N, D), rows of length 1, with a gradient back to the pixels."""

    def embed_frames(self, frames_BTCHW: Tensor) -> Tensor:
        """RGB frames, uint8, square -> (B, D): the direction of the mean of a sample's frame embeddings."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(len(texts), D), rows of length 1. Raises EncoderError for a text that it cannot embed."""


class OpenClipPartner:
    """An open_clip model that takes frames as one tensor and prepares them on its device, instead of one by one with Pillow.

    For square frames the steps are those of the encoder (resize with antialiasing, round to 8 bits, normalise). Only rounding differs:
    cosines with the encoder's own embeddings are above 0.999.
    """

    def __init__(self, encoder: PictureEncoder) -> None:
        self.encoder = encoder
        self.encoder_id = encoder.encoder_id
        self.width = encoder.width
        self.network: nn.Module = encoder.model.visual
        prepared = encoder.model.visual.preprocess_cfg
        size = prepared["size"]
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        self._mode = "bicubic" if prepared["interpolation"] == "bicubic" else "bilinear"
        device = encoder.running.device
        self._mean_C11 = torch.tensor(prepared["mean"], device=device).view(-1, 1, 1)
        self._std_C11 = torch.tensor(prepared["std"], device=device).view(-1, 1, 1)

    def embed_frames(self, frames_BTCHW: Tensor) -> Tensor:
        running = self.encoder.running
        num_samples, num_frames = frames_BTCHW.shape[:2]
        if not num_samples:
            return torch.zeros(0, self.width, device=running.device)
        rows = []
        with torch.no_grad(), running_autocast(running):
            for part_NCHW in torch.split(frames_BTCHW.flatten(0, 1), running.batch_size):
                rows.append(self.encoder.model.encode_image(self._prepared(part_NCHW.to(running.device))).float())
        rows_BTD = unit_rows(torch.cat(rows), self.encoder_id).view(num_samples, num_frames, -1)
        return functional.normalize(rows_BTD.mean(1), dim=1)

    def _prepared(self, frames_NCHW: Tensor) -> Tensor:
        pictures = self.resized(frames_NCHW.float())
        if pictures.shape != frames_NCHW.shape:
            pictures = pictures.clamp(0, 255).round()
        return (pictures / 255 - self._mean_C11) / self._std_C11

    def resized(self, pictures_NCHW: Tensor) -> Tensor:
        if tuple(pictures_NCHW.shape[2:]) == self._size:
            return pictures_NCHW
        return functional.interpolate(pictures_NCHW, self._size, mode=self._mode, antialias=True)

    def look(self, pictures_NCHW: Tensor) -> Tensor:
        running = self.encoder.running
        resized = self.resized(pictures_NCHW.to(running.device).float())
        prepared = ((resized + 1) / 2 - self._mean_C11) / self._std_C11
        with running_autocast(running):
            rows_ND: Tensor = self.encoder.model.encode_image(prepared)
        return functional.normalize(rows_ND.float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.embed_texts(texts)


class SmallPartner:
    """The packaged picture encoder, in float32: its network is small."""

    def __init__(self, encoder: SmallPictureEncoder, device: torch.device, batch_size: int) -> None:
        self.encoder, self._batch_size = encoder, batch_size
        self.network: nn.Module = encoder.network.to(device)
        self._device = device
        self.encoder_id = encoder.encoder_id
        self.width = encoder.width

    @torch.no_grad()
    def embed_frames(self, frames_BTCHW: Tensor) -> Tensor:
        num_samples, num_frames = frames_BTCHW.shape[:2]
        if not num_samples:
            return torch.zeros(0, self.width, device=self._device)
        rows = []
        for some_NCHW in torch.split(frames_BTCHW.flatten(0, 1), self._batch_size):
            prepared = prepared_pictures(some_NCHW.to(self._device).float()).round()
            rows.append(self._rows(prepared))
        return functional.normalize(torch.cat(rows).view(num_samples, num_frames, -1).mean(1), dim=1)

    def resized(self, pictures_NCHW: Tensor) -> Tensor:
        return prepared_pictures(pictures_NCHW)

    def look(self, pictures_NCHW: Tensor) -> Tensor:
        return self._rows((self.resized(pictures_NCHW.to(self._device).float()) + 1) * 127.5)

    def _rows(self, prepared_NCHW: Tensor) -> Tensor:
        with torch.autocast(self._device.type, enabled=False):
            rows_ND: Tensor = self.network(prepared_NCHW)
        return rows_ND

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encoder.embed_texts(texts)


def running_autocast(running: ComputeOptions) -> torch.autocast:
    """The autocast context for an encoder's precision, for code that calls the encoder's network itself."""
    return torch.autocast(running.device.type, dtype=torch.bfloat16, enabled=running.precision == "bf16")


def check_partner(settings: PartnerSettings, field: str) -> None:
    """Raises EncoderError for a model or weights that do not exist. Loads and fetches nothing."""
    if settings.is_packaged:
        check_settings(EncoderPairSettings(), field)
    else:
        check_model(settings.picture_model, f"{field}.picture_model")
        check_weights(settings.picture_model, settings.picture_weights or OPENAI, f"{field}.picture_weights")


def load_partner(
    settings: PartnerSettings, device: torch.device, precision: Literal["fp32", "bf16"], field: str
) -> Partner:
    """Loads the encoder; fetches its weights first if they are not on disk. Raises EncoderError when that fails."""
    if settings.is_packaged:
        encoder = load_pair(EncoderPairSettings(), field=field).picture
        assert isinstance(encoder, SmallPictureEncoder)
        return SmallPartner(encoder, device, settings.batch_size)
    model, weights = settings.picture_model, settings.picture_weights or OPENAI
    path = find_weights(model, weights, settings.picture_sha256, field=f"{field}.picture_weights")
    running = ComputeOptions(device, settings.batch_size, precision)
    return OpenClipPartner(PictureEncoder(model, weights, path, file_sha256(path), running=running))
