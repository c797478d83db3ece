"""Embeds clips in a process of its own: the networks are loaded once, and their memory is not multiplied by the workers."""

from __future__ import annotations

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

_pair: EncoderPair | None = None


class Embedder:
    """The encoder pair of a recipe. Raises EncoderError where its files cannot be had."""

    def __init__(self, settings: EncoderPairSettings, stop: Stop | None = None) -> None:
        self.encoder_id = find_files(settings).encoder_id
        self._frames_per_clip = settings.frames_per_clip
        self._workers = Workers(1, stop, initializer=_load, initargs=(settings,))

    def embed(self, frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]]) -> bytes:
        """Embeddings of the clips at ``spans`` (seconds in the file), as the bytes of an npz: see :func:`read_embeddings`."""
        return self._workers.run(_embed, TIMEOUT_SECONDS, frames_path, sound_path, tuple(spans), self._frames_per_clip)

    def close(self) -> None:
        self._workers.close()


def read_embeddings(
    content: bytes,
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For N clips: frames' embeddings (T, D) each, pictures (N, D), sounds (N, D)."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        frames = np.split(arrays["frames"].astype(np.float32), arrays["ends"][:-1])
        return frames, arrays["picture"].astype(np.float32), arrays["sound"].astype(np.float32)


def _load(settings: EncoderPairSettings) -> None:
    global _pair  # noqa: PLW0603 - one pair per process
    _pair = load_pair(settings)


def _embed(frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]], frames_per_clip: int) -> bytes:
    assert _pair is not None
    with frames_path.open("rb") as file:
        frames = read_frames(file, spans, frames_per_clip)
    with sound_path.open("rb") as file:
        sounds = read_sounds(file, spans)
    found = _pair.embed_clips(frames, sounds, SAMPLE_RATE_HZ)
    content = io.BytesIO()
    np.savez(
        content,
        frames=np.concatenate(found.picture_frames).astype(np.float16),
        ends=np.cumsum([len(rows) for rows in found.picture_frames]),
        picture=found.picture.astype(np.float16),
        sound=found.sound.astype(np.float16),
    )
    return content.getvalue()
