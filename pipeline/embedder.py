"""Embeds clips in a process of its own: the networks are loaded once, and their memory is not multiplied by the workers."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.agreement import AgreementSettings, ClassPrompts
from pipeline.damage import read_json_whole, read_whole
from pipeline.encoders.pair import ClipEmbeddings, EncoderPair, EncoderPairSettings, find_files, load_pair
from pipeline.errors import ClipError, EncoderError
from pipeline.previews import read_frames, read_sounds
from pipeline.schema import stable_hash
from pipeline.sound import SAMPLE_RATE_HZ
from pipeline.stop import Stop
from pipeline.storage import Folder
from pipeline.workers import Workers

LOG = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Job:
    """The clips of one source: its previews, and the spans in seconds of the file."""

    frames_path: Path
    sound_path: Path
    spans: tuple[tuple[float, float], ...]


class _Waiting:
    """A job, and what became of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.content: bytes | None = None
        self.error: ClipError | None = None

    @property
    def done(self) -> bool:
        return self.content is not None or self.error is not None


class Embedder:
    """The encoder pair of a recipe. ``temporary`` is as of :class:`pipeline.workers.Workers`.

    Raises EncoderError where its files cannot be had.
    """

    def __init__(self, settings: EncoderPairSettings, stop: Stop | None = None, temporary: Path | None = None) -> None:
        self.encoder_id = find_files(settings).encoder_id
        self.shares_batches = False
        """Whether sources that wait are embedded together. Found out with the first: a GPU takes them faster so, a CPU does not."""
        self._settings = settings
        self._workers = Workers(1, stop, temporary=temporary)
        self._queue: list[_Waiting] = []
        self._queue_lock, self._turn, self._prompts_turn = threading.Lock(), threading.Lock(), threading.Lock()
        self._prompts: dict[str, ClassPrompts | None] = {}

    def embed(self, frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]]) -> bytes:
        """Embeddings of the clips at ``spans`` (seconds in the file), as the bytes of an npz: see :func:`read_embeddings`.

        Raises EncoderError, the first time, where the weights turn out to be damaged or of another shape.
        """
        waiting = _Waiting(Job(frames_path, sound_path, tuple(spans)))
        with self._queue_lock:
            self._queue.append(waiting)
        with self._turn:  # whoever has it works for those behind it too
            if not waiting.done:
                self._embed_group(self._next_group(waiting))
        if waiting.error is not None:
            raise waiting.error
        assert waiting.content is not None
        return waiting.content

    def _next_group(self, own: _Waiting) -> list[_Waiting]:
        """``own``, and where batches are shared, of the others that wait as many as fill one."""
        with self._queue_lock:
            others = [waiting for waiting in self._queue if waiting is not own]
            group, num_clips = [own], len(own.job.spans)
            while self.shares_batches and others and num_clips < self._settings.batch_size:
                group.append(others.pop(0))
                num_clips += len(group[-1].job.spans)
            self._queue = others
        return group

    def _embed_group(self, group: Sequence[_Waiting]) -> None:
        if len(group) > 1:
            with contextlib.suppress(ClipError):  # one of them is bad, and shall cost itself alone
                self._run(group)
                return
        for waiting in group:
            try:
                self._run([waiting])
            except ClipError as error:
                waiting.error = error

    def _run(self, group: Sequence[_Waiting]) -> None:
        jobs = [waiting.job for waiting in group]
        contents, self.shares_batches = self._workers.run(_embed, TIMEOUT_SECONDS, self._settings, jobs)
        for waiting, content in zip(group, contents, strict=True):
            waiting.content = content

    def prompts(self, settings: AgreementSettings, state: Folder) -> ClassPrompts | None:
        """The recipe's classes in the pair's space, embedded once and then kept in ``state``, so that no networks are loaded for them.

        None where the recipe names no classes, or the pair cannot embed their words. That is kept too, so that all clips of a
        dataset are measured alike, and is said once a run.
        """
        if settings.classes is None:
            return None
        key = stable_hash(self.encoder_id, *settings.prompts, length=32)
        with self._prompts_turn:
            if key not in self._prompts:
                rows = self._prompt_rows(settings.prompts, f"prompts/{key}", state)
                self._prompts[key] = None if rows is None else ClassPrompts(settings.classes, rows)
            return self._prompts[key]

    def _prompt_rows(self, texts: Sequence[str], name: str, state: Folder) -> npt.NDArray[np.float32] | None:
        rows = read_whole(state, f"{name}.npy", lambda content: _rows(content, len(texts)))
        if rows is not None:
            return rows
        problem = read_json_whole(state, f"{name}.json", lambda values: str(values["problem"]))
        if problem is None:
            content, problem = self._workers.run(_embed_texts, TIMEOUT_SECONDS, self._settings, tuple(texts))
            if content is not None:
                state.write_bytes(f"{name}.npy", content)
                return _rows(content, len(texts))
            state.write_json(f"{name}.json", {"problem": problem})
        LOG.warning(
            "margins over other classes are not measured: %s. To try again, delete %s/%s.json",
            problem,
            state,
            name,
        )
        return None

    def close(self) -> None:
        self._workers.close()


def _rows(content: bytes, num_rows: int) -> npt.NDArray[np.float32]:
    """Raises ValueError where the npy is damaged."""
    rows: npt.NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    if rows.ndim != 2 or len(rows) != num_rows:
        raise ValueError(f"rows of shape {rows.shape}, not {num_rows} of them")
    if not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=0.01):
        raise ValueError("not all rows have length 1")
    return rows


def embedded_name(key: str) -> str:
    """Where the embeddings of one source's clips lie in the state."""
    return f"embedded/{key[:2]}/{key}.npz"


def read_embeddings(
    content: bytes, num_clips: int | None = None
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For N clips: frames' embeddings (T, D) each, pictures (N, D), sounds (N, D).

    Raises one of ``UNREADABLE`` where they are damaged, or not of ``num_clips``.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        frames = np.split(arrays["frames"].astype(np.float32), arrays["ends"][:-1])
        pictures, sounds = arrays["picture"].astype(np.float32), arrays["sound"].astype(np.float32)
    if not len(frames) == len(pictures) == len(sounds) == (len(sounds) if num_clips is None else num_clips):
        raise ValueError(f"embeddings of {len(frames)}, {len(pictures)} and {len(sounds)} clips, not {num_clips}")
    return frames, pictures, sounds


@functools.cache
def _pair(settings: EncoderPairSettings) -> EncoderPair:
    """The pair of this process, which is loaded once.

    Its threads sleep while they wait for each other. While others decode they would wait long, and spinning then took 2.3 times the
    CPU time and twice as long. OpenMP reads this when torch is imported, which nothing has done before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return load_pair(settings)


def _embed(settings: EncoderPairSettings, jobs: Sequence[Job]) -> tuple[list[bytes], bool]:
    """The embeddings of every job, and whether the pair runs where batches pay."""
    pair = _pair(settings)
    from pipeline.encoders.device import pick_device  # noqa: PLC0415 - brings torch, which only this process needs

    frames: list[npt.NDArray[np.uint8]] = []
    sounds: list[npt.NDArray[np.float32]] = []
    for job in jobs:
        with job.frames_path.open("rb") as file:
            frames += read_frames(file, job.spans, settings.frames_per_clip)
        with job.sound_path.open("rb") as file:
            sounds += read_sounds(file, job.spans)
    found = pair.embed_clips(frames, sounds, SAMPLE_RATE_HZ)
    contents, start = [], 0
    for job in jobs:
        contents.append(_content(found, start, start + len(job.spans)))
        start += len(job.spans)
    return contents, pick_device(settings.device).type == "cuda"


def _content(found: ClipEmbeddings, start: int, stop: int) -> bytes:
    """The clips ``start`` to ``stop``, as they are stored."""
    rows = found.picture_frames[start:stop]
    content = io.BytesIO()
    np.savez(
        content,
        frames=np.concatenate(rows).astype(np.float16),
        ends=np.cumsum([len(each) for each in rows]),
        picture=found.picture[start:stop].astype(np.float16),
        sound=found.sound[start:stop].astype(np.float16),
    )
    return content.getvalue()


def _embed_texts(settings: EncoderPairSettings, texts: Sequence[str]) -> tuple[bytes | None, str]:
    """The bytes of an npy, (C, D); or nothing, and why the pair cannot embed these words."""
    pair = _pair(settings)
    try:
        rows = pair.embed_texts(texts)
    except EncoderError as error:
        return None, str(error)
    content = io.BytesIO()
    np.save(content, rows.astype(np.float32))
    return content.getvalue(), ""
