"""Embeds clips in a process of its own: the networks are loaded once, and their memory is not multiplied by the workers."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, find_files, load_pair
from pipeline.previews import read_frames, read_sounds
from pipeline.sound import SAMPLE_RATE_HZ
from pipeline.stop import Stop
from pipeline.workers import Workers

TIMEOUT_SECONDS = 1800.0


class Embedder:
    """The encoder pair of a recipe. Raises EncoderError where its files cannot be had."""

    def __init__(self, settings: EncoderPairSettings, stop: Stop | None = None) -> None:
        self.encoder_id = find_files(settings).encoder_id
        self._settings = settings
        self._workers = Workers(1, stop)

    def embed(self, frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]]) -> bytes:
        """Embeddings of the clips at ``spans`` (seconds in the file), as the bytes of an npz: see :func:`read_embeddings`.

        Raises EncoderError, the first time, where the weights turn out to be damaged or of another shape.
        """
        return self._workers.run(_embed, TIMEOUT_SECONDS, self._settings, frames_path, sound_path, tuple(spans))

    def close(self) -> None:
        self._workers.close()


def read_embeddings(
    content: bytes,
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For N clips: frames' embeddings (T, D) each, pictures (N, D), sounds (N, D)."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        frames = np.split(arrays["frames"].astype(np.float32), arrays["ends"][:-1])
        return frames, arrays["picture"].astype(np.float32), arrays["sound"].astype(np.float32)


@functools.cache
def _pair(settings: EncoderPairSettings) -> EncoderPair:
    """The pair of this process."""
    return load_pair(settings)


def _embed(
    settings: EncoderPairSettings, frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]]
) -> bytes:
    pair = _pair(settings)
    with frames_path.open("rb") as file:
        frames = read_frames(file, spans, settings.frames_per_clip)
    with sound_path.open("rb") as file:
        sounds = read_sounds(file, spans)
    found = pair.embed_clips(frames, sounds, SAMPLE_RATE_HZ)
    content = io.BytesIO()
    np.savez(
        content,
        frames=np.concatenate(found.picture_frames).astype(np.float16),
        ends=np.cumsum([len(rows) for rows in found.picture_frames]),
        picture=found.picture.astype(np.float16),
        sound=found.sound.astype(np.float16),
    )
    return content.getvalue()
