"""The generator, from latents to styles to pictures, and its config.

``num_ws``, ``layer_groups``, ``w_avg``, ``mapping`` and ``synthesis`` are the same for StyleGAN2 and StyleGAN3.

Shape suffixes: B batch, C colours, H W rows and columns, Z numbers of a latent, D of a style, L layers that take a style each.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.settings import Settings
from trainer.model.code_mapping import CodeMapping
from trainer.model.discriminator import Discriminator
from trainer.model.layers import MappingNetwork
from trainer.model.stylegan2 import BASE, NoiseMode, StyleGan2Synthesis
from trainer.model.stylegan3 import Band, FirForm, StyleGan3Synthesis, bands

MAX_RATIO = 4
"""Largest ratio between the sampling rates of neighbouring layers. Published networks have at most 2."""
NUM_FOR_AVERAGE = 10_000
"""Number of latents in ``estimate_w_avg``."""


class GeneratorConfig(Settings):
    """The settings that define a generator; stored in our files, and derived from files of other formats."""

    kind: Literal["stylegan2", "stylegan3"]
    """Which synthesis network. StyleGAN3-T and -R differ in ``conv_kernel`` and ``radial_filters``."""
    resolution: int = Field(ge=8, le=4096)
    """Side of a picture, in pixels; a power of two."""
    z_dim: int = Field(default=512, ge=1, le=65536)
    """Width of a latent."""
    c_dim: int = Field(default=0, ge=0, le=65536)
    """Width of a label. 0: the generator has no classes."""
    w_dim: int = Field(default=512, ge=1, le=65536)
    """Width of a style."""
    num_colours: int = Field(default=3, ge=1, le=64)
    """Number of colour channels of a picture."""
    mapping_layers: int = Field(default=8, ge=1, le=64)
    """Layers of the mapping network."""
    styles: Literal["w", "w_plus"] = "w"
    """What the mapping network gives. w: one style for all layers. w_plus: a style for each layer, as a prior by reconstruction learns;
    ``z_dim`` is then the number of layers that take a style times ``w_dim``."""
    code_width: int = Field(default=512, ge=1, le=65536)
    """w_plus: width of the mapping network's layers."""
    channel_base: int = Field(default=32768, ge=1, le=2**24)
    """The channels at a resolution are this number divided by the resolution, at most ``channel_max``."""
    channel_max: int = Field(default=512, ge=1, le=65536)
    """Largest number of channels."""
    widths: tuple[int, ...] | None = None
    """stylegan2: channels at 4, 8, ... pixels. None: from ``channel_base`` and ``channel_max``."""
    num_half: int = Field(default=0, ge=0, le=16)
    """Number of highest resolutions that use half precision when it is switched on (num_fp16_res in the official code)."""
    conv_clamp: float | None = Field(default=None, gt=0)
    """Limit of activations, for half precision. None: no limit."""
    w_avg_beta: float = Field(default=0.998, ge=0, lt=1)
    """Weight of the old average style in each update."""
    conv_kernel: int = Field(default=3, ge=1, le=15)
    """stylegan3: side of the kernels, 3 (T) or 1 (R)."""
    radial_filters: bool = False
    """stylegan3: downsampling filters equal in all directions (R)."""
    num_layers: int = Field(default=14, ge=4, le=64)
    """stylegan3: number of layers, without the input and the layer to colours."""
    num_critical: int = Field(default=2, ge=1, le=16)
    """stylegan3: number of last layers with critical sampling."""
    first_cutoff: float = Field(default=2.0, ge=1, le=64)
    """stylegan3: cutoff of the first layer, cycles per picture width."""
    first_stopband: float = Field(default=2**2.1, gt=1, le=256)
    """stylegan3: stopband of the first layer, cycles per picture width."""
    last_stopband_rel: float = Field(default=2**0.3, gt=1, le=4)
    """stylegan3: stopband of the last layer, as a multiple of its cutoff."""
    margin: int = Field(default=10, ge=0, le=256)
    """stylegan3: margin around the picture, in samples."""
    filter_size: int = Field(default=6, ge=2, le=16)
    """stylegan3: number of filter taps per unit of the resampling factor."""
    oversampling: int = Field(default=2, ge=1, le=8)
    """stylegan3: oversampling of the rectifiers."""
    output_scale: float = 0.25
    """stylegan3: factor on the picture."""
    magnitude_beta: float = Field(default=0.999, ge=0, lt=1)
    """stylegan3: weight of the old magnitude in each update, unless the stage ``prior`` sets it by a half-life."""

    @model_validator(mode="after")
    def _check(self) -> GeneratorConfig:
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution {self.resolution} is no power of two")
        if self.widths is not None:
            steps = int(math.log2(self.resolution // BASE)) + 1
            if self.kind != "stylegan2" or len(self.widths) != steps or not all(0 < w <= 65536 for w in self.widths):
                raise ValueError(
                    f"widths {self.widths}: stylegan2 at {self.resolution} pixels takes {steps}, from 1 up"
                )
        if self.styles == "w_plus" and (self.z_dim != self.num_ws * self.w_dim or self.c_dim):
            raise ValueError(
                f"styles w_plus: give z_dim {self.num_ws * self.w_dim}, the {self.num_ws} layers' {self.w_dim} numbers, and c_dim 0"
            )
        if self.num_critical >= self.num_layers - 1:
            raise ValueError(f"num_critical {self.num_critical} leaves too few of {self.num_layers} layers")
        if self.kind == "stylegan3":
            if not self.first_cutoff < min(self.first_stopband, self.resolution / 2):
                raise ValueError(f"first_cutoff {self.first_cutoff} is not below first_stopband and resolution / 2")
            rates = [band.rate for band in bands_of(self)]
            if any(max(a, b) > MAX_RATIO * min(a, b) for a, b in pairwise(rates)):
                raise ValueError(f"rates grow more than {MAX_RATIO} times from a layer to the next: take more layers")
        return self

    @property
    def num_ws(self) -> int:
        """Number of layers that take a style."""
        return 2 * int(math.log2(self.resolution // BASE)) + 2 if self.kind == "stylegan2" else self.num_layers + 2

    def with_codes(self) -> GeneratorConfig:
        """The same synthesis network behind a mapping to W+."""
        return self.model_copy(update={"styles": "w_plus", "z_dim": self.num_ws * self.w_dim})


class LayerGroups(NamedTuple):
    """The layers of W+ in three groups, disjoint and complete."""

    coarse: range
    """Layout and pose."""
    middle: range
    """Shapes."""
    fine: range
    """Colours and texture."""


class Generator(nn.Module):
    """Latents (B, Z) to pictures (B, C, resolution, resolution), about -1..1, float32.

    ``mapping(z)`` returns W+ (B, L, D). ``synthesis(ws)`` takes W (B, D) or W+. The state dict has the published names.
    """

    def __init__(
        self, mapping: MappingNetwork | CodeMapping, synthesis: StyleGan2Synthesis | StyleGan3Synthesis
    ) -> None:
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis
        self.z_dim, self.c_dim, self.w_dim = mapping.z_dim, mapping.c_dim, mapping.w_dim
        self.resolution, self.num_ws = synthesis.resolution, synthesis.num_ws

    def forward(
        self,
        z_BZ: Tensor,
        c_BC: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "const",
        update_emas: bool = False,
    ) -> Tensor:
        """``update_emas``, for training, updates the average style and StyleGAN3's magnitudes."""
        ws_BLD = self.mapping(
            z_BZ, c_BC, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff, update_emas=update_emas
        )
        pictures: Tensor = self.synthesis(ws_BLD, noise_mode=noise_mode, update_emas=update_emas)
        return pictures

    @property
    def w_avg(self) -> Tensor:
        """(D,), or (L, D) for ``w_plus``: the average style, the target of truncation."""
        return self.mapping.w_avg

    @property
    def layer_groups(self) -> LayerGroups:
        """4, 4 and the rest of W+, as in the paper on sound-guided video; thirds where W+ has fewer than 9 layers."""
        first, second = (4, 8) if self.num_ws > 8 else (math.ceil(self.num_ws / 3), math.ceil(self.num_ws * 2 / 3))
        return LayerGroups(range(first), range(first, second), range(second, self.num_ws))

    def freeze_input(self, w_D: Tensor | None = None) -> None:
        """StyleGAN3: one style (None: ``w_avg``) sets the input transform of every picture, so that pictures do not turn or drift.

        For StyleGAN2 it does nothing. The frozen style is not saved with the weights.
        """
        if isinstance(self.synthesis, StyleGan3Synthesis):
            average_D = self.w_avg if self.w_avg.ndim == 1 else self.w_avg[0]
            self.synthesis.input.frozen_w_D = (average_D if w_D is None else w_D).detach().clone()

    def use_magnitude_beta(self, beta: float) -> None:
        """StyleGAN3: sets the weight of the old magnitude in each update, 0..1. For StyleGAN2 it does nothing."""
        if isinstance(self.synthesis, StyleGan3Synthesis):
            for name in self.synthesis.layer_names:
                getattr(self.synthesis, name).magnitude_beta = beta

    def use_half(self, dtype: torch.dtype | None) -> None:
        """Sets the number type of the ``num_half`` highest resolutions. None: float32."""
        self.synthesis.half_dtype = dtype


def build_generator(
    config: GeneratorConfig,
    *,
    grouped: bool = False,
    channels_last: bool = True,
    fir: FirForm = "convolution",
    recompute: bool = False,
) -> Generator:
    """A generator with random weights. The other arguments change speed and memory only; ``benchmarks/generator.py`` measures them."""
    synthesis: StyleGan2Synthesis | StyleGan3Synthesis
    if config.kind == "stylegan2":
        synthesis = StyleGan2Synthesis(
            config.w_dim,
            config.resolution,
            config.num_colours,
            widths_of(config),
            num_half=config.num_half,
            clamp=config.conv_clamp,
            grouped=grouped,
            channels_last=channels_last,
        )
    else:
        synthesis = StyleGan3Synthesis(
            config.w_dim,
            bands_of(config),
            num_critical=config.num_critical,
            kernel=config.conv_kernel,
            radial=config.radial_filters,
            filter_size=config.filter_size,
            oversampling=config.oversampling,
            output_scale=config.output_scale,
            num_half=config.num_half,
            clamp=config.conv_clamp,
            magnitude_beta=config.magnitude_beta,
            fir=fir,
            grouped=grouped,
            channels_last=channels_last,
            recompute=recompute,
        )
    return Generator(_build_mapping(config, synthesis.num_ws), synthesis)


def _build_mapping(config: GeneratorConfig, num_ws: int) -> MappingNetwork | CodeMapping:
    if config.styles == "w_plus":
        return CodeMapping(config.w_dim, num_ws, width=config.code_width, num_layers=config.mapping_layers)
    return MappingNetwork(
        config.z_dim,
        config.c_dim,
        config.w_dim,
        num_ws,
        num_layers=config.mapping_layers,
        w_avg_beta=config.w_avg_beta,
    )


def build_discriminator(config: GeneratorConfig, *, channels_last: bool = True) -> Discriminator:
    """StyleGAN2's discriminator of a generator's resolution, colours, labels and widths, with random weights."""
    return Discriminator(
        config.c_dim,
        config.resolution,
        config.num_colours,
        widths_of(config),
        num_half=config.num_half,
        clamp=config.conv_clamp,
        channels_last=channels_last,
    )


def widths_of(config: GeneratorConfig) -> tuple[int, ...]:
    """Channels at 4, 8, ..., resolution pixels: ``widths``, or else channel_base / side, at most channel_max."""
    if config.widths is not None:
        return config.widths
    sides = [BASE << index for index in range(int(math.log2(config.resolution // BASE)) + 1)]
    return tuple(max(1, min(config.channel_base // side, config.channel_max)) for side in sides)


def bands_of(config: GeneratorConfig) -> list[Band]:
    """stylegan3: the bands of the signals between the layers."""
    return bands(
        config.resolution,
        config.num_colours,
        channel_base=config.channel_base,
        channel_max=config.channel_max,
        num_layers=config.num_layers,
        num_critical=config.num_critical,
        first_cutoff=config.first_cutoff,
        first_stopband=config.first_stopband,
        last_stopband_rel=config.last_stopband_rel,
        margin=config.margin,
    )


def latents(seeds: list[int], z_dim: int) -> Tensor:
    """(len(seeds), Z): a standard normal row for each seed. A row depends on its own seed only."""
    rows = [torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def estimate_w_avg(mapping: MappingNetwork | CodeMapping, num_latents: int = NUM_FOR_AVERAGE) -> Tensor:
    """(D,), or (L, D) for ``w_plus``: the mean style of ``num_latents`` fixed latents, for files without an average style.

    For a conditional network the latents go through its classes in turn.
    """
    device = mapping.w_avg.device
    source = torch.Generator().manual_seed(0)
    z_BZ = torch.randn(num_latents, mapping.z_dim, generator=source).to(device)
    c_BC = None
    if mapping.c_dim:
        c_BC = torch.eye(mapping.c_dim, device=device)[torch.arange(num_latents, device=device) % mapping.c_dim]
    total = torch.zeros(mapping.w_avg.shape, device=device, dtype=torch.float64)
    for first in range(0, num_latents, 1000):
        labels = None if c_BC is None else c_BC[first : first + 1000]
        ws_BLD = mapping(z_BZ[first : first + 1000], labels)
        total += (ws_BLD[:, 0] if total.ndim == 1 else ws_BLD).double().sum(0)
    return (total / num_latents).float()


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 over all tensors and their names: equal for equal weights, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
