"""The loss of the align stage: sounds against pictures, texts and augmented sounds, over the samples of all ranks.

    L = w_p InfoNCE(sound, picture) + w_t InfoNCE(sound, text) + w_a InfoNCE(sound, augmented sound)

each symmetric, with one learned temperature. Between sound and text, samples of one class or with one text are positives of each other.
Between sound and picture they are negatives, unless ``pictures_by_class`` is set.

Shape suffixes: N samples, V = 2 views of a sound (as it is, augmented), D width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.align.contrastive import sharing, symmetric_info_nce


@dataclass(frozen=True, slots=True)
class Targets:
    """What N sounds are compared with. A sample without a text (``None``) takes no part in the loss between sound and text."""

    pictures_ND: Tensor
    texts_ND: Tensor
    """Rows of samples without a text are ignored."""
    labels: Sequence[Sequence[str]]
    texts: Sequence[str | None]

    def of_one_class(self) -> Tensor:
        """(N, N) bool: which samples share a label."""
        return sharing([frozenset(own) for own in self.labels])

    def of_one_text(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), len(rows)) bool: which of these samples share a label or have the same text."""
        return sharing(
            [frozenset([("text", self.texts[i]), *(("label", one) for one in self.labels[i])]) for i in rows]
        )


def align_loss(
    sounds_NVD: Tensor,
    targets: Targets,
    scale: Tensor,
    *,
    picture_weight: float,
    text_weight: float,
    augmented_weight: float,
    pictures_by_class: bool,
) -> tuple[Tensor, dict[str, float]]:
    """The loss, (), and its unweighted parts by name. A part with weight 0 is not computed.

    ``pictures_by_class``: every picture that shares a label with a sound is a positive of it, not only its own picture.
    """
    plain_ND, augmented_ND = sounds_NVD.unbind(1)
    device = sounds_NVD.device
    parts: dict[str, tuple[float, Tensor]] = {}
    if picture_weight:
        positives_NN = targets.of_one_class().to(device) if pictures_by_class else None
        parts["sound_picture"] = picture_weight, symmetric_info_nce(plain_ND, targets.pictures_ND, scale, positives_NN)
    if text_weight:
        rows = [index for index, text in enumerate(targets.texts) if text is not None]
        positives_NN = targets.of_one_text(rows).to(device)
        parts["sound_text"] = (
            text_weight,
            symmetric_info_nce(plain_ND[rows], targets.texts_ND[rows], scale, positives_NN),
        )
    if augmented_weight:
        parts["sound_augmented"] = augmented_weight, symmetric_info_nce(plain_ND, augmented_ND, scale)
    loss = torch.stack([weight * part for weight, part in parts.values()]).sum()
    return loss, {name: float(part.detach()) for name, (_, part) in parts.items()}
