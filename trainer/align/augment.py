"""The augmented view of a sound: a crop of it, mixed with a quieter neighbour, with masks on its mel.

The random choices for a sample depend only on the seed, the number of samples seen and the sample's key. A resumed fit, and a fit on
another number of ranks, make the same choices. In order:

1. *crop*: a random part of the sound is moved to the start; silence follows it.
2. *mix*: with some probability the uncropped sound of the neighbour in the batch is added (samples 0 and 1 are neighbours, 2 and 3, ...).
   Its RMS level is a random number of decibels below the crop's.
3. *gain*: the sound becomes louder or quieter by a random number of decibels. A mel that is relative to its own maximum does not change.
4. *masks* on the mel (SpecAugment, Park et al. 2019): some bands and some spans of time are set to 0, the lowest value.

Shape suffixes: B sounds, N samples, M mel bands, T mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.encoders.mel import LogMel
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.streaming.batches import Batch


class AugmentSettings(Settings):
    """How far the augmented view of a sound may be from the sound."""

    num_masks: int = Field(2, ge=0)
    """Number of masks over mel bands, and number of masks over time."""
    max_mel_mask: float = Field(0.15, ge=0, le=1)
    """Largest share of the mel bands in one mask; the share is drawn uniformly from 0 to it."""
    max_time_mask: float = Field(0.30, ge=0, le=1)
    """Largest share of the mel frames in one mask."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of the sound that a crop keeps. 1: no crops."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Probability that a sound is mixed with its neighbour in the batch."""
    mix_below_db: tuple[float, float] = (6.0, 20.0)
    """Distance of the neighbour's RMS level below the sound's own, in dB; drawn uniformly between the two numbers."""
    max_gain_db: float = Field(6.0, ge=0, le=60)
    """Largest change of the sound's level, in dB; drawn uniformly from minus to plus this number."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSettings:
        if self.mix_below_db[0] > self.mix_below_db[1]:
            raise ValueError(f"mix_below_db must be (least, most), got {self.mix_below_db}")
        return self


@dataclass(frozen=True, slots=True)
class AugmentChoices:
    """The random choices for one sample. Widths are shares of the whole, places are shares of the possible starts, all 0..1."""

    crop: tuple[float, float]
    """Width and place of the crop."""
    below_db: float | None
    """Distance of the neighbour's level below the crop's, in dB. None: not mixed."""
    mel_masks: tuple[tuple[float, float], ...]
    """Width and place of each mask over mel bands."""
    time_masks: tuple[tuple[float, float], ...]
    """Width and place of each mask over mel frames."""
    gain_db: float = 0.0
    """Change of the level, in dB."""


def draw(settings: AugmentSettings, *identity: object) -> AugmentChoices:
    """The choices for ``identity`` (seed, samples seen, dataset, key); the same for the same identity."""
    rng = np.random.default_rng(int(stable_hash("augment", *identity), 16))

    def masks(max_width: float) -> tuple[tuple[float, float], ...]:
        return tuple((max_width * float(rng.random()), float(rng.random())) for _ in range(settings.num_masks))

    crop = (float(rng.uniform(settings.min_crop, 1)), float(rng.random()))
    is_mixed, below_db = float(rng.random()) < settings.mix_probability, float(rng.uniform(*settings.mix_below_db))
    mel_masks, time_masks = masks(settings.max_mel_mask), masks(settings.max_time_mask)
    gain_db = settings.max_gain_db * float(rng.uniform(-1, 1))
    return AugmentChoices(crop, below_db if is_mixed else None, mel_masks, time_masks, gain_db)


def augmented_sounds(sounds_BN: Tensor, num_real_B: Sequence[int], choices_B: Sequence[AugmentChoices]) -> Tensor:
    """The sounds (B, N), cropped, mixed, and with another level. After the first ``num_real_B`` samples of a row comes padding."""
    changed_BN = torch.zeros_like(sounds_BN)
    for index, (choices, num_real) in enumerate(zip(choices_B, num_real_B, strict=True)):
        width, place = choices.crop
        length = max(1, round(width * num_real))
        start = round(place * (num_real - length))
        crop = sounds_BN[index, start : start + length]
        changed_BN[index, :length] = crop
        neighbour = index ^ 1  # flips the last bit: 0 and 1, 2 and 3, ...
        if choices.below_db is not None and neighbour < len(choices_B):
            other = sounds_BN[neighbour, : num_real_B[neighbour]]
            crop_rms, other_rms = crop.square().mean().sqrt(), other.square().mean().sqrt()
            # the clamp keeps a silent neighbour at 0
            share = 10 ** (-choices.below_db / 20) * crop_rms / other_rms.clamp_min(1e-8)
            changed_BN[index, : len(other)] += share * other
        changed_BN[index] *= 10 ** (choices.gain_db / 20)
    return changed_BN


def mask_mels(mels_BMT: Tensor, choices_B: Sequence[AugmentChoices]) -> None:
    """Sets the masked bands and frames to 0, in place."""
    for mel_MT, choices in zip(mels_BMT, choices_B, strict=True):
        for width, place in choices.mel_masks:
            mel_MT[_masked(mel_MT.shape[0], width, place)] = 0
        for width, place in choices.time_masks:
            mel_MT[:, _masked(mel_MT.shape[1], width, place)] = 0


def augmented_mels(
    batch: Batch, front_end: LogMel, settings: AugmentSettings, device: torch.device, *identity: object
) -> Tensor:
    """The mels (B, M, T) of the augmented sounds of a batch. :func:`draw` gets ``identity``, and each sample's dataset and key."""
    names = zip(batch.datasets, batch.keys, strict=True)
    choices_B = [draw(settings, *identity, dataset, key) for dataset, key in names]
    sounds_BN = batch.sounds_BN.to(device)
    rate_hz = front_end.config.sample_rate_hz
    num_real_B = [max(1, min(sounds_BN.shape[1], round(seconds * rate_hz))) for seconds in batch.seconds_B.tolist()]
    with torch.no_grad():
        changed_BMT: Tensor = front_end(augmented_sounds(sounds_BN, num_real_B, choices_B))
        mask_mels(changed_BMT, choices_B)
    return changed_BMT


def _masked(size: int, width: float, place: float) -> slice:
    """The masked rows among ``size``, for a mask of ``AugmentChoices``."""
    num_masked = int(width * size)
    start = int(place * (size - num_masked + 1))
    return slice(start, start + num_masked)
