"""Measures of an aligned sound encoder: retrieval of pictures by sounds and back, zero-shot classes, AUC of matched against wrong pairs.

Shape suffixes: N samples, D width of the space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.agreement.roc import auc

RANKS = (1, 5, 10)
TIE = 1e-5
"""Cosines that differ by no more are equal but for rounding."""


def recalls(queries_ND: Tensor, candidates_ND: Tensor, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """R@k: the share of queries whose own candidate (same index) is among the k candidates with the highest cosine.

    Chance is k / N. A candidate that ties with the own one, within the rounding of float32, ranks before it, so that equal embeddings
    score 0. k above N counts as N.
    """
    cosines_NN = functional.normalize(queries_ND, dim=1) @ functional.normalize(candidates_ND, dim=1).T
    own_N1 = cosines_NN.diagonal().unsqueeze(1)
    num_before_N = (cosines_NN >= own_N1 - TIE).sum(1) - 1
    return {k: float((num_before_N < k).double().mean()) for k in ranks}


def zero_shot_accuracy(
    sounds_ND: Tensor, prompts_CD: Tensor, classes: Sequence[str], labels: Sequence[Sequence[str]]
) -> float | None:
    """Share of the labelled sounds whose nearest class prompt is one of their labels. None: no sound has a label among ``classes``."""
    names = set(classes)
    rows = [index for index, own in enumerate(labels) if names.intersection(own)]
    if not rows:
        return None
    cosines_NC = functional.normalize(sounds_ND[rows], dim=1) @ functional.normalize(prompts_CD, dim=1).T
    nearest = cosines_NC.argmax(1).tolist()
    right = [classes[column] in labels[index] for index, column in zip(rows, nearest, strict=True)]
    return sum(right) / len(right)


def mismatched(sources: Sequence[str], labels: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """(N, N) bool: the pairs that do not belong together, of different sources without a common label.

    For samples without labels only the sources are compared.
    """
    names = np.array(sources, dtype=np.str_)
    apart: NDArray[np.bool_] = names[:, None] != names[None, :]
    by_label: dict[str, list[int]] = {}
    for index, own in enumerate(labels):
        for label in own:
            by_label.setdefault(label, []).append(index)
    for indices in by_label.values():
        apart[np.ix_(indices, indices)] = False
    return apart


def retrieval_measures(
    sounds_ND: Tensor,
    pictures_ND: Tensor,
    prompts: Mapping[str, Tensor],
    sources: Sequence[str],
    labels: Sequence[Sequence[str]],
) -> dict[str, float]:
    """All measures by name. A measure that cannot be computed (no labels, no mismatched pairs) is left out.

    ``prompts`` maps every class to its embedding (D,).
    """
    measures: dict[str, float] = {"num_samples": float(len(sounds_ND))}
    if not len(sounds_ND):
        return measures
    for name, by_rank in (("picture", recalls(sounds_ND, pictures_ND)), ("sound", recalls(pictures_ND, sounds_ND))):
        measures |= {f"{name}_recall_at_{k}": share for k, share in by_rank.items()}
    if prompts:
        classes = sorted(prompts)
        accuracy = zero_shot_accuracy(sounds_ND, torch.stack([prompts[name] for name in classes]), classes, labels)
        if accuracy is not None:
            measures["zero_shot_accuracy"] = accuracy
            measures["num_classes"] = float(len(classes))
    cosines = (functional.normalize(sounds_ND, dim=1) @ functional.normalize(pictures_ND, dim=1).T).double().numpy()
    matched, wrong = np.diagonal(cosines), cosines[mismatched(sources, labels)]
    if len(wrong) and np.isfinite(cosines).all():
        measures["auc"] = auc(matched, wrong)
    return measures
