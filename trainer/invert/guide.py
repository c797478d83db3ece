"""The shared space as a guide: embeddings of sounds and texts, and of generated pictures with a gradient back to their pixels.

Shape suffixes: B samples, N pictures, K cutouts of each, C = 3 colours, H W rows and columns, D width of the space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.encoders.device import ComputeOptions
from pipeline.encoders.mel import MelConfig
from pipeline.encoders.pair import EncoderPairSettings, load_pair
from pipeline.encoders.sound import SoundEncoder, load_sound, read_align_config
from pipeline.encoders.weights import file_sha256, resolve_weights
from pipeline.errors import EncoderError
from trainer.align.frozen_encoders import Partner, load_partner
from trainer.align.prompts import TextEmbeddings, sample_text
from trainer.engine.run import Run
from trainer.invert.settings import GuideSettings
from trainer.streaming.batches import Batch

if TYPE_CHECKING:
    from trainer.invert.settings import InvertRecipe

ALIGN_CHECKPOINT = "align/best.safetensors"


def cutouts(pictures_NCHW: Tensor, places_K3: Tensor, smallest: float) -> list[Tensor]:
    """K batches (N, C, side, side) of squares; within a batch the place is the same for all pictures. Differentiable.

    The numbers of a place, each 0..1, give the side as a share between ``smallest`` and 1 of the picture's side, and the position across
    and down as a share of the room that is left.
    """
    side = pictures_NCHW.shape[-1]
    squares = []
    for share, across, down in places_K3.tolist():
        size = max(1, round(side * (smallest + (1 - smallest) * share)))
        left, top = round(across * (side - size)), round(down * (side - size))
        squares.append(pictures_NCHW[:, :, top : top + size, left : left + size])
    return squares


def real_sounds(batch: Batch) -> list[NDArray[np.float32]]:
    """The sounds of a batch, (samples,) each, at 44.1 kHz, without the silence that fills their windows."""
    rate_hz = MelConfig().sample_rate_hz
    return [
        row[: max(1, min(len(row), round(seconds * rate_hz)))].numpy()
        for row, seconds in zip(batch.sounds_BN, batch.seconds_B.tolist(), strict=True)
    ]


class Guide:
    """The frozen encoders of sound (F_a), picture (F_v) and text (F_t). The constructor loads their weights."""

    def __init__(self, settings: GuideSettings, recipe: InvertRecipe, run: Run, field: str) -> None:
        """Raises EncoderError or CheckpointError if an encoder is missing, or if two encoders do not share a space."""
        self.settings, self.device = settings, run.fabric.device
        precision = run.settings.precision
        self.partner: Partner = load_partner(recipe.align.partner, self.device, precision, "align.partner")
        self.sound = _sound_encoder(settings, self.partner, run, field)
        if self.sound.width != self.partner.width:
            raise EncoderError(
                f"{field}.sound_weights: its space has {self.sound.width} numbers, that of align.partner {self.partner.width}; "
                f"name a sound encoder that was trained against {recipe.align.partner.picture_model}"
            )
        self._texts = TextEmbeddings(self.partner, self.device)
        self._prompts, self._use_captions = recipe.align.prompts, recipe.align.use_captions
        self._texts.classes(run.classes, self._prompts)  # refuses a class that the encoder does not know

    @property
    def encoder_ids(self) -> tuple[str, str]:
        """``encoder_id`` of the picture encoder and of the sound encoder."""
        return self.partner.encoder_id, self.sound.encoder_id

    def sounds(self, batch: Batch) -> Tensor:
        """(B, D): F_a of the batch's sounds, without the silence that fills their windows."""
        if not len(batch):
            return torch.zeros(0, self.partner.width, device=self.device)
        rows = self.sound.embed_sounds(real_sounds(batch), MelConfig().sample_rate_hz)
        return torch.from_numpy(np.asarray(rows)).to(self.device)

    def texts(self, batch: Batch, *identity: object) -> Tensor:
        """(B, D): F_t of the captions or class prompts; zeros for a sample without either."""
        texts = [
            sample_text(labels, caption, self._prompts, self._use_captions, *identity, dataset, key)
            for labels, caption, dataset, key in zip(
                batch.labels, batch.captions, batch.datasets, batch.keys, strict=True
            )
        ]
        return self._texts.rows(texts)

    def places(self) -> Tensor:
        """(K, 3): random places of cutouts, from torch's CPU generator."""
        return torch.rand(self.settings.num_cutouts, 3)

    def pictures(self, pictures_NCHW: Tensor, places_K3: Tensor) -> Tensor:
        """(K, N, D): F_v of cutouts of pictures, rows of length 1, with gradient.

        Values are clamped to -1..1, as in a picture file: values outside have no gradient.
        """
        squares = cutouts(pictures_NCHW.clamp(-1, 1), places_K3, self.settings.smallest_cutout)
        rows_PD = self.partner.look(torch.cat([self.partner.resized(squares_NCHW) for squares_NCHW in squares]))
        return rows_PD.view(len(squares), len(pictures_NCHW), -1)


def clip_loss(pictures_KND: Tensor, targets_ND: Tensor) -> Tensor:
    """(N,): 1 - cos(F_v(G(ŵ)), F(x)), the mean over cutouts: L_CLIP of "Sound-Guided Semantic Video Generation", section 3.1.

    ``pictures_KND`` are unit vectors. A row of zeros in ``targets_ND`` means that there is no target: its loss is 0.
    """
    targets_ND = functional.normalize(targets_ND, dim=1)
    cosines_N = (pictures_KND * targets_ND).sum(2).mean(0)
    return torch.where(targets_ND.any(1), 1 - cosines_N, torch.zeros_like(cosines_N))


def _sound_encoder(settings: GuideSettings, partner: Partner, run: Run, field: str) -> SoundEncoder:
    if settings.sound_kind == "small":
        return load_pair(EncoderPairSettings(), field=field).sound
    running = ComputeOptions(run.fabric.device, batch_size=64)
    setting = f"{field}.sound_weights"
    if settings.sound_weights is None:
        path = run.folder / ALIGN_CHECKPOINT
        if not path.is_file():
            raise EncoderError(f"{setting}: {path} is not there: run the stage align first, or name a sound encoder")
    else:
        path = resolve_weights(settings.sound_weights, settings.sound_sha256, field=setting)
    if settings.sound_kind == "align":
        trained_with = read_align_config(path).picture_id
        if trained_with not in (None, partner.encoder_id):
            raise EncoderError(
                f"{setting}: {path} was trained against {trained_with}, and align.partner is {partner.encoder_id}; "
                f"name the same picture encoder in both"
            )
    return load_sound(settings.sound_kind, path, file_sha256(path), running)
