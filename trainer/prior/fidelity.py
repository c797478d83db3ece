"""Fidelity: the distance between generated and real pictures, in the features of a fixed network.

With Inception's weights the numbers are FID and KID on torchmetrics' network, which can be compared with published ones. Without them
the features come from convolutions with fixed random weights: ``frechet_random`` and ``kid_random`` show whether a fit improves, but
cannot be compared with any paper.

The distances are not torchmetrics' ones: with fewer pictures than features its Fréchet distance is up to 4e-4 off, and below 0 for equal
sets, and its kernel distance takes random subsets of equal size; otherwise the numbers are the same within 1e-4 (float64).

Shape suffixes: N pictures, C = 3 colours, H W rows and columns, F features.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import RecipeError
from pipeline.settings import Settings

NUM_SCALES = 3
FILTERS_PER_SCALE = 24
FILTER_PX = 5
CELLS = 2
"""Cells along each side: features are means over each of 2 x 2 cells of the picture."""
KID_DEGREE = 3
SMALLEST_DEVIATION = 0.01
"""Lower limit of the standard deviation that a feature is divided by: a nearly constant feature is not magnified."""
INCEPTION_FEATURES = 2048
AT_ONCE = 32
"""Batch size of the feature network."""


class FidelitySettings(Settings):
    """How generated pictures are compared with real ones."""

    num_pictures: int = Field(2000, ge=0)
    """Largest number of real and of generated pictures. Papers use 50,000. 0: nothing is measured."""
    inception_weights: str | None = None
    """Path of torch-fidelity's weights of Inception (weights-inception-2015-12-05-6726825d.pth); needs the extra
    ``fidelity``: torchmetrics and torch-fidelity. None: features of random convolutions."""


def check_fidelity(settings: FidelitySettings) -> None:
    """Raises RecipeError if ``inception_weights`` is set and its packages or its file are missing."""
    if settings.inception_weights is None:
        return
    missing = [name for name in ("torchmetrics", "torch_fidelity") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"prior.fidelity.inception_weights: {' and '.join(missing)} is not installed: "
            f"pip install -c constraints.txt '.[fidelity]', or leave it out"
        )
    if not Path(settings.inception_weights).expanduser().is_file():
        raise RecipeError(f"prior.fidelity.inception_weights: {settings.inception_weights} is no file")


class RandomFeatures(nn.Module):
    """(N, 3, H, W) uint8 -> (N, F): the mean colours of each quarter of a picture, and mean responses of random filters at three scales.

    The filters are drawn from a fixed seed on the CPU, with mean 0 and norm 1; responses are rectified and averaged over quarters.
    Random convolutions distinguish textures (Ustyuzhaninov et al., arXiv:1606.00021).
    """

    num_features = CELLS**2 * (3 + NUM_SCALES * FILTERS_PER_SCALE)
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(20_200_611)
        drawn = torch.randn(NUM_SCALES, FILTERS_PER_SCALE, 3, FILTER_PX, FILTER_PX, generator=source)
        drawn = drawn - drawn.mean((3, 4), keepdim=True)
        self.register_buffer("weight", drawn / drawn.flatten(2).norm(dim=2)[:, :, None, None, None])

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        x = pictures_NCHW.float() / 127.5 - 1
        features = [functional.adaptive_avg_pool2d(x, CELLS).flatten(1)]
        for scale in range(NUM_SCALES):
            responses = functional.conv2d(x, self.weight[scale]).relu()
            features.append(functional.adaptive_avg_pool2d(responses, CELLS).flatten(1))
            x = functional.avg_pool2d(x, 2) if min(x.shape[2:]) >= 2 * FILTER_PX else x
        return torch.cat(features, 1)


def frechet_distance(one_NF: Tensor, other_NF: Tensor) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) of two sets of features (Heusel et al., arXiv:1706.08500, equation 6).

    With S = R^T R the trace of the root is the sum of the singular values of R1 R2^T, which needs no root of an ill-conditioned matrix.
    """
    means, triangles = [], []
    for rows_NF in (one_NF.double(), other_NF.double()):
        means.append(rows_NF.mean(0))
        deviations_NF = (rows_NF - means[-1]) / math.sqrt(len(rows_NF) - 1)
        triangles.append(torch.linalg.qr(deviations_NF, mode="r")[1])  # R^T R is the covariance
    first, second = triangles
    common = torch.linalg.svdvals(first @ second.T)
    distance = (means[0] - means[1]).square().sum() + first.square().sum() + second.square().sum() - 2 * common.sum()
    return max(0.0, float(distance))


def kernel_distance(one_NF: Tensor, other_NF: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / F + 1)³ (Binkowski et al., arXiv:1801.01401, section 4).

    It may be below 0 for two similar sets.
    """
    one, other = one_NF.double(), other_NF.double()
    features = one.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / features + 1) ** KID_DEGREE

    def among(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(among(one) + among(other) - 2 * kernel(one, other).mean())


class Fidelity:
    """Compares two sets of pictures: ``features`` computes their features, ``measure`` the distances."""

    def __init__(self, settings: FidelitySettings, device: torch.device) -> None:
        self.device = device
        self.is_inception = settings.inception_weights is not None
        network = _inception(settings.inception_weights) if settings.inception_weights else RandomFeatures()
        self.num_features = INCEPTION_FEATURES if self.is_inception else RandomFeatures.num_features
        self._network = network.to(device).eval()

    @torch.no_grad()
    def features(self, pictures_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, F) float32 on the device. N may be 0."""
        rows = [torch.zeros(0, self.num_features, device=self.device)]
        if len(pictures_NCHW):
            parts = torch.split(pictures_NCHW, AT_ONCE)
            rows += [self._network(part.to(self.device)).float() for part in parts]
        return torch.cat(rows)

    def measure(self, real_NF: Tensor, fake_NF: Tensor) -> dict[str, float]:
        """``fid`` and ``kid``, or ``frechet_random`` and ``kid_random``. Empty with fewer than two pictures of either kind."""
        if min(len(real_NF), len(fake_NF)) < 2:
            return {}
        if self.is_inception:
            names = ("fid", "kid")
        else:
            names = ("frechet_random", "kid_random")
            # features are standardised by the real pictures, so that each has the same weight
            mean_F, size_F = real_NF.mean(0), real_NF.std(0).clamp(min=SMALLEST_DEVIATION)
            real_NF, fake_NF = (real_NF - mean_F) / size_F, (fake_NF - mean_F) / size_F
        distances = (frechet_distance(real_NF, fake_NF), kernel_distance(real_NF, fake_NF))
        return dict(zip(names, distances, strict=True))


def _inception(weights: str) -> nn.Module:
    """FID's Inception-v3: (N, 3, H, W) uint8 -> (N, 2048). Raises RecipeError for a file that holds something else.

    torchmetrics unpickles the file it is given. It therefore gets a copy that holds only tensors, read with ``weights_only``.
    """
    fid: Any = importlib.import_module("torchmetrics.image.fid")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        try:
            torch.save(torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True), path)
            network: nn.Module = fid.NoTrainInceptionV3(
                name="inception-v3-compat",
                features_list=[str(INCEPTION_FEATURES)],
                feature_extractor_weights_path=str(path),
            )
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, TypeError) as error:
            # the text of torch's UnpicklingError advises to load the file with weights_only=False: it is not shown
            why = "it is no file of tensors" if isinstance(error, pickle.UnpicklingError) else f"{error}".strip()[:300]
            raise RecipeError(
                f"prior.fidelity.inception_weights: {weights} does not hold torch-fidelity's Inception: {why}"
            ) from error
    return network
