"""The text of a sample (its caption, or a sentence with its class), and a cache of the embeddings of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.schema import unit_interval
from trainer.align.frozen_encoders import Partner

MAX_KEPT = 200_000
"""Largest number of cached embeddings, 400 MB at width 512. When more are needed, the cache is emptied."""


def words(label: str) -> str:
    """A class label as words: ``waterfall_burbling`` is "waterfall burbling"."""
    return " ".join(label.replace("_", " ").split())


def sample_text(
    labels: Sequence[str], caption: str | None, templates: Sequence[str], use_captions: bool, *identity: object
) -> str | None:
    """The caption, else a template with one of the labels. ``identity`` alone decides which template and label. None: no text."""
    if use_captions and caption and caption.strip():
        return caption.strip()
    if not labels:
        return None
    template = templates[int(unit_interval("template", *identity) * len(templates))]
    label = labels[int(unit_interval("label", *identity) * len(labels))]
    return template.format(words(label))


class TextEmbeddings:
    """Embeddings of texts by a frozen encoder, cached by text."""

    def __init__(self, partner: Partner, device: torch.device) -> None:
        self._partner, self._device = partner, device
        self._kept: dict[str, Tensor] = {}

    def rows(self, texts: Sequence[str | None]) -> Tensor:
        """(len(texts), D), rows of length 1; zeros for None."""
        new = sorted({text for text in texts if text is not None and text not in self._kept})
        if new:
            if len(self._kept) + len(new) > MAX_KEPT:
                self._kept.clear()
                new = sorted({text for text in texts if text is not None})
            self._kept.update(zip(new, self._embed(new), strict=True))
        nothing = torch.zeros(self._partner.width, device=self._device)
        chosen = [nothing if text is None else self._kept[text] for text in texts]
        return torch.stack(chosen) if chosen else torch.zeros(0, self._partner.width, device=self._device)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        # On a CPU each text is embedded alone: a batch changes the last bits, and its texts depend on the cache. A resumed fit starts
        # with an empty cache, and must compute the same numbers.
        groups = [[text] for text in texts] if self._device.type == "cpu" else [list(texts)]
        return torch.from_numpy(np.concatenate([self._partner.embed_texts(group) for group in groups])).to(self._device)

    def classes(self, labels: Iterable[str], templates: Sequence[str]) -> Mapping[str, Tensor]:
        """Class -> (D,): the normalised mean over all templates."""
        return {
            label: functional.normalize(self.rows([t.format(words(label)) for t in templates]).mean(0), dim=0)
            for label in sorted(set(labels))
        }
