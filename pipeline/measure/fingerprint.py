"""Perceptual fingerprints of a clip's picture and sound, and the distance between two of them.

Both are hexadecimal texts that change little under re-encoding, scaling, gain and resampling. A part without information (a flat
picture, silence, a steady tone) is written as zeros, which match nothing, not even other zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import imagehash
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

FRAME_DIGITS = 16
"""Hexadecimal digits of one frame's hash: 64 bits."""
WORD_DIGITS = 4
"""Hexadecimal digits of one sound word: 16 bits, every ``STEP_SECONDS``."""
STEP_SECONDS = 0.1
MIN_SAMPLE_RATE_HZ = 8000

_FLAT_LUMA_STD = 3.0
_MIN_SET_BITS = 8
# With these two values a shift of half a step changes 11 % of the bits; with 0.37 s and one step, as in the paper, 27 %.
_WINDOW_SECONDS = 0.75
_LAG_STEPS = 4
_BAND_EDGES_HZ = np.geomspace(250.0, 3800.0, 18)
_QUIET_POWER = 10.0 ** (-72 / 10)
_STEADY_SHARE = 1e-4


def picture_hash(frames: Sequence[Array]) -> str:
    """64-bit DCT hashes of the frames, in their order, 16 hexadecimal digits each; zeros for a flat frame.

    ``frames``: luma, uint8, (H, W), any size, spread evenly over the clip. With eight or more, time-shifted copies match.
    Raises ValueError for another type or shape.
    """
    return "".join(_frame_hash(frame) for frame in frames)


def _frame_hash(frame: Array) -> str:
    if frame.ndim != 2 or frame.dtype != np.uint8:
        raise ValueError(f"a frame is luma, uint8, HxW; got {frame.dtype} {frame.shape}")
    every = max(1, min(frame.shape) // 90)
    if frame.size == 0 or float(frame[::every, ::every].std()) < _FLAT_LUMA_STD:
        return "0" * FRAME_DIGITS
    return str(imagehash.phash(Image.fromarray(frame)))


def sound_hash(mono: Array, sample_rate_hz: int) -> str:
    """Signs of the differences of band energies along frequency and time, 4 hexadecimal digits every 0.1 s.

    ``mono``: float samples, -1..1, shape (n,). A sound shorter than 1.15 s gives "". After Haitsma and Kalker, "A Highly Robust
    Audio Fingerprinting System", ISMIR 2002, eq. 1, with 17 bands from 250 to 3800 Hz and a longer window and lag.
    Raises ValueError for another shape, or a rate below 8000 Hz.
    """
    if mono.ndim != 1:
        raise ValueError(f"the sound is one channel, shape (n,); got {mono.shape}")
    if sample_rate_hz < MIN_SAMPLE_RATE_HZ:
        raise ValueError(f"a sound hash needs {MIN_SAMPLE_RATE_HZ} Hz or more, got {sample_rate_hz} Hz")
    energies_TB = _band_energies(mono.astype(np.float32, copy=False), sample_rate_hz)
    if len(energies_TB) <= _LAG_STEPS:
        return ""
    tilt = np.diff(energies_TB, axis=1)
    change = tilt[_LAG_STEPS:] - tilt[:-_LAG_STEPS]
    words = np.packbits(change > 0, axis=1)
    power = energies_TB.sum(axis=1)
    power = np.minimum(power[_LAG_STEPS:], power[:-_LAG_STEPS])
    has_information = (power > _QUIET_POWER) & (np.abs(change).max(axis=1) > _STEADY_SHARE * power)
    words[~has_information] = 0
    return words.tobytes().hex()


def _band_energies(mono: NDArray[np.float32], sample_rate_hz: int) -> Array:
    """Mean power of each band in each window, full scale 1, shape (steps, 17)."""
    length = round(_WINDOW_SECONDS * sample_rate_hz)
    if len(mono) < length:
        return np.zeros((0, len(_BAND_EDGES_HZ) - 1), np.float32)
    num_steps = int((len(mono) - length) / (STEP_SECONDS * sample_rate_hz) + 1e-6) + 1
    starts = np.round(np.arange(num_steps) * STEP_SECONDS * sample_rate_hz).astype(np.int64)
    window = np.hanning(length).astype(np.float32)
    size = scipy.fft.next_fast_len(length, real=True)
    # Only the bins of the bands are squared: at 16 kHz about half of all bins.
    edges = np.round(_BAND_EDGES_HZ * size / sample_rate_hz).astype(np.int64)
    bands = np.empty((num_steps, len(edges) - 1), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(mono, length)
    for i, start in enumerate(starts):
        spectrum = scipy.fft.rfft(windows[start] * window, size)[edges[0] : edges[-1]]
        bands[i] = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, edges[:-1] - edges[0])
    bands *= np.float32(2.0 / (size * float(np.sum(window.astype(np.float64) ** 2))))
    return bands


def parse_picture(text: str) -> NDArray[np.uint64]:
    """One uint64 per frame; 0 for a frame without information. Raises ValueError for a text that is no picture hash."""
    frames = _parse(text, FRAME_DIGITS, ">u8", "picture").astype(np.uint64)
    num_set = np.bitwise_count(frames)
    frames[(num_set < _MIN_SET_BITS) | (num_set > 64 - _MIN_SET_BITS)] = 0
    return frames


def parse_sound(text: str) -> NDArray[np.uint16]:
    """One uint16 per step; 0 for a step without information. Raises ValueError for a text that is no sound hash."""
    return _parse(text, WORD_DIGITS, ">u2", "sound").astype(np.uint16)


def _parse(text: str, digits: int, dtype: str, what: str) -> Array:
    if len(text) % digits:
        raise ValueError(f"a {what} hash has {digits} hexadecimal digits for each part, got {len(text)} digits")
    try:
        return np.frombuffer(bytes.fromhex(text), dtype=dtype)
    except ValueError:
        raise ValueError(f"a {what} hash is hexadecimal, got {text[:32]!r}") from None


def picture_distance(a_PK: NDArray[np.uint64], b_PK: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Share of differing bits, 0..1, for each of P pairs of clips with K frames. NaN if more than half of the frames of one are 0.

    Each frame is compared with the most similar frame of the other clip, so the clips may be shifted in time. The distance is the
    mean over the frames of one clip: of the two means, the larger one.
    """
    has_a, has_b = a_PK != 0, b_PK != 0
    bits = np.bitwise_count(a_PK[:, :, None] ^ b_PK[:, None, :]).astype(np.float32)
    bits[~(has_a[:, :, None] & has_b[:, None, :])] = 65.0
    num_a, num_b = has_a.sum(axis=1), has_b.sum(axis=1)
    to_b = (bits.min(axis=2, initial=65.0) * has_a).sum(axis=1) / np.maximum(num_a, 1)
    to_a = (bits.min(axis=1, initial=65.0) * has_b).sum(axis=1) / np.maximum(num_b, 1)
    distance: NDArray[np.float32] = (np.maximum(to_a, to_b) / 64.0).astype(np.float32)
    enough = (2 * num_a >= a_PK.shape[1]) & (2 * num_b >= b_PK.shape[1]) & (num_a > 0) & (num_b > 0)
    distance[~enough] = np.nan
    return distance


def sound_distance(
    a_PN: NDArray[np.uint16], b_PN: NDArray[np.uint16], max_shift: int, min_words: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Share of differing bits at the best shift, 0..1, and that shift in steps, for each of P pairs of clips with N words.

    A positive shift s means that b is s steps later than a. Only words that are not 0 in both clips count. NaN if no shift has
    ``min_words`` of them.
    """
    num_pairs, length = a_PN.shape
    best = np.full(num_pairs, np.nan, np.float32)
    best_shift = np.zeros(num_pairs, np.int32)
    max_shift = min(max_shift, length - 1)
    for shift in sorted(range(-max_shift, max_shift + 1), key=abs):
        a = a_PN[:, max(0, -shift) : length - max(0, shift)]
        b = b_PN[:, max(0, shift) : length - max(0, -shift)]
        both = (a != 0) & (b != 0)
        num_words = both.sum(axis=1)
        num_differing = (np.bitwise_count(a ^ b) * both).sum(axis=1, dtype=np.int32)
        share = (num_differing / np.maximum(16 * num_words, 1)).astype(np.float32)
        better = (num_words >= min_words) & ~(share >= best)
        best[better], best_shift[better] = share[better], shift
    return best, best_shift
