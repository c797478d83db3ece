"""Embeds clips in one worker process, so that the networks are in memory once and not once per worker.

Threads put jobs into a queue. The thread that gets the lock embeds its own job together with others from the queue, as many as the
encoder pair takes at once; the threads of those jobs then find their results done.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.agreement.measures import AgreementSettings, ClassPrompts
from pipeline.build.timeouts import TIMED_OUT
from pipeline.encoders.pair import (
    ClipEmbeddings,
    EncoderPair,
    EncoderPairSettings,
    clips_at_once,
    find_files,
    load_pair,
)
from pipeline.errors import ClipError, EncoderError, WorkerError
from pipeline.measure.previews import read_frames, read_sounds
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.runtime.damage import NAMED, check_name, read_named, read_whole, write_named
from pipeline.runtime.folder import Folder
from pipeline.runtime.stop import Stop
from pipeline.runtime.waiting import add_waited, counted_lock
from pipeline.runtime.workers import Workers
from pipeline.schema import stable_hash

LOG = logging.getLogger(__name__)

LOAD_SECONDS = 600.0
"""Time limit for loading the networks. It is part of every time-out."""
SECONDS_PER_FRAME, SECONDS_PER_TEXT, SECONDS_PER_SOUND_SECOND = 2.0, 2.0, 1.0
"""Time limits for embedding: several times what a large network needs on one slow core."""
MAX_CLIPS_PER_JOB = 64
"""Most clips in one job. More clips of a source are divided into jobs, so that memory and time-out do not grow with its length."""
TIMEOUT_DIVISOR = 8
"""After a time-out the number of clips per job is divided by this, down to one."""


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """Clips of one source: the files of its previews, and the clips' spans in seconds of the source file."""

    frames_path: Path
    sound_path: Path
    spans: tuple[tuple[float, float], ...]


class _QueuedJob:
    """A job in the queue, and its result or error."""

    def __init__(self, job: EmbeddingJob) -> None:
        self.job = job
        self.content: bytes | None = None
        self.error: ClipError | None = None
        self.worked_seconds = 0.0
        """The share of the group's time that this job took."""

    @property
    def done(self) -> bool:
        return self.content is not None or self.error is not None


class Embedder:
    """The encoder pair of a recipe. ``temporary``: as in :class:`pipeline.runtime.workers.Workers`.

    Raises EncoderError if its weights cannot be found or downloaded.
    """

    def __init__(self, settings: EncoderPairSettings, stop: Stop | None = None, temporary: Path | None = None) -> None:
        self.encoder_id = find_files(settings).encoder_id
        self.clips_at_once = 1
        """Clips that the pair embeds at once. Waiting sources are embedded together up to this number. Known after the first source."""
        self._settings = settings
        self._workers = Workers(1, stop, temporary=temporary)
        self._clips_per_job = MAX_CLIPS_PER_JOB
        self._queue: list[_QueuedJob] = []
        self._queue_lock, self._embed_lock, self._prompts_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._prompts: dict[str, ClassPrompts | None] = {}

    def embed(self, frames_path: Path, sound_path: Path, spans: Sequence[tuple[float, float]]) -> bytes:
        """Embeddings of the clips at ``spans`` (seconds in the file), as the bytes of an npz: see :func:`read_embeddings`.

        Raises EncoderError at the first call if the weights are damaged or of another shape, and WorkerError ``timed_out`` if a
        single clip exceeds its time limit.
        """
        contents: list[bytes] = []
        remaining = tuple(spans)
        while remaining:
            part = remaining[: self._clips_per_job]
            try:
                contents.append(self._embed_part(EmbeddingJob(frames_path, sound_path, part)))
            except WorkerError as error:
                if error.code != TIMED_OUT or len(part) == 1:
                    raise
                self._clips_per_job = max(min(len(part), self._clips_per_job) // TIMEOUT_DIVISOR, 1)
                LOG.warning(
                    "embedding %d clips exceeded the time limit; from now on %d at once", len(part), self._clips_per_job
                )
                continue
            remaining = remaining[len(part) :]
        return _joined(contents)

    @property
    def single_clip_seconds(self) -> float:
        """The smallest time-out: that of a single clip of length 0."""
        return self._timeout_seconds([EmbeddingJob(Path(), Path(), ((0.0, 0.0),))])

    def _timeout_seconds(self, jobs: Sequence[EmbeddingJob]) -> float:
        spans = [span for job in jobs for span in job.spans]
        picture_seconds = SECONDS_PER_FRAME * self._settings.frames_per_clip * len(spans)
        sound_seconds = SECONDS_PER_SOUND_SECOND * sum(end - start for start, end in spans)
        return LOAD_SECONDS + picture_seconds + sound_seconds

    def _embed_part(self, job: EmbeddingJob) -> bytes:
        queued = _QueuedJob(job)
        with self._queue_lock:
            self._queue.append(queued)
        with counted_lock(self._embed_lock):  # the thread that holds it also embeds the jobs of waiting threads
            is_leader = not queued.done
            if is_leader:
                self._embed_group(self._next_group(queued))
        if not is_leader:
            add_waited(-queued.worked_seconds)
        if queued.error is not None:
            raise queued.error
        assert queued.content is not None
        return queued.content

    def _next_group(self, own: _QueuedJob) -> list[_QueuedJob]:
        """``own`` and, taken from the queue, as many of the other jobs as the pair embeds at once."""
        with self._queue_lock:
            others = [queued for queued in self._queue if queued is not own]
            group, num_clips = [own], len(own.job.spans)
            while others and num_clips < self.clips_at_once:
                group.append(others.pop(0))
                num_clips += len(group[-1].job.spans)
            self._queue = others
        return group

    def _embed_group(self, group: Sequence[_QueuedJob]) -> None:
        """Embeds the jobs and divides the time among them by their numbers of clips.

        The thread of the first job does the work; in its accounts, the shares of the other jobs are waiting time.
        """
        started = time.monotonic()
        try:
            self._embed_together(group)
        finally:
            seconds_per_clip = (time.monotonic() - started) / max(sum(len(queued.job.spans) for queued in group), 1)
            for queued in group:
                queued.worked_seconds = seconds_per_clip * len(queued.job.spans)
            add_waited(sum(queued.worked_seconds for queued in group[1:]))

    def _embed_together(self, group: Sequence[_QueuedJob]) -> None:
        if len(group) > 1:
            # if a job fails, all run once more below, one at a time, so that only this job fails
            with contextlib.suppress(ClipError):
                self._run(group)
                return
        for queued in group:
            try:
                self._run([queued])
            except ClipError as error:
                queued.error = error

    def _run(self, group: Sequence[_QueuedJob]) -> None:
        jobs = [queued.job for queued in group]
        contents, self.clips_at_once = self._workers.run(_embed, self._timeout_seconds(jobs), self._settings, jobs)
        for queued, content in zip(group, contents, strict=True):
            queued.content = content

    def prompts(self, settings: AgreementSettings, state: Folder) -> ClassPrompts | None:
        """Embeddings of the recipe's class prompts. They are stored in ``state``, so that later runs need not load the networks.

        None if the recipe names no classes, or if the pair cannot embed texts. The second is stored as well, so that all clips of a
        dataset are measured alike, and is logged once per run.
        """
        if settings.classes is None:
            return None
        key = stable_hash(self.encoder_id, *settings.prompts, length=32)
        with self._prompts_lock:
            if key not in self._prompts:
                rows = self._prompt_rows(settings.prompts, f"prompts/{key}", state)
                self._prompts[key] = None if rows is None else ClassPrompts(settings.classes, rows)
            return self._prompts[key]

    def _prompt_rows(self, texts: Sequence[str], name: str, state: Folder) -> npt.NDArray[np.float32] | None:
        rows = read_whole(state, f"{name}.npz", lambda content: _named_rows(content, len(texts), f"{name}.npz"))
        if rows is not None:
            return rows
        problem = read_named(state, f"{name}.json", lambda values: str(values["problem"]))
        if problem is None:
            timeout_seconds = LOAD_SECONDS + SECONDS_PER_TEXT * len(texts)
            content, problem = self._workers.run(_embed_texts, timeout_seconds, self._settings, tuple(texts))
            if content is not None:
                rows = _rows(content, len(texts))
                packed = io.BytesIO()
                named: dict[str, Any] = {"rows": rows, NAMED: np.array(f"{name}.npz")}
                np.savez(packed, **named)
                state.write_bytes(f"{name}.npz", packed.getvalue())
                return rows
            write_named(state, f"{name}.json", {"problem": problem, "encoder_id": self.encoder_id})
        LOG.warning(
            "the margins over other classes are not measured: %s. To try again, delete %s/%s.json",
            problem,
            state,
            name,
        )
        return None

    def close(self) -> None:
        self._workers.close()


Rows = npt.NDArray[np.float32]


def _rows(content: bytes, num_rows: int) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) from the bytes of an npy. Raises ValueError if they are damaged."""
    return _checked_rows(np.load(io.BytesIO(content), allow_pickle=False), num_rows)


def _named_rows(content: bytes, num_rows: int, name: str) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) from an npz that contains its own name. Raises one of ``UNREADABLE`` if it is damaged or has another name."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        check_name(str(arrays[NAMED]), name)
        return _checked_rows(arrays["rows"], num_rows)


def _checked_rows(rows: npt.NDArray[np.float32], num_rows: int) -> npt.NDArray[np.float32]:
    if rows.ndim != 2 or len(rows) != num_rows:
        raise ValueError(f"rows of shape {rows.shape}, not {num_rows} of them")
    if not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=0.01):
        raise ValueError("not all rows have length 1")
    return rows


def embedded_name(key: str) -> str:
    """Path in ``state`` of the embeddings of one source's clips."""
    return f"embedded/{key[:2]}/{key}.npz"


def read_embeddings(
    content: bytes, num_clips: int | None = None, name: str | None = None
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For N clips: embeddings of the frames, one (T, D) per clip; of the pictures, (N, D); of the sounds, (N, D).

    Raises one of ``UNREADABLE`` if they are damaged, not of ``num_clips`` clips, or stored under another name than ``name``.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if name is not None and NAMED in arrays:  # not in those of an older version
            check_name(str(arrays[NAMED]), name)
        frames = np.split(arrays["frames"].astype(np.float32), arrays["ends"][:-1])
        pictures, sounds = arrays["picture"].astype(np.float32), arrays["sound"].astype(np.float32)
    if not len(frames) == len(pictures) == len(sounds) == (len(sounds) if num_clips is None else num_clips):
        raise ValueError(f"embeddings of {len(frames)}, {len(pictures)} and {len(sounds)} clips, not {num_clips}")
    return frames, pictures, sounds


@functools.cache
def _pair(settings: EncoderPairSettings) -> EncoderPair:
    """The pair, loaded once per process."""
    return load_pair(settings)


def _embed(settings: EncoderPairSettings, jobs: Sequence[EmbeddingJob]) -> tuple[list[bytes], int]:
    """The embeddings of every job, and how many clips the pair embeds at once."""
    pair = _pair(settings)
    frames: list[npt.NDArray[np.uint8]] = []
    sounds: list[npt.NDArray[np.float32]] = []
    for job in jobs:
        with job.frames_path.open("rb") as file:
            frames += read_frames(file, job.spans, settings.frames_per_clip)
        with job.sound_path.open("rb") as file:
            sounds += read_sounds(file, job.spans)
    embeddings = pair.embed_clips(frames, sounds, SAMPLE_RATE_HZ)
    contents, start = [], 0
    for job in jobs:
        contents.append(_content(embeddings, start, start + len(job.spans)))
        start += len(job.spans)
    return contents, clips_at_once(settings)


def _content(embeddings: ClipEmbeddings, start: int, stop: int) -> bytes:
    """The embeddings of the clips ``start`` to ``stop`` as the bytes of an npz."""
    frames = embeddings.picture_frames[start:stop]
    return _packed(
        np.concatenate(frames),
        [len(rows) for rows in frames],
        embeddings.picture[start:stop],
        embeddings.sound[start:stop],
    )


def _packed(frames: Rows, num_frames: Sequence[int], picture: Rows, sound: Rows) -> bytes:
    content = io.BytesIO()
    np.savez(
        content,
        frames=frames.astype(np.float16),
        ends=np.cumsum(num_frames),
        picture=picture.astype(np.float16),
        sound=sound.astype(np.float16),
    )
    return content.getvalue()


def with_name(content: bytes, name: str) -> bytes:
    """The bytes of the same npz with the name that it is stored under, so that a file in the wrong place is recognised."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        named = {**arrays, NAMED: np.array(name)}
    packed = io.BytesIO()
    np.savez(packed, **named)
    return packed.getvalue()


def _joined(contents: Sequence[bytes]) -> bytes:
    """The embeddings of a source's jobs as one npz."""
    if len(contents) == 1:
        return contents[0]
    parts = [read_embeddings(content) for content in contents]
    frames = [rows for clip_frames, _, _ in parts for rows in clip_frames]
    return _packed(
        np.concatenate(frames),
        [len(rows) for rows in frames],
        np.concatenate([pictures for _, pictures, _ in parts]),
        np.concatenate([sounds for _, _, sounds in parts]),
    )


def _embed_texts(settings: EncoderPairSettings, texts: Sequence[str]) -> tuple[bytes | None, str]:
    """The bytes of an npy (C, D) and an empty text; or None and why the pair cannot embed these texts."""
    pair = _pair(settings)
    try:
        rows = pair.embed_texts(texts)
    except EncoderError as error:
        return None, str(error)
    content = io.BytesIO()
    np.save(content, rows.astype(np.float32))
    return content.getvalue(), ""
