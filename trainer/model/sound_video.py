"""From sound to styles: the inversion encoder, the recurrent blocks, and the whole model with its generator.

After "Sound-Guided Semantic Video Generation" (ECCV 2022), section 3: a sound is inverted into W+, and recurrent blocks for
coarse, middle and fine layers carry the styles from one segment of the sound to the next. Where the paper is silent, this
is ours: a block also pulls the styles towards the inversion of the segment that is heard, so that sound reaches every frame.

Shape suffixes: B samples, S segments, M mel bands, T mel frames of a segment, F features, L layers that take a style each,
G layers of one group, D numbers of a style, Z of a latent, N noise numbers, K samples of sound, C H W of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import timm
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.mel import LogMel, MelConfig
from pipeline.errors import EncoderError
from pipeline.settings import Settings
from trainer.model.generator import Generator

START_PULL = 0.7
"""How far a step moves from the styles before to those of the segment that is heard, before training."""


class SoundVideoConfig(Settings):
    """What a model is besides its weights; written into its file."""

    version: Literal[1] = 1
    """Version of this format."""
    backbone: str = "resnet18"
    """Name of the timm network that hears."""
    num_frames: int = Field(default=5, ge=2, le=256)
    """Frames of a training clip: a window of sound is cut into as many segments, and each gives one frame's styles."""
    window_seconds: float = Field(default=10.0, gt=0, le=600)
    """Span of a training clip, in seconds."""
    hidden_width: int = Field(default=256, ge=1, le=65536)
    """Numbers that a recurrent block remembers."""
    noise_width: int = Field(default=32, ge=1, le=65536)
    """Numbers of noise that each block gets in each step."""
    blocks: Literal["three", "one"] = "three"
    """three: a recurrent block for coarse, middle and fine layers each. one: a single one for all layers (the paper's ablation)."""
    truncation: float = Field(default=0.7, gt=0, le=1)
    """psi of the style that a sound's inversion is added to."""
    mel: MelConfig = MelConfig()
    """The mel front end."""

    @model_validator(mode="after")
    def _has_segments(self) -> Self:
        if self.segment_samples < 1:
            raise ValueError(f"a window of {self.window_seconds:g} s has no {self.num_frames} segments of sound")
        return self

    @property
    def segment_seconds(self) -> float:
        """Length of the segment of sound that gives one frame's styles."""
        return self.window_seconds / self.num_frames

    @property
    def segment_samples(self) -> int:
        """The same in samples of sound."""
        return round(self.segment_seconds * self.mel.sample_rate_hz)


class SoundInversion(nn.Module):
    """E_a: mels to offsets in W+. A timm network, and a head for the coarse, the middle and the fine layers (section 3.1)."""

    def __init__(self, backbone: str, groups: Sequence[int], w_dim: int) -> None:
        """``groups``: how many layers each group has. Raises EncoderError for a network that timm has not."""
        super().__init__()
        if not timm.is_model(backbone):
            raise EncoderError(f"timm has no network named {backbone!r}; the paper's is 'resnet18'")
        self.conv = nn.Conv2d(1, 3, 3)
        self.body = timm.create_model(backbone, pretrained=False, num_classes=0)
        self.num_features = int(getattr(self.body, "num_features"))  # noqa: B009
        self.w_dim = w_dim
        self.norm = nn.LayerNorm(self.num_features)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(self.num_features, self.num_features),
                nn.GELU(),
                nn.Linear(self.num_features, layers * w_dim),
            )
            for layers in groups
        )

    def features(self, mels_BMT: Tensor) -> Tensor:
        """(B, F)."""
        rows: Tensor = self.norm(self.body(self.conv(mels_BMT.unsqueeze(1))))
        return rows

    def offsets(self, features_BF: Tensor) -> Tensor:
        """(B, L, D)."""
        parts = [head(features_BF).view(len(features_BF), -1, self.w_dim) for head in self.heads]
        return torch.cat(parts, 1)

    def forward(self, mels_BMT: Tensor) -> Tensor:
        """(B, M, T) mels of any length -> (B, L, D), what is added to the styles of a latent."""
        return self.offsets(self.features(mels_BMT))


class RecurrentBlock(nn.Module):
    """Carries the styles of one group of layers a step further: w^t = w^{t-1} + pull (ŵ_t - w^{t-1}) + residual.

    ``ŵ_t`` is the inversion of the segment that is heard now. ``pull``, 0..1, is learned, one for each layer; the residual
    comes from a GRU (Cho et al., arXiv:1406.1078) that sees the styles before, the sound's features and noise.
    """

    def __init__(self, num_layers: int, w_dim: int, num_features: int, hidden_width: int, noise_width: int) -> None:
        super().__init__()
        self.num_layers, self.w_dim = num_layers, w_dim
        self.cell = nn.GRUCell(num_features + 2 * w_dim + noise_width, hidden_width)
        self.residual = nn.Linear(hidden_width, num_layers * w_dim)
        nn.init.zeros_(self.residual.bias)
        with torch.no_grad():
            self.residual.weight.mul_(0.01)  # at first a walk is little more than the inversions themselves
        self.pull = nn.Parameter(torch.full((num_layers, 1), math.log(START_PULL / (1 - START_PULL))))

    def forward(
        self, before_BGD: Tensor, wanted_BGD: Tensor, features_BF: Tensor, noise_BN: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The styles after the step, and what the block remembers."""
        seen = torch.cat([features_BF, before_BGD.mean(1), wanted_BGD.mean(1), noise_BN], 1)
        memory = self.cell(seen, memory)
        residual_BGD = self.residual(memory).view_as(before_BGD)
        return before_BGD + torch.sigmoid(self.pull) * (wanted_BGD - before_BGD) + residual_BGD, memory


class SoundVideoModel(nn.Module):
    """Sound to styles to pictures: what the stages ``invert`` and ``video`` train, and ``trainer.generate`` runs."""

    def __init__(self, config: SoundVideoConfig, generator: Generator) -> None:
        """The generator's input transform is frozen at its average style, so that the picture does not turn or drift.

        Raises EncoderError for a backbone that timm has not.
        """
        super().__init__()
        self.config = config
        self.generator = generator
        generator.freeze_input()
        groups = [len(group) for group in generator.layer_groups]
        self.inversion = SoundInversion(config.backbone, groups, generator.w_dim)
        self._sizes = groups if config.blocks == "three" else [sum(groups)]
        self.blocks = nn.ModuleList(
            RecurrentBlock(size, generator.w_dim, self.inversion.num_features, config.hidden_width, config.noise_width)
            for size in self._sizes
        )
        self.front_end = LogMel(config.mel)

    @property
    def w_avg(self) -> Tensor:
        """(D,): w̄, the generator's average style."""
        return self.generator.w_avg

    def base_styles(self, z_BZ: Tensor, truncation: float | None = None) -> Tensor:
        """(B, L, D): w, the truncated styles of latents. ``truncation`` None: the config's psi. Without gradient."""
        psi = self.config.truncation if truncation is None else truncation
        with torch.no_grad():
            ws_BLD: Tensor = self.generator.mapping(z_BZ, truncation_psi=psi)
        return ws_BLD

    def invert(self, mels_BMT: Tensor, base_BLD: Tensor) -> Tensor:
        """(B, L, D): ŵ_a = E_a(x_a) + w, of mels of any length."""
        offsets_BLD: Tensor = self.inversion(mels_BMT)
        return base_BLD + offsets_BLD

    def walk(self, segments_BSMT: Tensor, base_BLD: Tensor, noise_BSN: Tensor) -> Tensor:
        """(B, S, L, D): the styles of every segment, the first its inversion, each later one from the one before.

        ``noise_BSN`` is standard normal, ``num_noise`` numbers for each step.
        """
        features = self.inversion.features(segments_BSMT.flatten(0, 1))
        return self.carry(features.view(*segments_BSMT.shape[:2], -1), base_BLD, noise_BSN)

    def carry(self, features_BSF: Tensor, base_BLD: Tensor, noise_BSN: Tensor) -> Tensor:
        """``walk`` for segments whose features are there already: of a long sound they fit in memory, its mels do not."""
        batch, steps = features_BSF.shape[:2]
        offsets = self.inversion.offsets(features_BSF.flatten(0, 1))
        wanted_BSLD = offsets.view(batch, steps, *base_BLD.shape[1:]) + base_BLD[:, None]
        styles = wanted_BSLD[:, 0]
        walked = [styles]
        memories: list[Tensor | None] = [None] * len(self.blocks)
        for step in range(1, steps):
            parts = []
            each = zip(
                torch.split(styles, self._sizes, 1),
                torch.split(wanted_BSLD[:, step], self._sizes, 1),
                noise_BSN[:, step].chunk(len(self.blocks), 1),
                strict=True,
            )
            for number, (before, wanted, noise) in enumerate(each):
                after, memories[number] = self.blocks[number](
                    before, wanted, features_BSF[:, step], noise, memories[number]
                )
                parts.append(after)
            styles = torch.cat(parts, 1)
            walked.append(styles)
        return torch.stack(walked, 1)

    @property
    def num_noise(self) -> int:
        """Numbers of noise in each step of a walk."""
        return self.config.noise_width * len(self.blocks)

    def draw(self, styles_BLD: Tensor) -> Tensor:
        """Pictures (B, C, H, W), about -1..1."""
        pictures: Tensor = self.generator.synthesis(styles_BLD, noise_mode="const")
        return pictures

    def segments_of(self, mels_BMT: Tensor, seconds_B: Tensor | None = None) -> Tensor:
        """(B, S, M, T): the mels of windows, (B, M, frames), cut into ``config.num_frames`` equal segments, a rest left out.

        ``seconds_B``: length of the real sound in each window; None: all of it. A sound that is shorter than its window is cut
        over its own length, as the reader spreads its frames, and each of its segments ends in silence (0).
        """
        steps, frames = self.config.num_frames, mels_BMT.shape[2]
        length = frames // steps
        if seconds_B is None:
            cut = mels_BMT[:, :, : length * steps]
            return cut.reshape(*cut.shape[:2], steps, length).permute(0, 2, 1, 3)
        mel = self.config.mel
        num_real_B = [mel.num_frames(round(seconds * mel.sample_rate_hz)) for seconds in seconds_B.tolist()]
        segments_BSMT = mels_BMT.new_zeros(len(mels_BMT), steps, mels_BMT.shape[1], length)
        for row, num_real in enumerate(num_real_B):
            own = max(1, min(frames, num_real) // steps)
            cut = mels_BMT[row, :, : own * steps]
            segments_BSMT[row, :, :, :own] = cut.reshape(len(cut), steps, own).permute(1, 0, 2)
        return segments_BSMT

    @torch.no_grad()
    def segments_of_sound(self, sound_K: Tensor) -> Tensor:
        """(S, M, T): a mono sound of any length at ``config.mel.sample_rate_hz``, heard window by window, as in training.

        Silence follows until the last window is whole; segments that hold nothing but that silence are left out.
        Raises MediaError for a sound without samples, or with NaN or infinity.
        """
        config = self.config
        window = round(config.window_seconds * config.mel.sample_rate_hz)
        num_segments = max(1, math.ceil(len(sound_K) / (window / config.num_frames)))
        padded = functional.pad(sound_K, (0, -len(sound_K) % window)) if len(sound_K) else sound_K
        windows = padded.view(-1, window) if len(padded) else padded[None]
        cut = [self.segments_of(self.front_end(some)) for some in torch.split(windows, 16)]
        return torch.cat(cut).flatten(0, 1)[:num_segments]
