"""The contents of a generator's file, independent of its format: configs, tensors by name, and notes of the reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from pipeline.errors import GeneratorError
from pipeline.settings import Settings
from trainer.model.discriminator import BASE, Discriminator
from trainer.model.frame_encoder import FrameCodes, FrameEncoderConfig
from trainer.model.generator import (
    Generator,
    GeneratorConfig,
    build_generator,
    estimate_w_avg,
)
from trainer.model.stylegan3 import FirForm

ConfigT = TypeVar("ConfigT", bound=Settings)

NUM_SHOWN = 3
"""Largest number of mismatches in a message."""
FILTERS = ("resample_filter", "up_filter", "down_filter")
"""Official buffers that follow from the config: they are compared, not loaded."""
W_AVG = "mapping.w_avg"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class DiscriminatorConfig(Settings):
    """The settings that define a discriminator."""

    resolution: int = Field(ge=8, le=4096)
    """Side of a picture, in pixels."""
    widths: tuple[int, ...]
    """Channels at 4, 8, ... pixels."""
    c_dim: int = Field(default=0, ge=0, le=65536)
    """Width of a label. 0: the discriminator has no classes."""
    num_colours: int = Field(default=3, ge=1, le=64)
    """Number of colour channels of a picture."""
    num_half: int = Field(default=0, ge=0, le=16)
    """Number of highest resolutions that use half precision when it is switched on."""
    conv_clamp: float | None = Field(default=None, gt=0)
    """Limit of activations. None: no limit."""
    group_size: int = Field(default=4, ge=0, le=1024)
    """Samples in a group whose standard deviation is a feature. 0: the feature is left out."""
    mapping_layers: int = Field(default=8, ge=1, le=64)
    """Layers of the network that embeds labels."""
    mapping_width: int | None = Field(default=None, ge=1, le=65536)
    """Width of an embedded label. None: the number of channels at 4 pixels."""

    @model_validator(mode="after")
    def _check(self) -> DiscriminatorConfig:
        if BASE << (len(self.widths) - 1) != self.resolution or not all(0 < width <= 65536 for width in self.widths):
            raise ValueError(f"widths {self.widths} do not fit a resolution of {self.resolution}")
        return self


@dataclass(frozen=True, slots=True)
class GeneratorFile:
    """A generator, and maybe a discriminator and an encoder of frames, read from a file. Tensors have the published names."""

    origin: str
    """Name of the file, for messages."""
    form: str
    """Format of the file, for messages."""
    config: GeneratorConfig
    tensors: Mapping[str, Tensor]
    discriminator_config: DiscriminatorConfig | None = None
    discriminator_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the reader had to add or choose, for messages."""
    encoder_config: FrameEncoderConfig | None = None
    encoder_tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def generator(
        self,
        *,
        grouped: bool = False,
        channels_last: bool = True,
        fir: FirForm = "convolution",
        recompute: bool = False,
    ) -> Generator:
        """The generator, in eval mode. Raises GeneratorError if the tensors do not fit the config."""
        try:
            with torch.device("meta"):
                empty = build_generator(self.config)
        except ValueError as error:
            raise GeneratorError(f"{self.origin} has settings that do not define a network: {error}") from error
        check_tensors_fit(empty, self.tensors, self.origin, optional=(W_AVG,))  # before memory is allocated
        network = build_generator(
            self.config, grouped=grouped, channels_last=channels_last, fir=fir, recompute=recompute
        )
        fill(network, self.tensors, self.origin, optional=(W_AVG,))
        if W_AVG not in self.tensors:
            network.mapping.w_avg.copy_(estimate_w_avg(network.mapping))
        return network.eval()

    def discriminator(self, *, channels_last: bool = True) -> Discriminator:
        """The discriminator, in eval mode. Raises GeneratorError if the file has none, or its tensors do not fit."""
        if self.discriminator_config is None:
            raise GeneratorError(f"{self.origin} holds no discriminator")
        with torch.device("meta"):
            empty = build_discriminator_of(self.discriminator_config)
        check_tensors_fit(empty, self.discriminator_tensors, self.origin)
        network = build_discriminator_of(self.discriminator_config, channels_last=channels_last)
        fill(network, self.discriminator_tensors, self.origin)
        return network.eval()

    def frame_codes(self, device: torch.device) -> FrameCodes:
        """The encoder of frames, in eval mode, without gradients. Raises GeneratorError if the file has none, or its tensors do not fit,
        and EncoderError for features that cannot be had."""
        if self.encoder_config is None:
            raise GeneratorError(
                f"{self.origin} holds no encoder of frames; a prior that learns by reconstruction (prior.reconstruction) writes one"
            )
        codes = FrameCodes(self.encoder_config, self.config.num_ws, self.config.w_dim, device)
        fill(codes.encoder, self.encoder_tensors, self.origin)
        codes.encoder.eval().requires_grad_(False)
        return codes


def build_discriminator_of(config: DiscriminatorConfig, *, channels_last: bool = True) -> Discriminator:
    """A discriminator with random weights."""
    return Discriminator(
        config.c_dim,
        config.resolution,
        config.num_colours,
        config.widths,
        num_half=config.num_half,
        clamp=config.conv_clamp,
        group_size=config.group_size,
        mapping_layers=config.mapping_layers,
        mapping_width=config.mapping_width,
        channels_last=channels_last,
    )


def check_tensors_fit(
    network: nn.Module, tensors: Mapping[str, Tensor], origin: str, optional: Iterable[str] = ()
) -> None:
    """Raises GeneratorError, with the first mismatches, unless ``tensors`` has exactly the network's tensors with their shapes."""
    wanted = network.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors and name not in optional]
    problems += [
        f"{name[:80]} is not part of it" for name in tensors if name not in wanted and not name.endswith(FILTERS)
    ]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f", and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        kind = type(network).__name__
        raise GeneratorError(f"{origin} does not hold a {kind} that fits: {'; '.join(problems[:NUM_SHOWN])}{more}")


def fill(network: nn.Module, tensors: Mapping[str, Tensor], origin: str, optional: Iterable[str] = ()) -> None:
    """Loads ``tensors`` into ``network``. Filters among them must equal those that follow from the config.

    Raises GeneratorError for tensors that do not fit or are not finite, and for another filter.
    """
    check_tensors_fit(network, tensors, origin, optional)
    wanted = network.state_dict()
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not bool(tensor.isfinite().all()):
            raise GeneratorError(f"{origin} is damaged: {name[:80]} holds NaN, infinity or integers")
        if name not in wanted:
            _check_filter(network, name, tensor, origin)
    network.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)


def _check_filter(network: nn.Module, name: str, tensor: Tensor, origin: str) -> None:
    owner, _, kind = name.rpartition(".")
    try:
        holder = network.get_submodule(owner)
    except AttributeError as error:
        raise GeneratorError(f"{origin} does not fit: {name[:80]} is not part of it") from error
    ours = getattr(holder, "filter" if kind == "resample_filter" else kind, None)
    if ours is None or ours.numel() == 1:
        return  # official networks also keep filters that they do not use
    if ours.shape != tensor.shape or not torch.allclose(ours, tensor.float(), atol=1e-5):
        raise GeneratorError(f"{origin} uses another filter than its settings define ({name}); that is not supported")


def checked_config(kind: type[ConfigT], values: Mapping[str, object], origin: str) -> ConfigT:
    """The validated config. Raises GeneratorError with all problems."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'config'}: {one['msg']}" for one in error.errors())
        raise GeneratorError(f"{origin} has settings that cannot be used: {wrong}") from error
