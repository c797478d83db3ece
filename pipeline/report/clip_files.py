"""Finds and reads the media of clips: a kept clip's in its tar, a rejected clip's in the previews of its source."""

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
"""How many indexes of shards, and how many files of finished sources, are cached in memory."""

Frames = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Part:
    """A range of bytes in a file; ``path`` is relative to the dataset's folder."""

    path: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ClipPlace:
    """The fields of a clip's row that lead to its media."""

    key: str
    source_id: str
    shard: str | None
    start_ms: int
    end_ms: int


class ClipFiles:
    """Finds the media of clips. ``recipe``: the one that the dataset was built with."""

    def __init__(self, folder: Folder, manifest: Manifest | None, recipe: Mapping[str, Any]) -> None:
        self.folder = folder
        self.renditions = [rendition.name for rendition in manifest.renditions] if manifest else []
        self._state = Folder(f"{folder.url.rstrip('/')}/{STATE}")
        self._versions = dict(manifest.versions) if manifest else None
        self._settings = _measure_settings(recipe)
        self._index = lru_cache(MAX_INDEXES)(self._read_index)
        self._lines = lru_cache(MAX_INDEXES)(self._read_lines)
        self._sources: dict[str, list[str]] | None = None
        self._has_warned_of_index = False

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
        """``KEY.json`` of a kept clip; empty, after a warning if damaged, where it cannot be read."""
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
        """The smallest rendition with at least that short side, else the largest."""
        sizes = sorted((rendition.short_side_px or 10_000, rendition.name) for rendition in manifest.renditions)
        return next((name for size, name in sizes if size >= short_side_px), sizes[-1][1])

    def preview_frames(self, place: ClipPlace, num_frames: int) -> Frames | None:
        """Frames (H, W, 3) uint8 RGB that were stored when the clip was measured. None: they were deleted."""
        if (preview := self._preview(place)) is None:
            return None
        try:
            with self._state.open(f"{preview[0]}.frames.npz") as file:
                return list(read_frames(file, [preview[1]], num_frames)[0])
        except (OSError, ClipError) as error:
            _warn_of_damage(place, error)
            return None

    def preview_sound(self, place: ClipPlace) -> npt.NDArray[np.float32] | None:
        """The clip's sound that was stored when it was measured, (N,) mono, 44.1 kHz. None: it was deleted."""
        if (preview := self._preview(place)) is None:
            return None
        try:
            with self._state.open(f"{preview[0]}.flac") as file:
                return read_sounds(file, [preview[1]])[0]
        except (OSError, ClipError) as error:
            _warn_of_damage(place, error)
            return None

    def has_frames(self, place: ClipPlace) -> bool:
        """Whether the clip's frames are there; the file is not opened."""
        if place.shard is not None and self.renditions and self.member(place, self.renditions[0], "mp4"):
            return True
        return self._has_preview(place, ".frames.npz")

    def has_sound(self, place: ClipPlace) -> bool:
        """Whether the clip's sound is there; the file is not opened."""
        if place.shard is not None and self.renditions and self.member(place, self.renditions[0], "flac"):
            return True
        return self._has_preview(place, ".flac")

    def _has_preview(self, place: ClipPlace, suffix: str) -> bool:
        preview = self._preview(place)
        return preview is not None and self._state.exists(f"{preview[0]}{suffix}")

    def _preview(self, place: ClipPlace) -> tuple[str, tuple[float, float]] | None:
        """Path of the previews without suffix, relative to the state folder, and (start, end) seconds in the file."""
        record = self._source_record(place.source_id)
        if record is None or self._settings is None or not record.get("content_sha256"):
            return None
        source, offset = record["source"], int(record.get("offset_ms") or 0)
        section = (max(source["start_ms"] - offset, 0), None if source["end_ms"] is None else source["end_ms"] - offset)
        key = measure_key(record["content_sha256"], section, *self._settings, versions=self._versions)
        span = ((place.start_ms - offset) / 1000, (place.end_ms - offset) / 1000)
        return f"previews/{key[:2]}/{key}", span

    def _source_record(self, source_id: str) -> dict[str, Any] | None:
        """The state's record of a source; where several recipes have finished it, the last one's."""
        if self._sources is None:
            self._sources = self._find_sources()
        for name in reversed(self._sources.get(source_id, [])):
            record = self._lines(name).get(source_id)
            if record is not None:
                return record
        return None

    def _find_sources(self) -> dict[str, list[str]]:
        """For each finished source, the files with a record of it."""
        files_of_source: dict[str, list[str]] = {}
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
                files_of_source.setdefault(source_id, []).append(name)
        return files_of_source

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
            if not self._has_warned_of_index:
                self._has_warned_of_index = True  # one warning is enough where the shards, maybe thousands, were moved
                logger.warning(
                    "the index of %s/%s cannot be read (%s): clips of such shards are shown without frames",
                    self.folder,
                    path,
                    error.strerror if isinstance(error, OSError) else error,
                )
            return {}


def _warn_of_damage(place: ClipPlace, error: Exception) -> None:
    """Logs a warning, unless the file is missing: previews may be deleted at any time."""
    if not isinstance(error, FileNotFoundError):
        logger.warning("the previews of %s cannot be read: %s", place.key, error)


def _measure_settings(recipe: Mapping[str, Any]) -> tuple[SceneSettings, ClipSettings, MeasureSettings] | None:
    """The recipe's settings that identify a measurement. None: another version of the program wrote them."""
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
