"""The loss of the align stage: sounds against pictures, texts and augmented sounds, over the samples of all ranks.

    L = w_p InfoNCE(sound, picture) + w_t InfoNCE(sound, text) + w_a InfoNCE(sound, augmented sound)

each symmetric, with one learned temperature. Samples of one class, or with the same text, are not each other's negatives
between sound and text; between sound and picture they are, unless a setting says otherwise.

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
    """What N sounds are held against. A sample without a text (``None``) takes no part in the loss between sound and text."""

    pictures_ND: Tensor
    texts_ND: Tensor
    """Rows of samples without a text are not looked at."""
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
    """The loss, and its parts before they are weighted, by name. A part of weight 0 is not computed.

    ``pictures_by_class``: whether every picture that shares a label with a sound fits it, not its own alone.
    """
    plain_ND, augmented_ND = sounds_NVD.unbind(1)
    device = sounds_NVD.device
    parts: dict[str, tuple[float, Tensor]] = {}
    if picture_weight:
        fitting = targets.of_one_class().to(device) if pictures_by_class else None
        parts["sound_picture"] = picture_weight, symmetric_info_nce(plain_ND, targets.pictures_ND, scale, fitting)
    if text_weight:
        rows = [index for index, text in enumerate(targets.texts) if text is not None]
        fitting = targets.of_one_text(rows).to(device)
        parts["sound_text"] = text_weight, symmetric_info_nce(plain_ND[rows], targets.texts_ND[rows], scale, fitting)
    if augmented_weight:
        parts["sound_augmented"] = augmented_weight, symmetric_info_nce(plain_ND, augmented_ND, scale)
    loss = torch.stack([weight * part for weight, part in parts.values()]).sum()
    return loss, {name: float(part.detach()) for name, (_, part) in parts.items()}
