"""Generates the frames of a video from a sound of any length, a few frames at a time.

    sound     |-- window --|-- window --|-- w         encoded window by window, as in training
    segments  | 0 | 1 | 2 | 3 | 4 | 5 | 6 |           each gives one row of styles, at its middle
    moments   ,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,, of the fast path, if the model has one; each adds to the styles
    frames    ........................................ their styles are interpolated between the segments by a smooth curve

Memory holds the features and the styles of each segment: about 70 MB for an hour at 1024 pixels.

Shape suffixes: S segments, F features, R moments of the fast path, W numbers of its state, L layers that take a style each, D numbers of a
style, N noise numbers, A instants, M mel bands, T mel frames, B frames of a batch, C H W of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.nn import functional

from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.model.fast_path import PathState
from trainer.model.generator import latents
from trainer.model.pictures import to_uint8
from trainer.model.sound_video import SoundVideoModel
from trainer.rendering.sound_file import Samples, Sound, sound_of_array

WINDOWS_AT_ONCE = 4
"""Windows of sound that are encoded at once."""
SHOWN_COLUMNS = 64
"""Columns of a segment in the spectrogram of the contact sheet."""
MOST_COLUMNS = 1024
"""Largest number of columns of that spectrogram."""
MAX_SEED = 2**63 - 1


class GenerateSettings(Settings):
    """How a video is generated from a sound."""

    seconds: float | None = Field(default=None, gt=0, le=86_400)
    """Length of the video, in seconds. A longer sound is cut. After a shorter one silence follows, and the last picture stays. None: the
    length of the sound."""
    fps: float = Field(default=25.0, ge=1, le=240)
    """Frames per second."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the latent, which decides all that does not come from the sound, and of the noise. The same seed gives the same video."""
    truncation: float | None = Field(default=None, ge=0, le=2)
    """psi of the style that a sound's inversion is added to; lower values are nearer to the average picture. None: the model's own."""
    motion: float = Field(default=1.0, ge=0, le=4)
    """How far the fast path moves the picture, as a share of what it has learned. Without effect on a model that has none."""
    resolution: int | None = Field(default=None, ge=16, le=8192, multiple_of=2)
    """Side of the pictures, in pixels, scaled from the generator's resolution (bicubic). None: the generator's resolution."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures that are generated at once."""
    crf: int = Field(default=18, ge=0, le=51)
    """Quality of the H.264 picture: 0 is lossless, 18 is visually nearly lossless, 51 is the worst."""
    use_blocks: bool = True
    """Whether the recurrent blocks compute the styles. False: every segment gets its own inversion, for a model of the invert stage."""


@dataclass(frozen=True, slots=True)
class SoundFeatures:
    """The encoded sound."""

    features_SF: Tensor
    """Features of the inversion encoder for each segment."""
    motion_RW: Tensor
    """States of the fast path, ``motion_fps`` to the second; W is 0 if the model has none."""
    mel_MT: NDArray[np.float32]
    """The model's spectrogram of the sound, 0..1, for display: at most ``MOST_COLUMNS`` columns."""
    seconds: float
    """Length of the sound that was read, in seconds."""


@torch.no_grad()
def encode_sound(model: SoundVideoModel, sound: Sound, seconds: float | None = None) -> SoundFeatures:
    """Encodes a sound, or its first ``seconds``, in one pass. A last segment with less than half a segment of sound is left out.

    Raises MediaError, with the name of the file, for a sound that cannot be used.
    """
    config, device = model.config, model.w_avg.device
    rate_hz = config.mel.sample_rate_hz
    features: list[Tensor] = []
    motion: list[Tensor] = []
    before: PathState | None = None
    mels: list[Tensor] = []
    num_samples = 0
    size = WINDOWS_AT_ONCE * round(config.window_seconds * rate_hz)
    for chunk in _chunks(sound.mono(rate_hz, seconds), size):
        sound_K = torch.from_numpy(chunk).to(device)
        segments_SMT = model.segments_of_sound(sound_K)
        features.append(model.inversion.features(segments_SMT))
        states_RW, before = model.follow(sound_K, features[-1], before)
        motion.append(states_RW)
        shown_SMT = functional.adaptive_avg_pool2d(segments_SMT, (segments_SMT.shape[1], SHOWN_COLUMNS))
        mels.append(shown_SMT.half().cpu())
        num_samples += len(chunk)
    sound_seconds = num_samples / rate_hz
    num_segments = max(1, math.floor(sound_seconds / config.segment_seconds + 0.5))
    num_columns = max(1, round(sound_seconds / config.segment_seconds * SHOWN_COLUMNS))
    mel_MT = torch.cat(mels).permute(1, 0, 2).flatten(1)[:, :num_columns].float()
    if num_columns > MOST_COLUMNS:
        mel_MT = functional.adaptive_avg_pool2d(mel_MT[None], (len(mel_MT), MOST_COLUMNS))[0]
    num_moments = max(1, math.ceil(sound_seconds * config.motion_fps))
    motion_RW = torch.cat(motion)[:num_moments]
    return SoundFeatures(torch.cat(features)[:num_segments], motion_RW, mel_MT.numpy(), sound_seconds)


def _chunks(blocks: Iterator[Samples], size: int) -> Iterator[Samples]:
    """The same samples in chunks of ``size``; the last may be shorter."""
    waiting: list[Samples] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count - count % size
            yield from np.split(joined[:whole], range(size, whole, size))
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def walk_noise(seed: int, num_segments: int, num_noise: int) -> Tensor:
    """(S, N): standard normal noise. The first rows are the same for any number of segments; the latent uses another stream."""
    source = torch.Generator().manual_seed(int(stable_hash("noise of a walk", seed, length=15), 16))
    return torch.stack([torch.randn(num_noise, generator=source) for _ in range(num_segments)])


@torch.no_grad()
def styles_of(
    model: SoundVideoModel,
    features_SF: Tensor,
    seed: int = 0,
    truncation: float | None = None,
    *,
    use_blocks: bool = True,
) -> Tensor:
    """The styles (S, L, D) of every segment, on the CPU, for the latent and the noise of a seed."""
    device = model.w_avg.device
    start = model.start(latents([seed], model.generator.z_dim).to(device), truncation)
    if not use_blocks:
        return model.inverted(features_SF[None], start)[0].cpu()
    noise_SN = walk_noise(seed, len(features_SF), model.num_noise).to(device)
    return model.carry(features_SF[None], start, noise_SN[None])[0].cpu()


def interpolate_styles(styles_SLD: Tensor, times: Sequence[float], at: Sequence[float]) -> Tensor:
    """(A, L, D): styles at the times ``at``, interpolated between ``styles_SLD`` at the increasing ``times``; all in seconds.

    Each number follows a monotone cubic (Fritsch and Butland 1984, scipy's ``PchipInterpolator``), which stays between the values of its
    two segments. Before the first time and after the last it is constant. Only the styles around ``at`` are used, so that the cost does
    not depend on the length of the video. Raises ValueError for times that do not increase, or whose number differs.
    """
    knots_S = np.asarray(times, np.float64)
    if len(knots_S) != len(styles_SLD) or not len(knots_S) or not bool((np.diff(knots_S) > 0).all()):
        raise ValueError(f"{len(styles_SLD)} rows of styles need as many rising times, got {len(knots_S)}")
    at_A = np.clip(np.asarray(at, np.float64), knots_S[0], knots_S[-1])
    if not len(at_A) or len(knots_S) == 1:
        return styles_SLD[:1].expand(len(at_A), *styles_SLD.shape[1:])
    # the slope at a knot depends on its neighbours; at an end, on the two next knots
    first = max(0, int(np.searchsorted(knots_S, at_A.min(), side="right")) - 3)
    last = min(len(knots_S), int(np.searchsorted(knots_S, at_A.max(), side="left")) + 3)
    curve = PchipInterpolator(knots_S[first:last], styles_SLD[first:last].double().numpy(), axis=0)
    return torch.from_numpy(curve(at_A)).to(styles_SLD.dtype)


@torch.no_grad()
def motion_at(model: SoundVideoModel, moves_RK: Tensor | None, at: Sequence[float]) -> Tensor | float:
    """(A, L, D): what the moves of the fast path add to the styles at these times, in seconds. 0 if there are none.

    Between the middles of its moments moves are interpolated linearly; before the first and after the last they are constant.
    """
    if model.motion is None or moves_RK is None:
        return 0.0
    place_A = (torch.tensor(at, device=moves_RK.device) * model.config.motion_fps - 0.5).clamp(0, len(moves_RK) - 1)
    first_A = place_A.long().clamp_max(max(0, len(moves_RK) - 2))
    next_A = (first_A + 1).clamp_max(len(moves_RK) - 1)
    return model.motion.added(moves_RK[first_A].lerp(moves_RK[next_A], (place_A - first_A)[:, None].clamp(0, 1)))


def num_frames_of(sound_seconds: float, settings: GenerateSettings) -> int:
    """Number of frames of the video. The last frame may end after the sound, by less than its length."""
    seconds = sound_seconds if settings.seconds is None else settings.seconds
    return max(1, math.ceil(round(seconds * settings.fps, 6)))


def frames_of(
    model: SoundVideoModel, styles_SLD: Tensor, motion_RW: Tensor, num_frames: int, settings: GenerateSettings
) -> Iterator[NDArray[np.uint8]]:
    """The frames (H, W, 3), uint8 RGB, generated a batch at a time. Frame i has the styles at i / fps seconds."""
    moves_RK = None if model.motion is None else settings.motion * model.motion.played(motion_RW, settings.seed)
    step = model.config.segment_seconds
    times = [(segment + 0.5) * step for segment in range(len(styles_SLD))]
    for first in range(0, num_frames, settings.batch_size):
        at = [frame / settings.fps for frame in range(first, min(first + settings.batch_size, num_frames))]
        styles_ALD = interpolate_styles(styles_SLD, times, at).to(motion_RW.device)
        yield from draw_pictures(model, styles_ALD + motion_at(model, moves_RK, at), settings.resolution)


@torch.no_grad()
def draw_pictures(model: SoundVideoModel, styles_BLD: Tensor, resolution: int | None = None) -> NDArray[np.uint8]:
    """The pictures (B, H, W, 3), uint8 RGB, of styles. A generator with one colour gives grey pictures."""
    pictures_BCHW = model.draw(styles_BLD.to(model.w_avg.device)).float()
    if resolution is not None and resolution != pictures_BCHW.shape[3]:
        pictures_BCHW = functional.interpolate(pictures_BCHW, (resolution, resolution), mode="bicubic", antialias=True)
    drawn_BHWC: NDArray[np.uint8] = to_uint8(pictures_BCHW.expand(-1, 3, -1, -1)).cpu().numpy()
    return drawn_BHWC


@dataclass(frozen=True, slots=True)
class GeneratedVideo:
    """The video of a sound."""

    encoded: SoundFeatures
    num_frames: int
    frames: Iterator[NDArray[np.uint8]]
    """(H, W, 3), uint8 RGB, each generated when it is read."""


def video_of(model: SoundVideoModel, sound: Sound, settings: GenerateSettings) -> GeneratedVideo:
    """The video of a sound. Raises MediaError, before the first frame, for a sound that cannot be used."""
    encoded = encode_sound(model, sound, settings.seconds)
    styles_SLD = styles_of(
        model, encoded.features_SF, settings.seed, settings.truncation, use_blocks=settings.use_blocks
    )
    num_frames = num_frames_of(encoded.seconds, settings)
    return GeneratedVideo(encoded, num_frames, frames_of(model, styles_SLD, encoded.motion_RW, num_frames, settings))


def generate(
    model: SoundVideoModel, sound: NDArray[np.floating], rate_hz: int, settings: GenerateSettings | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The frames (H, W, 3), uint8 RGB, of the video of a sound: floats, (samples,) or (samples, channels).

    Raises MediaError, before the first frame, for a sound without samples, or with NaN or infinity.
    """
    return video_of(model, sound_of_array(sound, rate_hz), settings or GenerateSettings()).frames
