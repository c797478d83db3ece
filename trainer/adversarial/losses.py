"""The adversarial losses, each a pure function: non-saturating logistic loss, R1, path lengths.

Shape suffixes: B pictures, C colours, H W rows and columns, L layers that take a style each, D numbers of a style.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(D(G(z))): non-saturating (Goodfellow et al., arXiv:1406.2661, section 3). Any shape to a scalar."""
    return functional.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(D(x)) plus mean of -log(1 - sigmoid(D(G(z)))) (arXiv:1406.2661, equation 1). A scalar."""
    return functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()


def r1_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """Mean over the batch of |dD(x) / dx|² (Mescheder et al., arXiv:1801.04406, equation 9, without its gamma / 2). A scalar.

    ``logits`` are the discriminator's outputs for ``inputs`` (B, ...), which must require gradients. The result can be differentiated.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(pictures_BCHW: Tensor, ws_BLD: Tensor, noise_BCHW: Tensor) -> Tensor:
    """(B,): |J^T y|, the change of a picture with its style (StyleGAN2, arXiv:1912.04958, section 3.2, equation 4).

    ``noise_BCHW`` is standard normal; this function divides it by the square root of the number of pixels. Squares are summed over a
    style and averaged over layers, as in the authors' code. The result can be differentiated.
    """
    height, width = pictures_BCHW.shape[2:]
    projection = (pictures_BCHW * noise_BCHW).sum() / math.sqrt(height * width)
    (gradient_BLD,) = torch.autograd.grad(projection, ws_BLD, create_graph=True)
    return gradient_BLD.square().sum(2).mean(1).sqrt()


def lazy_adam_settings(
    learning_rate: float, betas: tuple[float, float], every: int | None
) -> tuple[float, tuple[float, float]]:
    """Adam's learning rate and betas for a network with an extra optimizer step for its regulariser every ``every`` main steps.

    There are (every + 1) / every optimizer steps for each main step. With c = every / (every + 1) the rate becomes c · rate, the betas
    beta1^c and beta2^c (StyleGAN2, appendix B, "Lazy regularization"). ``every`` None: no regulariser.
    """
    if every is None:
        return learning_rate, betas
    share = every / (every + 1)
    return learning_rate * share, (betas[0] ** share, betas[1] ** share)
