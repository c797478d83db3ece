"""The mel front end: sound to a log-mel spectrogram of values 0..1, equal to librosa's.

Shape suffixes: B sounds, N samples, M mel bands, T mel frames.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import MediaError
from pipeline.runtime.numba_cache import provide_numba_cache
from pipeline.settings import Settings

MIN_POWER = 1e-10
"""The floor of ``librosa.power_to_db``."""


class MelConfig(Settings):
    """The parameters of a mel front end. The defaults are the paper's."""

    sample_rate_hz: int = Field(default=44_100, ge=1, le=768_000)
    """Sample rate of the sound."""
    fft_size: int = Field(default=2048, ge=2, le=65_536)
    """Samples in one window of the transform."""
    hop_size: int = Field(default=512, ge=1, le=65_536)
    """Samples from one frame to the next."""
    num_mels: int = Field(default=128, ge=1, le=2048)
    """Mel bands."""
    top_db: float = Field(default=80.0, gt=0)
    """Decibels below the reference that become 0."""
    reference: Literal["maximum", "full_scale"] = "maximum"
    """The level that becomes 1. maximum: the sound's own maximum, so that a mel does not tell how loud a sound is, and digital silence
    becomes 1. full_scale: the largest that a sine of amplitude 1 reaches in any band; digital silence becomes 0."""

    def num_frames(self, num_samples: int) -> int:
        """Mel frames of a sound of ``num_samples`` samples: one more than whole hops, since frames are centred."""
        return 1 + num_samples // self.hop_size


@functools.cache
def _filterbank(config: MelConfig) -> NDArray[np.float32]:
    provide_numba_cache()
    import librosa  # noqa: PLC0415 (slow to import)

    bank: NDArray[np.float32] = librosa.filters.mel(
        sr=config.sample_rate_hz, n_fft=config.fft_size, n_mels=config.num_mels, dtype=np.float32
    )
    return bank


def _full_scale_db(fft_size: int, filters_MF: NDArray[np.float32]) -> float:
    """The largest level of a sine of amplitude 1 in a band, in dB.

    Its magnitude in its own bin is sum(window) / 2, which is fft_size / 4 for a Hann window, and half of that in the two bins beside it.
    """
    padded = np.pad(filters_MF, ((0, 0), (1, 1)))
    power = float((padded[:, 1:-1] + 0.25 * (padded[:, :-2] + padded[:, 2:])).max()) * (fft_size / 4) ** 2
    return 10 * math.log10(power)


class LogMel(nn.Module):
    """(B, N) sounds at ``config.sample_rate_hz`` -> (B, M, T) mels: power to dB re the reference, / top_db + 1.

    With the reference ``maximum`` it equals ``librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max, top_db=80) / 80 + 1``
    within 1e-4. As in librosa, digital silence gives ones, being equal to its own maximum. Computed in float32 under autocast too.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelConfig()
        self.register_buffer("window", torch.hann_window(self.config.fft_size), persistent=False)
        bank = _filterbank(self.config)
        # copied into memory of torch, which is aligned to 64 bytes: MKL's last digits may depend on the alignment
        self.register_buffer("filters", torch.tensor(bank), persistent=False)
        self.full_scale_db = _full_scale_db(self.config.fft_size, bank)

    def forward(self, sounds_BN: Tensor) -> Tensor:
        """Raises MediaError for NaN, infinity, or no samples at all."""
        if sounds_BN.ndim != 2:
            raise ValueError(f"sounds must have the shape (sounds, samples), got {tuple(sounds_BN.shape)}")
        if sounds_BN.shape[1] == 0:
            raise MediaError("sound_empty", "the sound has no samples")
        if not bool(sounds_BN.isfinite().all()):
            raise MediaError("sound_not_finite", "the sound holds NaN or infinity")
        with torch.autocast(sounds_BN.device.type, enabled=False):
            spectrum = torch.stft(
                sounds_BN.float(),
                self.config.fft_size,
                self.config.hop_size,
                window=self.window,
                center=True,
                pad_mode="constant",
                return_complex=True,
            )
            power_BMT = self.filters @ (spectrum.real.square() + spectrum.imag.square())
            decibels = 10 * power_BMT.clamp_min(MIN_POWER).log10()
            if self.config.reference == "full_scale":
                return ((decibels - self.full_scale_db) / self.config.top_db + 1).clamp(0, 1)
            relative = decibels - decibels.amax((1, 2), keepdim=True)
            return relative.clamp_min(-self.config.top_db) / self.config.top_db + 1


def check_sound(sound: NDArray[np.float32], index: int = 0) -> None:
    """Raises MediaError for a sound that cannot be embedded: without samples, or with NaN or infinity."""
    if sound.ndim != 1 or not np.issubdtype(sound.dtype, np.floating):
        raise ValueError(f"sound {index} must be mono floats, (samples,), got {sound.dtype} {sound.shape}")
    if sound.size == 0:
        raise MediaError("sound_empty", f"sound {index} has no samples")
    if num_bad := int(np.count_nonzero(~np.isfinite(sound))):
        raise MediaError(
            "sound_not_finite", f"sound {index} holds NaN or infinity in {num_bad} of {sound.size} samples"
        )


def resampled(sound: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """The sound at another rate (soxr, high quality); itself when the rates are equal."""
    if from_hz == to_hz:
        return np.ascontiguousarray(sound, dtype=np.float32)
    provide_numba_cache()
    import librosa  # noqa: PLC0415 (slow to import)

    changed = librosa.resample(sound.astype(np.float32), orig_sr=from_hz, target_sr=to_hz, res_type="soxr_hq")
    return np.ascontiguousarray(changed, dtype=np.float32)
