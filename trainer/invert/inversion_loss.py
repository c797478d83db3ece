"""L_enc, the loss of an inversion; w̄_a, the mean of the encoder's codes that its last term may take; and the distance from real codes.

    L_enc = L_CLIP(a↔v) + L_CLIP(a↔t) + λ_b |ŵ_a - w̄|²    ("Sound-Guided Semantic Video Generation", section 3.1)

Shape suffixes: B clips, N pictures, K cutouts of each or inversions of a sound, L layers that take a style each, D numbers of a style or
of the space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.engine.ema import average_weight
from trainer.engine.ranks import add_over_ranks
from trainer.invert.guide import clip_loss
from trainer.invert.settings import InvertSettings
from trainer.model.sound_video import SoundVideoModel


def inversion_terms(
    settings: InvertSettings,
    pictures_KND: Tensor,
    sounds_ND: Tensor,
    texts_ND: Tensor,
    offsets_from_mean: Tensor,
) -> dict[str, Tensor]:
    """The three terms, unweighted, each the mean over the pictures; ``loss``: their weighted sum.

    ``pictures_KND`` are F_v of the cutouts, ``sounds_ND`` F_a, ``texts_ND`` F_t (zeros: no text), ``offsets_from_mean`` ŵ_a - w̄.
    """
    terms = {
        "sound_loss": clip_loss(pictures_KND, sounds_ND).mean(),
        "text_loss": clip_loss(
            pictures_KND if settings.text_against == "picture" else functional.normalize(sounds_ND, dim=1)[None],
            texts_ND,
        ).mean(),
        "style_loss": offsets_from_mean.square().mean(),
    }
    terms["loss"] = (
        settings.sound_weight * terms["sound_loss"]
        + settings.text_weight * terms["text_loss"]
        + settings.style_weight * terms["style_loss"]
    )
    return terms


def code_loss(drawn: Tensor, codes: Tensor, scale: Tensor, mean_share: float) -> Tensor:
    """(): for each sound the distance between its code and the nearest of its K inversions, and ``mean_share`` times the mean of all.

    ``drawn`` is (B, K, L, D) and ``codes`` (B, L, D); or of walks, (B, K, T, L, D), and the codes of T frames. A distance is the mean
    square over all that is not B or K, divided by ``scale``. The nearest of several (Guzman-Rivera and others,
    "Multiple Choice Learning", 2012) lets a sound keep several pictures; the mean of squares alone would give their average.
    """
    distances_BK = (drawn - codes[:, None]).square().flatten(2).mean(2) / scale
    return distances_BK.amin(1).mean() + mean_share * distances_BK.mean()


class CodeMean:
    """Moves the model's w̄_a, the running mean of its encoder's codes ŵ_a over clips, once a step.

    A step takes the mean from before it, and moves it afterwards by the codes of all its clips: micro-batches and ranks change nothing.
    """

    def __init__(self, model: SoundVideoModel, half_life: float) -> None:
        """``half_life`` in clips. Nothing is moved if the model has no such mean."""
        self._inversion, self._half_life = model.inversion, half_life
        self._sum_LD: Tensor | None = None

    def begin(self) -> None:
        """Starts a step, and forgets the codes of one that did not end."""
        mean_LD = self._inversion.mean_code
        self._sum_LD = None if mean_LD is None else torch.zeros_like(mean_LD)

    def add(self, codes_BLD: Tensor) -> None:
        """Takes the codes of a micro-batch."""
        if self._sum_LD is not None:
            self._sum_LD += codes_BLD.detach().sum(0)

    def move(self, num_clips: int) -> None:
        """Moves the mean by the codes of the ``num_clips`` clips of all ranks. Every rank must call it."""
        mean_LD = self._inversion.mean_code
        if mean_LD is None or self._sum_LD is None:
            return
        add_over_ranks([self._sum_LD])
        weight = average_weight(num_clips, self._half_life, num_clips, None)
        mean_LD.copy_((self._sum_LD / num_clips).lerp(mean_LD, weight))
        self._sum_LD = None
