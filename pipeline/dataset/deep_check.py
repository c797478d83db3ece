"""Decodes samples of shards to the last frame, in worker processes: ``python -m pipeline.manifest verify --deep``."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import soundfile

from pipeline.errors import ClipError
from pipeline.media.decoding import Decoding, Picture
from pipeline.runtime.workers import Workers

TIMEOUT_SECONDS = 600.0
"""Time limit for decoding one sample."""
MD5_AT = slice(26, 42)
"""Bytes of a FLAC file that hold the MD5 of its samples: after the marker (4 bytes) and the header of the STREAMINFO block (4 bytes),
at offset 18 of that block (RFC 9639, section 8.2)."""
BLOCK_SAMPLES = 1 << 16


class DeepCheck:
    """Decodes several samples at once. ``num_workers`` None: as many as there are cores."""

    def __init__(self, num_workers: int | None = None) -> None:
        self._workers = Workers(num_workers)
        self._threads = ThreadPoolExecutor(self._workers.num_workers)
        self._room = threading.BoundedSemaphore(2 * self._workers.num_workers)
        self._running: list[tuple[str, Future[list[str]]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()
        self._threads.shutdown(cancel_futures=True)

    def add(self, key: str, rendition: str, members: Mapping[str, bytes]) -> None:
        """Queues a sample. ``members``: its files by name. Blocks while the queue is full."""
        self._room.acquire()
        self._running.append((key, self._threads.submit(self._check, rendition, members)))

    def problems(self) -> Iterator[str]:
        """Problems of the samples that were added since the last call. Waits for their decoding."""
        running, self._running = self._running, []
        for key, future in running:
            yield from (f"sample {key}: {problem}" for problem in future.result())

    def _check(self, rendition: str, members: Mapping[str, bytes]) -> list[str]:
        try:
            return self._workers.run(check_sample, TIMEOUT_SECONDS, rendition, members)
        except ClipError as error:
            return [f"decoding it ended with {error.code}: {error}"]
        finally:
            self._room.release()


def check_sample(rendition: str, members: Mapping[str, bytes]) -> list[str]:
    """Decodes the ``mp4`` and the ``flac`` of a sample and compares them with its ``json``; returns the problems."""
    record = _record(members.get("json", b""))
    return [
        *(_picture_problems(members["mp4"], record, rendition) if "mp4" in members else ()),
        *(_sound_problems(members["flac"], record) if "flac" in members else ()),
    ]


def _record(content: bytes) -> Mapping[str, Any]:
    """The sample's ``json``. Empty if it is damaged: reading the tar reports that."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _nested_value(record: Mapping[str, Any], *names: str) -> Any:
    """The value at a path of names in nested dicts. None: there is none."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _picture_problems(mp4: bytes, record: Mapping[str, Any], rendition: str) -> Iterator[str]:
    num_frames, num_blocks = 0, 0
    size: tuple[int, int] | None = None
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        decoding = Decoding(Path(file.name), sample_rate_hz=44_100)
        try:
            for part in decoding:
                if isinstance(part, Picture):
                    num_frames += 1
                    if size is None:
                        height, width = part.luma().shape
                        size = (width, height)
                else:
                    num_blocks += 1
        except ClipError as error:
            yield f"its mp4 cannot be decoded: {error}"
            return
    if decoding.num_errors:
        yield f"its mp4 has {decoding.num_errors} packets that cannot be decoded: {decoding.last_error}"
    recorded = _nested_value(record, "renditions", rendition, "num_frames")
    if num_frames == 0 or recorded not in (None, num_frames):
        yield f"its mp4 has {num_frames} frames, not {recorded or 'any'}"
    width_and_height = tuple(_nested_value(record, "renditions", rendition, name) for name in ("width", "height"))
    if size is not None and None not in width_and_height and size != width_and_height:
        yield f"its mp4 has frames of {size[0]} x {size[1]} pixels, not {width_and_height[0]} x {width_and_height[1]}"
    if num_blocks == 0:
        yield "its mp4 has no sound"


def _sound_problems(flac: bytes, record: Mapping[str, Any]) -> Iterator[str]:
    digest, num_samples = hashlib.md5(usedforsecurity=False), 0
    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as sound:
            is_16_bit = sound.subtype == "PCM_16"
            while (block := sound.read(BLOCK_SAMPLES, dtype="int16", always_2d=True)).size:
                num_samples += len(block)
                digest.update(block.astype("<i2").tobytes())
    except (soundfile.LibsndfileError, RuntimeError) as error:
        yield f"its flac cannot be decoded: {error}"
        return
    recorded = _nested_value(record, "cut", "num_samples")
    if num_samples == 0 or recorded not in (None, num_samples):
        yield f"its flac has {num_samples} samples, not {recorded or 'any'}"
    elif is_16_bit and any(flac[MD5_AT]) and digest.digest() != flac[MD5_AT]:
        yield "its flac decodes to other samples than were written"
