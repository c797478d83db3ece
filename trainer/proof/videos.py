"""Generates the videos of the proof, one frame for each segment of a sound, and makes sounds that change half-way.

Shape suffixes: B sounds, S segments, M mel bands, T mel frames, L layers that take a style each, D numbers of a style, N noise
numbers, K samples of sound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.model.generator import latents
from trainer.model.sound_video import SoundVideoModel
from trainer.rendering.sound_to_video import draw_pictures, motion_at, walk_noise

Frames = NDArray[np.uint8]
Samples = NDArray[np.float32]


def spliced(first_K: Samples, second_K: Samples) -> Samples:
    """(K,): the first half of one sound and the second half of another, as long as the shorter sound. Both halves have the same RMS level.

    With different levels, the louder half would set the maximum that a mel may be relative to, and the quieter half would nearly vanish.
    """
    length = min(len(first_K), len(second_K))
    halves = [first_K[: length // 2], second_K[length // 2 : length]]
    levels = [float(np.sqrt(np.mean(half.astype(np.float64) ** 2))) if len(half) else 0.0 for half in halves]
    if all(levels):
        halves[1] = halves[1] * np.float32(levels[0] / levels[1])
    return np.concatenate(halves)


@torch.no_grad()
def draw_videos(
    model: SoundVideoModel,
    sounds: Sequence[Samples],
    seeds: Sequence[int],
    *,
    truncation: float | None = None,
    batch_size: int = 16,
    use_blocks: bool = True,
) -> list[Frames]:
    """A video (S, H, W, 3) for each sound, uint8 RGB, with one frame for each segment.

    ``sounds``: mono, at the model's sample rate. ``seeds``: of the latent and the noise of each video. ``truncation``: psi; None: the
    model's own. ``batch_size``: pictures that are generated at once. ``use_blocks``: False without the recurrent blocks.
    """
    device = model.w_avg.device
    segments = [model.segments_of_sound(torch.from_numpy(sound).to(device)) for sound in sounds]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, segments_SMT in enumerate(segments):
        by_length[len(segments_SMT)].append(index)
    videos: dict[int, Frames] = {}
    for length, indices in by_length.items():
        videos_at_once = max(1, batch_size // length)
        for start in range(0, len(indices), videos_at_once):
            batch = indices[start : start + videos_at_once]
            start_of = model.start(latents([seeds[i] for i in batch], model.generator.z_dim).to(device), truncation)
            segments_BSMT = torch.stack([segments[i] for i in batch])
            if use_blocks:
                noise_BSN = torch.stack([walk_noise(seeds[i], length, model.num_noise) for i in batch]).to(device)
                styles_BSLD = model.walk(segments_BSMT, start_of, noise_BSN)
            else:
                features_NF = model.inversion.features(segments_BSMT.flatten(0, 1))
                styles_BSLD = model.inverted(features_NF.view(len(batch), length, -1), start_of)
            if model.motion is not None:
                middles = [(number + 0.5) * model.config.segment_seconds for number in range(length)]
                for row, index in enumerate(batch):
                    features_SF = model.inversion.features(segments_BSMT[row])
                    motion_RW, _ = model.follow(torch.from_numpy(sounds[index]).to(device), features_SF, None)
                    styles_BSLD[row] += motion_at(model, model.motion.played(motion_RW, seeds[index]), middles)
            parts = [draw_pictures(model, styles) for styles in torch.split(styles_BSLD.flatten(0, 1), batch_size)]
            frames = np.concatenate(parts).reshape(len(batch), length, *parts[0].shape[1:])
            videos |= dict(zip(batch, frames, strict=True))
    return [videos[index] for index in range(len(sounds))]
