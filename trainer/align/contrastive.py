"""Contrastive losses of embeddings, as pure functions.

Shape suffixes: N samples, D width of the space, M anchors, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

INITIAL_TEMPERATURE = 0.07
"""CLIP's (Radford et al. 2021, section 2.5). The logarithm of its inverse is what is learned."""
MAX_SCALE = 100.0
"""CLIP's limit: logits are never more than 100 times a cosine."""


def initial_log_scale() -> float:
    """``log(1 / 0.07)``, 2.659."""
    return math.log(1 / INITIAL_TEMPERATURE)


def clamp_log_scale(log_scale: Tensor) -> None:
    """Limits the learned scale to 1..100, in place. Call it after every optimizer step."""
    with torch.no_grad():
        log_scale.clamp_(0.0, math.log(MAX_SCALE))


def cross_entropy_of_positives(logits_MK: Tensor, positives_MK: Tensor) -> Tensor:
    """Mean over anchors i of ``- 1/|P(i)| sum_{p in P(i)} log softmax(logits_i)_p``.

    P(i) are the candidates whose ``positives_MK`` is true, at least one for every anchor. With one positive this is
    InfoNCE (van den Oord et al. 2018, eq. 4), with several the supervised contrastive loss L_out (Khosla et al. 2020,
    eq. 2). Lowest when every positive has the same probability and all others none: then it is log |P(i)|.
    """
    targets_MK = positives_MK / positives_MK.sum(1, keepdim=True)
    return -(targets_MK * functional.log_softmax(logits_MK, dim=1)).sum(1).mean()


def symmetric_info_nce(left_ND: Tensor, right_ND: Tensor, scale: Tensor, positives_NN: Tensor | None = None) -> Tensor:
    """Mean of :func:`cross_entropy_of_positives` from left to right and from right to left (CLIP, Radford et al. 2021, figure 3).

    Logits are ``scale * cosine``. Rows need not have length 1, but must not be zero. ``positives_NN[i, j]``: right row j is a positive
    of left row i; its diagonal must be true. None: only rows with the same index are positives. Without rows the loss is 0.
    """
    if left_ND.shape[0] == 0:
        return (left_ND.sum() + right_ND.sum()) * scale * 0.0
    cosines_NN = functional.normalize(left_ND, dim=1) @ functional.normalize(right_ND, dim=1).T
    logits_NN = scale * cosines_NN
    if positives_NN is None:
        positives_NN = torch.eye(len(left_ND), dtype=torch.bool, device=left_ND.device)
    forward = cross_entropy_of_positives(logits_NN, positives_NN)
    backward = cross_entropy_of_positives(logits_NN.T, positives_NN.T)
    return (forward + backward) / 2


def sharing(groups: Sequence[frozenset[Hashable]]) -> Tensor:
    """(N, N) bool: whether two samples have a group (a label, a text) in common. The diagonal is true."""
    num = len(groups)
    together = torch.eye(num, dtype=torch.bool)
    members: dict[Hashable, list[int]] = {}
    for index, names in enumerate(groups):
        for name in names:
            members.setdefault(name, []).append(index)
    for indices in members.values():
        rows = torch.tensor(indices)
        together[rows.unsqueeze(1), rows] = True
    return together
