"""Agreement: how well a clip's sound fits its picture, from their embeddings in the shared space.

Shape suffixes: T frames, D width of the space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import AgreementMeasures

SMALLEST_LENGTH = 1e-12


def agreement(
    picture_frames_TD: NDArray[np.float32], sound_D: NDArray[np.float32], encoder_id: str
) -> AgreementMeasures:
    """Cosine of the mean picture embedding and the sound, and the best of any one frame, both -1..1.

    The mean is taken over frame embeddings of length 1. Vectors of any length will do; one without direction (frames
    that cancel out) agrees with nothing: 0.

    Raises ValueError for embeddings without frames, of different widths, or not finite.
    """
    if picture_frames_TD.ndim != 2 or sound_D.shape != picture_frames_TD.shape[1:] or 0 in picture_frames_TD.shape:
        raise ValueError(
            f"embeddings must be (frames, width) and (width,), got {picture_frames_TD.shape} and {sound_D.shape}"
        )
    if not (np.isfinite(picture_frames_TD).all() and np.isfinite(sound_D).all()):
        raise ValueError(f"embeddings of {encoder_id} hold NaN or infinity")
    frames = _unit(picture_frames_TD)
    sound = _unit(sound_D)
    each = np.clip(frames @ sound, -1.0, 1.0)
    whole = np.clip(_unit(frames.mean(axis=0)) @ sound, -1.0, 1.0)
    return AgreementMeasures(encoder_id=encoder_id, agreement=float(whole), best_agreement=float(each.max()))


def mean_embedding(frames_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D,) float32 of length 1: the direction of the mean of frame embeddings; zeros when they cancel out."""
    return _unit(_unit(frames_TD).mean(axis=0)).astype(np.float32)


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = np.where(lengths > SMALLEST_LENGTH, exact / np.maximum(lengths, SMALLEST_LENGTH), 0.0)
    return unit
