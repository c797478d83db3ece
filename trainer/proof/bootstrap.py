"""Confidence intervals of means over clips, by bootstrap over the clips' sources.

Shape suffixes: N clips, S sources, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.roc import wilson_interval

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


class Bootstrap:
    """Intervals of means over clips. Whole sources are drawn with replacement, because clips of one source are not independent."""

    def __init__(self, sources: Sequence[str], num_resamples: int, seed: int) -> None:
        """``sources``: the source of each clip."""
        names = sorted(set(sources))
        self._source_N = np.asarray([names.index(source) for source in sources])
        self._num_sources = len(names)
        rng = np.random.default_rng(seed)
        self._resampled_RS = rng.integers(0, len(names), (num_resamples, len(names)))

    def interval(self, values_N: Floats) -> tuple[float, float]:
        """The 2.5th and 97.5th percentile of the mean. Clips without a value are NaN and are left out."""
        has_value_N = np.isfinite(values_N)
        sums_S = np.bincount(self._source_N, np.where(has_value_N, values_N, 0.0), self._num_sources)
        counts_S = np.bincount(self._source_N, has_value_N, self._num_sources)
        counts_R = counts_S[self._resampled_RS].sum(1)
        means_R = sums_S[self._resampled_RS].sum(1)[counts_R > 0] / counts_R[counts_R > 0]
        low, high = np.quantile(means_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    def interval_of_share(self, values_N: Floats) -> tuple[float, float]:
        """The interval of a share, 0..1. If all resamples are 0, or all 1, it is Wilson's score interval for the number of sources."""
        low, high = self.interval(values_N)
        if low < 1 and high > 0:
            return low, high
        wilson_low, wilson_high = wilson_interval(np.asarray(1.0 if low >= 1 else 0.0), self._num_sources).clip(0, 1)
        return float(wilson_low), float(wilson_high)
