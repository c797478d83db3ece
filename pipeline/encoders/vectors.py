"""Unit vectors and means of embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_LENGTH = 1e-12


def mean_embedding(frames_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of frame embeddings (T, D), scaled to length 1: (D,) float32; zeros when the frames cancel out."""
    return unit_vectors(unit_vectors(frames_TD).mean(axis=0)).astype(np.float32)


def unit_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Vectors (..., D) scaled to length 1; those shorter than ``SMALLEST_LENGTH`` become zeros."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = np.where(lengths > SMALLEST_LENGTH, exact / np.maximum(lengths, SMALLEST_LENGTH), 0.0)
    return unit
