"""The model from sound to pictures: the inversion encoder, the recurrent blocks and the generator.

After "Sound-Guided Semantic Video Generation" (ECCV 2022), section 3: a sound is inverted into W+, and recurrent blocks for coarse,
middle and fine layers compute the styles of each segment of the sound from those of the segment before.

Shape suffixes: B samples, S segments, M mel bands, T mel frames of a segment, F features, L layers that take a style each,
D numbers of a style, Z of a latent, N noise numbers, K samples of sound, C H W of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import timm
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.mel import LogMel, MelConfig
from pipeline.errors import EncoderError
from pipeline.settings import Settings
from trainer.model.fast_path import FastPath, PathState
from trainer.model.generator import Generator
from trainer.model.recurrent_block import Blocks, RecurrentBlock, width_of_one_block

MIN_MEL_FRAMES = 35
"""The shortest input of the inversion encoder, about 0.4 s. A ResNet halves it five times. With 35 frames or more, every feature map inside
is at least two wide.

On maps one wide, oneDNN 3.11 (in torch 2.11 and 2.12) reads uninitialised memory when it computes the weights' gradient of a bf16
convolution with stride 2 on Intel processors with AVX-512 and without bf16 (instruction set avx512_core). The gradient is NaN."""


class SoundVideoConfig(Settings):
    """The settings that define a model; stored in its file."""

    version: Literal[1] = 1
    """Version of this format."""
    backbone: str = "resnet18"
    """Name of the timm network that encodes mels."""
    num_frames: int = Field(default=5, ge=2, le=256)
    """Frames of a training clip. A window of sound is cut into this many segments, and each gives the styles of one frame."""
    window_seconds: float = Field(default=10.0, gt=0, le=600)
    """Length of a training clip, in seconds."""
    hidden_width: int = Field(default=256, ge=1, le=65536)
    """Width of a recurrent block's hidden state."""
    noise_width: int = Field(default=32, ge=1, le=65536)
    """Width of the noise that a block gets in each step."""
    blocks: Blocks = "three"
    """three: a recurrent block each for coarse, middle and fine layers. one: a single block for all layers. one_equal: a single block with
    about as many parameters as three blocks of ``hidden_width`` (the paper's ablation)."""
    pull: bool = True
    """Whether a block also moves the styles towards the inversion of the current segment. Not in the paper."""
    motion_fps: float = Field(default=0.0, ge=0, le=240)
    """Moments of the fast path to the second. 0: there is none, as in the paper."""
    motion_width: int = Field(default=64, ge=1, le=65536)
    """Numbers of its state."""
    motion_directions: int = Field(default=16, ge=1, le=1024)
    """Directions of W+ in which it moves the picture."""
    truncation: float = Field(default=0.7, ge=0, le=1)
    """psi of the style that a sound's inversion is added to. 0: the average style."""
    latent_width: int = Field(default=0, ge=0, le=65536)
    """Numbers of the latent that the inversion encoder gets beside the sound, so that one sound has several inversions. 0: none, as in the
    paper; a latent then only chooses the style that the inversion is added to."""
    style_mean: Literal["generator", "encoder"] = "generator"
    """The style that training keeps inversions near. generator: its average style. encoder: the mean of the inversions, which is kept
    with the encoder's weights."""
    mel: MelConfig = MelConfig()
    """The mel front end."""

    @model_validator(mode="after")
    def _has_segments(self) -> Self:
        if self.motion_fps and self.num_moments < self.num_frames:
            raise ValueError(
                f"motion_fps {self.motion_fps:g}: fewer moments than the {self.num_frames} segments of a window"
            )
        if self.segment_samples < 1:
            raise ValueError(f"a window of {self.window_seconds:g} s has no {self.num_frames} segments of sound")
        return self

    @property
    def segment_seconds(self) -> float:
        """Length of the segment of sound that gives one frame's styles."""
        return self.window_seconds / self.num_frames

    @property
    def num_moments(self) -> int:
        """Moments of the fast path in a window."""
        return round(self.window_seconds * self.motion_fps)

    @property
    def segment_samples(self) -> int:
        """Length of a segment, in samples of sound."""
        return round(self.segment_seconds * self.mel.sample_rate_hz)


class Start(NamedTuple):
    """What a latent decides before any sound is heard."""

    base_BLD: Tensor
    """w, the style that inversions are added to."""
    latent_BN: Tensor
    """The numbers of the latent that the inversion encoder gets."""

    def rows(self, rows: slice | Tensor) -> Start:
        """Some rows of the batch."""
        return Start(self.base_BLD[rows], self.latent_BN[rows])

    def repeated(self, count: int) -> Start:
        """Each row ``count`` times."""
        return Start(self.base_BLD.repeat_interleave(count, 0), self.latent_BN.repeat_interleave(count, 0))


class SoundInversion(nn.Module):
    """E_a: mels to offsets in W+. A timm network, and a head for the coarse, the middle and the fine layers (section 3.1)."""

    mean_code: Tensor | None
    """(L, D): w̄_a, the running mean of the codes ŵ_a, which training updates. None: it is not computed."""

    def __init__(
        self,
        backbone: str,
        groups: Sequence[int],
        w_dim: int,
        start_mean: Tensor | None = None,
        *,
        latent_width: int = 0,
    ) -> None:
        """``groups``: the number of layers of each group. ``start_mean``: first value of the mean of the codes, (D,) or (L, D).

        Raises EncoderError for a network that timm does not know.
        """
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
                nn.Linear(self.num_features + latent_width, self.num_features),
                nn.GELU(),
                nn.Linear(self.num_features, layers * w_dim),
            )
            for layers in groups
        )
        mean_LD = None if start_mean is None else start_mean.expand(sum(groups), w_dim).clone()
        self.register_buffer("mean_code", mean_LD)

    def features(self, mels_BMT: Tensor) -> Tensor:
        """(B, F): features of mels. Mels with fewer than ``MIN_MEL_FRAMES`` frames are filled up with silence (0)."""
        mels_BMT = functional.pad(mels_BMT, (0, max(0, MIN_MEL_FRAMES - mels_BMT.shape[2])))
        rows: Tensor = self.norm(self.body(self.conv(mels_BMT.unsqueeze(1))))
        return rows

    def offsets(self, features_BF: Tensor, latent_BN: Tensor) -> Tensor:
        """(B, L, D): offsets in W+ from features and the numbers of a latent."""
        inputs = torch.cat([features_BF, latent_BN.to(features_BF.dtype)], 1)
        parts = [head(inputs).view(len(inputs), -1, self.w_dim) for head in self.heads]
        return torch.cat(parts, 1)

    def forward(self, mels_BMT: Tensor, latent_BN: Tensor) -> Tensor:
        """(B, M, T) mels of any length -> (B, L, D), the offsets that are added to the styles of a latent."""
        return self.offsets(self.features(mels_BMT), latent_BN)


class SoundVideoModel(nn.Module):
    """Sound to styles to pictures: the model that the stages ``invert`` and ``video`` train, and that ``trainer.generate`` runs."""

    def __init__(self, config: SoundVideoConfig, generator: Generator) -> None:
        """Freezes the generator's input transform at its average style, so that the picture does not turn or drift.

        Raises EncoderError for a backbone that timm does not know.
        """
        super().__init__()
        self.config = config
        self.generator = generator
        generator.freeze_input()
        groups = [len(group) for group in generator.layer_groups]
        start_mean = generator.w_avg if config.style_mean == "encoder" else None
        self.inversion = SoundInversion(
            config.backbone, groups, generator.w_dim, start_mean, latent_width=config.latent_width
        )
        self._sizes = groups if config.blocks == "three" else [sum(groups)]
        w_dim, num_features, width = generator.w_dim, self.inversion.num_features, config.hidden_width
        if config.blocks == "one_equal":
            width = width_of_one_block(groups, w_dim, num_features, width, config.noise_width)
        self.blocks = nn.ModuleList(
            RecurrentBlock(size, w_dim, num_features, width, config.noise_width, has_pull=config.pull)
            for size in self._sizes
        )
        self.motion: FastPath | None = None
        """The fast path. None: the model has none."""
        if config.motion_fps:
            self.motion = FastPath(num_features, config.motion_width, config.motion_directions, generator.num_ws, w_dim)
        self.front_end = LogMel(config.mel)

    @property
    def w_avg(self) -> Tensor:
        """(D,) or (L, D): the generator's average style."""
        return self.generator.w_avg

    @property
    def style_mean(self) -> Tensor:
        """(D,) or (L, D): w̄, the style that training keeps inversions near."""
        mean_code = self.inversion.mean_code
        return self.w_avg if mean_code is None else mean_code

    def start(self, z_BZ: Tensor, truncation: float | None = None) -> Start:
        """The truncated styles of latents, without gradient, and their numbers for the encoder. ``truncation`` None: psi of the config."""
        psi = self.config.truncation if truncation is None else truncation
        latent_BN = z_BZ[:, : self.config.latent_width]
        if psi == 0:  # a mapping to W+ takes many passes
            return Start(self.w_avg.expand(len(z_BZ), self.generator.num_ws, -1), latent_BN)
        with torch.no_grad():
            return Start(self.generator.mapping(z_BZ, truncation_psi=psi), latent_BN)

    def invert(self, mels_BMT: Tensor, start: Start) -> Tensor:
        """(B, L, D): ŵ_a = E_a(x_a) + w (section 3.1), for mels of any length."""
        offsets_BLD: Tensor = self.inversion(mels_BMT, start.latent_BN)
        return start.base_BLD + offsets_BLD

    def walk(self, segments_BSMT: Tensor, start: Start, noise_BSN: Tensor) -> Tensor:
        """(B, S, L, D): the styles of every segment. The first is its inversion; each later one is computed from the one before.

        ``noise_BSN`` is standard normal, with ``num_noise`` numbers for each segment.
        """
        features = self.inversion.features(segments_BSMT.flatten(0, 1))
        return self.carry(features.view(*segments_BSMT.shape[:2], -1), start, noise_BSN)

    def carry(self, features_BSF: Tensor, start: Start, noise_BSN: Tensor) -> Tensor:
        """Like ``walk``, from the features of the segments: those of a long sound fit into memory, its mels do not."""
        steps = features_BSF.shape[1]
        inverted_BSLD = self.inverted(features_BSF, start)
        styles = inverted_BSLD[:, 0]
        all_styles = [styles]
        hidden: list[Tensor | None] = [None] * len(self.blocks)
        for step in range(1, steps):
            parts = []
            inputs_of_blocks = zip(
                torch.split(styles, self._sizes, 1),
                torch.split(inverted_BSLD[:, step], self._sizes, 1),
                noise_BSN[:, step].chunk(len(self.blocks), 1),
                strict=True,
            )
            for number, (before, inverted, noise) in enumerate(inputs_of_blocks):
                after, hidden[number] = self.blocks[number](
                    before, inverted, features_BSF[:, step], noise, hidden[number]
                )
                parts.append(after)
            styles = torch.cat(parts, 1)
            all_styles.append(styles)
        return torch.stack(all_styles, 1)

    def inverted(self, features_BSF: Tensor, start: Start) -> Tensor:
        """(B, S, L, D): the inversions of segments, from their features."""
        batch, steps = features_BSF.shape[:2]
        offsets = self.inversion.offsets(features_BSF.flatten(0, 1), start.repeated(steps).latent_BN)
        return offsets.view(batch, steps, *start.base_BLD.shape[1:]) + start.base_BLD[:, None]

    def follow(self, sound_K: Tensor, features_SF: Tensor, before: PathState | None) -> tuple[Tensor, PathState | None]:
        """(R, W): the states of the fast path over a sound, in whole windows, and what a following part goes on from.

        ``features_SF`` are those of the sound's segments. Without a fast path W is 0.
        """
        config, states = self.config, [features_SF[:0, :0]]
        if self.motion is None:
            return states[0], None
        for number, window_K in enumerate(self.windows_of(sound_K)):
            own_SF = features_SF[number * config.num_frames : (number + 1) * config.num_frames]
            missing = config.num_frames - len(own_SF)  # a last window without sound at its end
            own_SF = torch.cat([own_SF, own_SF[-1:].expand(missing, -1)])
            rows, before = self.motion.follow(self.front_end(window_K[None]), own_SF[None], config.num_moments, before)
            states.append(rows[0])
        return torch.cat(states[1:]), before

    @property
    def num_noise(self) -> int:
        """Width of the noise for one segment, over all blocks."""
        return self.config.noise_width * len(self.blocks)

    def draw(self, styles_BLD: Tensor) -> Tensor:
        """The pictures (B, C, H, W), about -1..1, of styles."""
        pictures: Tensor = self.generator.synthesis(styles_BLD, noise_mode="const")
        return pictures

    def segments_of(self, mels_BMT: Tensor, seconds_B: Tensor | None = None) -> Tensor:
        """(B, S, M, T): the mels of windows (B, M, frames), cut into ``config.num_frames`` equal segments; a remainder is left out.

        ``seconds_B``: length of the sound in each window; None: the whole window. A sound that is shorter than its window is divided over
        its own length, like the reader's frames, and each of its segments is filled up with silence (0).
        """
        num_segments, num_frames = self.config.num_frames, mels_BMT.shape[2]
        length = num_frames // num_segments
        if seconds_B is None:
            whole_BMT = mels_BMT[:, :, : length * num_segments]
            return whole_BMT.reshape(*whole_BMT.shape[:2], num_segments, length).permute(0, 2, 1, 3)
        mel = self.config.mel
        num_real_B = [mel.num_frames(round(seconds * mel.sample_rate_hz)) for seconds in seconds_B.tolist()]
        segments_BSMT = mels_BMT.new_zeros(len(mels_BMT), num_segments, mels_BMT.shape[1], length)
        for row, num_real in enumerate(num_real_B):
            own_length = max(1, min(num_frames, num_real) // num_segments)
            real_MT = mels_BMT[row, :, : own_length * num_segments]
            split_MST = real_MT.reshape(len(real_MT), num_segments, own_length)
            segments_BSMT[row, :, :, :own_length] = split_MST.permute(1, 0, 2)
        return segments_BSMT

    @torch.no_grad()
    def segments_of_sound(self, sound_K: Tensor) -> Tensor:
        """(S, M, T): the segments of a mono sound (K,) at ``config.mel.sample_rate_hz``, with mels of whole windows, as in training.

        The last window is filled up with silence; segments with silence only are left out. Raises MediaError for a sound without samples,
        or with NaN or infinity.
        """
        config = self.config
        window = round(config.window_seconds * config.mel.sample_rate_hz)
        num_segments = max(1, math.ceil(len(sound_K) / (window / config.num_frames)))
        parts = [self.segments_of(self.front_end(part)) for part in torch.split(self.windows_of(sound_K), 16)]
        return torch.cat(parts).flatten(0, 1)[:num_segments]

    def windows_of(self, sound_K: Tensor) -> Tensor:
        """(windows, samples): a mono sound in windows; the last is filled up with silence."""
        window = round(self.config.window_seconds * self.config.mel.sample_rate_hz)
        padded = functional.pad(sound_K, (0, -len(sound_K) % window)) if len(sound_K) else sound_K
        return padded.view(-1, window) if len(padded) else padded[None]
