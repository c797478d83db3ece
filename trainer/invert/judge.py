"""The judge: encoders that measure what the stages generate. They are not the guide's: a generator may learn to deceive its guide.

Shape suffixes: B samples, C = 3 colours, H W rows and columns, D width of the space.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair
from trainer.invert.guide import real_sounds
from trainer.model.pictures import to_uint8
from trainer.streaming.batches import Batch

logger = logging.getLogger(__name__)


def load_judge(settings: EncoderPairSettings, guide_ids: Collection[str], field: str) -> EncoderPair:
    """The encoders of ``settings``. Logs a warning if one of them is part of the guide. Raises EncoderError."""
    judge = load_pair(settings, field=field)
    if shared := sorted({judge.picture.encoder_id, judge.sound.encoder_id} & set(guide_ids)):
        logger.warning(
            "%s shares %s with the guide: its measures are partly what the training optimises", field, ", ".join(shared)
        )
    return judge


def judged_pictures(judge: EncoderPair, pictures_BCHW: Tensor) -> Tensor:
    """(B, D), rows of length 1, on the CPU: the judge's embeddings of generated pictures, about -1..1."""
    pictures_BHWC = to_uint8(pictures_BCHW).cpu().numpy()
    rows = judge.picture.embed_groups([picture_HWC[None] for picture_HWC in pictures_BHWC])
    return _stacked([rows_TD[0] for rows_TD in rows], judge.width)


def judged_sounds(judge: EncoderPair, batch: Batch) -> Tensor:
    """(B, D), rows of length 1, on the CPU: the judge's embeddings of the batch's sounds."""
    if not len(batch):
        return torch.zeros(0, judge.width)
    return _stacked(list(judge.sound.embed_sounds(real_sounds(batch), MelConfig().sample_rate_hz)), judge.width)


def _stacked(rows: list[NDArray[np.float32]], width: int) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width)
