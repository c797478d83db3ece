"""Distances between sets of pictures: against formulas worked by hand, and on pictures that are more and more unlike."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.errors import RecipeError
from trainer.prior.fidelity import (
    Fidelity,
    FidelitySettings,
    RandomFeatures,
    check_fidelity,
    frechet_distance,
    kernel_distance,
)


def test_the_frechet_distance_of_one_feature() -> None:
    # means 2 and 5, deviations 2 and 1: (5 - 2)² + (2 - 1)²
    one = torch.tensor([[0.0], [2.0], [4.0]])
    other = torch.tensor([[4.0], [5.0], [6.0]])
    assert frechet_distance(one, other) == pytest.approx(10.0)


@pytest.mark.parametrize("count", [5, 40])
def test_the_frechet_distance_is_that_of_the_covariances(count: int) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(count, 8)) @ rng.normal(size=(8, 8)), rng.normal(1, 2, size=(30, 8))
    root = scipy.linalg.sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    means = one.mean(0) - other.mean(0)
    wanted = means @ means + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root)
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(wanted, rel=1e-3)
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(one)) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_of_one_feature() -> None:
    # kernels (xy + 1)³: among 0 and 1: 1; among 1 and 2: 27; between: 1, 1, 8, 27
    one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(one, other) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def pictures(noise: float, seed: int, count: int = 60) -> torch.Tensor:
    """Ramps of random slopes, with noise on them."""
    rng = np.random.default_rng(seed)
    slopes = rng.uniform(-1, 1, (count, 3, 1, 1)) * np.linspace(-1, 1, 32)
    shown = 127.5 + 90 * np.broadcast_to(slopes, (count, 3, 32, 32)) + rng.normal(0, noise, (count, 3, 32, 32))
    return torch.from_numpy(np.clip(shown, 0, 255).astype(np.uint8))


def test_random_features_are_further_apart_the_more_unlike_the_pictures() -> None:
    fidelity = Fidelity(FidelitySettings(), torch.device("cpu"))
    real = fidelity.features(pictures(2, 0))
    assert real.shape == (60, fidelity.num_features)
    found = [fidelity.measure(real, fidelity.features(pictures(noise, 1))) for noise in (2, 10, 40)]
    for name in ("frechet_random", "kid_random"):
        near, further, far = (measures[name] for measures in found)
        assert near < further / 2 < far / 4
    assert abs(found[0]["kid_random"]) < 0.1


def test_random_features_are_the_same_everywhere() -> None:
    torch.manual_seed(1)
    first = RandomFeatures()
    torch.manual_seed(2)
    assert torch.equal(first.weight, RandomFeatures().weight)
    assert torch.allclose(first.weight.flatten(3).mean(3), torch.zeros(3, 24, 3), atol=1e-6)
    flat = first(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8))[0]
    assert flat[:12].tolist() == pytest.approx([200 / 127.5 - 1] * 12, abs=1e-5)  # its colours; no filter answers
    assert flat[12:].tolist() == pytest.approx([0.0] * (len(flat) - 12), abs=1e-5)


def test_too_few_pictures_measure_nothing() -> None:
    fidelity = Fidelity(FidelitySettings(), torch.device("cpu"))
    assert fidelity.measure(torch.zeros(1, 4), torch.zeros(9, 4)) == {}
    assert fidelity.features(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, fidelity.num_features)
    assert not math.isnan(fidelity.measure(torch.ones(4, 4), torch.ones(4, 4))["frechet_random"])


def test_inception_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prior\.fidelity\.inception_weights: "):
        check_fidelity(FidelitySettings(inception_weights=str(tmp_path / "nowhere.pth")))
