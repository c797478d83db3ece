"""Tone-maps HDR (PQ and HLG in BT.2020) to the range of a screen (BT.709): as ffmpeg filters for cuts, in numpy for previews and measures.

Light of 203 cd/m2, the reference white of ITU-R BT.2408, is 1.0. A Möbius curve leaves light below 0.55 unchanged and maps 1000 cd/m2
to white. On greys the result is within 4 of 255 of the EETF of ITU-R BT.2390 from 1000 to 203 cd/m2; brighter light is clipped.
One difference from the standard: zimg, which ffmpeg uses, applies the system gamma of HLG to each channel, ITU-R BT.2100 to the
luminance. Greys are equal; saturated colours differ by up to 17 of 255.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273."""
WHITE_CD_M2, PEAK_CD_M2 = 203.0, 1000.0
PEAK = PEAK_CD_M2 / WHITE_CD_M2
KNEE = 0.55
SCREEN_GAMMA = 2.4
"""ITU-R BT.1886."""
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)

Light = npt.NDArray[np.float64]


def filters(pictures: Any) -> Any:
    """The ffmpeg-python filters of this tone mapping."""
    return (
        pictures.filter("zscale", transfer="linear", npl=WHITE_CD_M2)
        .filter("format", "gbrpf32le")
        .filter("zscale", primaries="bt709")
        .filter("tonemap", "mobius", param=KNEE, peak=PEAK, desat=0)
        .filter("zscale", transfer="bt709", matrix="bt709", range="tv")
    )


def light_of(signal_HWC: Light, transfer: int) -> Light:
    """Light of a display, 1.0 for WHITE_CD_M2, for a signal of 0..1 in RGB, (H, W, 3). Inverse of SMPTE ST 2084 for PQ, and of ITU-R
    BT.2100 for HLG on a display of 1000 cd/m2."""
    if transfer == PQ:
        root = signal_HWC ** (32 / 2523)
        above = np.maximum(root - 3424 / 4096, 0)
        return np.asarray(10_000 / WHITE_CD_M2 * (above / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610))
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal_HWC <= 0.5, signal_HWC**2 / 3, (np.exp((signal_HWC - c) / a) + b) / 12)
    return np.asarray(PEAK * scene**1.2)


def compressed(light: Light) -> Light:
    """The Möbius curve: light up to KNEE is unchanged, PEAK becomes 1.0."""
    a = -(KNEE**2) * (PEAK - 1) / (KNEE**2 - 2 * KNEE + PEAK)
    b = (KNEE**2 - 2 * KNEE * PEAK + PEAK) / (PEAK - 1)
    above = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a) * (light + a) / (light + b)
    return np.where(light <= KNEE, light, above)


def to_screen(signal_HWC: npt.NDArray[np.uint16], transfer: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB of 16 bits in BT.2020, tone-mapped to RGB of 8 bits in BT.709."""
    light = np.maximum(light_of(signal_HWC / 65535.0, transfer) @ BT2020_TO_BT709.T, 0)
    strongest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    light = (light * (compressed(strongest) / strongest)).clip(0, 1)
    return np.asarray((255 * light ** (1 / SCREEN_GAMMA)).round(), np.uint8)


@functools.cache
def grey_table(transfer: int) -> npt.NDArray[np.uint8]:
    """Tone-mapped greys of 0..255, shape (256,)."""
    greys = np.repeat(np.arange(256, dtype=np.uint16)[:, None] * 257, 3, axis=1)
    return to_screen(greys, transfer)[:, 0]
