"""Where the bytes of a clip are: a kept one's in its tar, a rejected one's in the previews of its source."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from pydantic import ValidationError

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.shards import FOLDER
from pipeline.errors import ClipError
from pipeline.measure.clips import ClipSettings
from pipeline.measure.previews import read_frames, read_sounds
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings, measure_key
from pipeline.runtime.folder import Folder

logger = logging.getLogger(__name__)

STATE = "state"
MAX_INDEXES = 64
"""Indexes of shards, and lists of finished sources, that are held in memory."""

Frames = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a file: ``path`` in the dataset's folder."""

    path: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ClipPlace:
    """What is needed to find a clip."""

    key: str
    source_id: str
    shard: str | None
    start_ms: int
    end_ms: int


class ClipFiles:
    """Finds the media of clips. ``recipe`` is the one that the dataset was built with, ``versions`` what built it."""

    def __init__(self, folder: Folder, manifest: Manifest | None, recipe: Mapping[str, Any]) -> None:
        self.folder = folder
        self.renditions = [rendition.name for rendition in manifest.renditions] if manifest else []
        self._state = Folder(f"{folder.url.rstrip('/')}/{STATE}")
        self._versions = dict(manifest.versions) if manifest else None
        self._settings = _measure_settings(recipe)
        self._index = lru_cache(MAX_INDEXES)(self._read_index)
        self._lines = lru_cache(MAX_INDEXES)(self._read_lines)
        self._sources: dict[str, list[str]] | None = None
        self._told_of_index = False

    def member(self, place: ClipPlace, rendition: str, member: str) -> Part | None:
        """Where a member (``mp4``, ``flac``, ``json``) of a kept clip lies. None: not there, or its index cannot be read."""
        if place.shard is None or rendition not in self.renditions:
            return None
        path = f"{FOLDER}/{rendition}/{place.shard}"
        where = self._index(path).get(place.key, {}).get(member)
        return Part(path, int(where[0]), int(where[1])) if where else None

    def read(self, part: Part) -> bytes:
        """The bytes of a part. Raises OSError (FileNotFoundError where the tar is gone)."""
        with self.folder.open(part.path) as file:
            file.seek(part.offset)
            return file.read(part.num_bytes)

    def record(self, place: ClipPlace) -> dict[str, Any]:
        """``KEY.json`` of a kept clip; empty where it cannot be had."""
        part = self.member(place, self.renditions[0], "json") if self.renditions else None
        if part is None:
            return {}
        try:
            values = json.loads(self.read(part))
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s.json in %s cannot be read: %s", place.key, part.path, error)
            return {}
        return values if isinstance(values, dict) else {}

    def small_rendition(self, manifest: Manifest, short_side_px: int) -> str:
        """The smallest rendition that is as large as that, else the largest."""
        sizes = sorted((rendition.short_side_px or 10_000, rendition.name) for rendition in manifest.renditions)
        return next((name for size, name in sizes if size >= short_side_px), sizes[-1][1])

    def preview_frames(self, place: ClipPlace, num_frames: int) -> Frames | None:
        """Frames (H, W, 3) RGB that were kept of the clip when it was measured. None: they are gone."""
        if (found := self._preview(place)) is None:
            return None
        try:
            with self._state.open(f"{found[0]}.frames.npz") as file:
                return list(read_frames(file, [found[1]], num_frames)[0])
        except (OSError, ClipError) as error:
            _tell_of(place, error)
            return None

    def preview_sound(self, place: ClipPlace) -> npt.NDArray[np.float32] | None:
        """The clip's sound, mono, 44.1 kHz. None: it is gone."""
        if (found := self._preview(place)) is None:
            return None
        try:
            with self._state.open(f"{found[0]}.flac") as file:
                return read_sounds(file, [found[1]])[0]
        except (OSError, ClipError) as error:
            _tell_of(place, error)
            return None

    def has_frames(self, place: ClipPlace) -> bool:
        """Whether there is something to look at, as far as can be told without opening it."""
        if place.shard is not None and self.renditions and self.member(place, self.renditions[0], "mp4"):
            return True
        return self._has_preview(place, ".frames.npz")

    def has_sound(self, place: ClipPlace) -> bool:
        """Whether there is something to hear, as far as can be told without opening it."""
        if place.shard is not None and self.renditions and self.member(place, self.renditions[0], "flac"):
            return True
        return self._has_preview(place, ".flac")

    def _has_preview(self, place: ClipPlace, suffix: str) -> bool:
        found = self._preview(place)
        return found is not None and self._state.exists(f"{found[0]}{suffix}")

    def _preview(self, place: ClipPlace) -> tuple[str, tuple[float, float]] | None:
        """Path without ending in the state, and the clip's span in seconds of the file."""
        record = self._source_record(place.source_id)
        if record is None or self._settings is None or not record.get("content_sha256"):
            return None
        source, offset = record["source"], int(record.get("offset_ms") or 0)
        section = (max(source["start_ms"] - offset, 0), None if source["end_ms"] is None else source["end_ms"] - offset)
        key = measure_key(record["content_sha256"], section, *self._settings, versions=self._versions)
        span = ((place.start_ms - offset) / 1000, (place.end_ms - offset) / 1000)
        return f"previews/{key[:2]}/{key}", span

    def _source_record(self, source_id: str) -> dict[str, Any] | None:
        """What the state remembers of a source; of several recipes the last one that finished it."""
        if self._sources is None:
            self._sources = self._find_sources()
        for name in reversed(self._sources.get(source_id, [])):
            record = self._lines(name).get(source_id)
            if record is not None:
                return record
        return None

    def _find_sources(self) -> dict[str, list[str]]:
        """For each finished source the files that tell of it."""
        found: dict[str, list[str]] = {}
        for name in self._state.walk("done"):
            if not name.endswith(".jsonl"):
                continue
            try:
                with self._state.open(name) as file:
                    listed = json.loads(file.readline())["sources"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                logger.warning("%s/%s cannot be read: %s", self._state, name, error)
                continue
            for source_id in listed:
                found.setdefault(source_id, []).append(name)
        return found

    def _read_lines(self, name: str) -> dict[str, dict[str, Any]]:
        try:
            _, *lines = self._state.read_bytes(name).splitlines()
            records = [json.loads(line) for line in lines]
            return {record["source"]["source_id"]: record for record in records}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s/%s cannot be read: %s", self._state, name, error)
            return {}

    def _read_index(self, path: str) -> dict[str, dict[str, list[int]]]:
        try:
            summary = json.loads(self.folder.read_bytes(path.removesuffix(".tar") + ".index.json"))
            return {sample["key"]: sample["members"] for sample in summary["samples"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if not self._told_of_index:
                self._told_of_index = True  # where shards are elsewhere, none of thousands can be read
                logger.warning(
                    "the index of %s/%s cannot be read (%s): clips of such shards are shown without frames",
                    self.folder,
                    path,
                    error.strerror if isinstance(error, OSError) else error,
                )
            return {}


def _tell_of(place: ClipPlace, error: Exception) -> None:
    """Previews may be cleared away at any time, which is nothing to tell; damage is."""
    if not isinstance(error, FileNotFoundError):
        logger.warning("the previews of %s cannot be read: %s", place.key, error)


def _measure_settings(recipe: Mapping[str, Any]) -> tuple[SceneSettings, ClipSettings, MeasureSettings] | None:
    """The recipe's settings that name a measurement. None: it is of another version."""
    try:
        return (
            SceneSettings.model_validate_json(json.dumps(recipe["scenes"])),
            ClipSettings.model_validate_json(json.dumps(recipe["clips"])),
            MeasureSettings.model_validate_json(json.dumps(recipe["measure"])),
        )
    except (KeyError, TypeError, ValidationError):
        return None


def mono(content: bytes) -> npt.NDArray[np.float32]:
    """The sound of a FLAC as one channel. Raises soundfile.LibsndfileError."""
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return np.asarray(samples.mean(axis=1), np.float32)
