"""The clips that the page shows: kept ones evenly over classes, the others evenly over reasons."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from pipeline.dataset.manifest import Manifest
from pipeline.report.catalogue import MEASURES
from pipeline.report.clip_files import ClipFiles, ClipPlace
from pipeline.report.looks import FRAME_SIZE, NUM_FRAMES, SPECTRUM_SIZE, spectrum_of, strip_of
from pipeline.report.tables import Tables
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

MEASURE_NAMES = tuple(measure.name for measure in MEASURES)
PLAIN = (
    "key",
    "source_id",
    "url",
    "labels",
    "caption",
    "licence",
    "split",
    "state",
    "reason",
    "detail",
    "start_ms",
    "end_ms",
    "scene_index",
    "shard",
    "shown_class",
    "heard_class",
)
MAX_TEXT = 400


class GallerySettings(Settings):
    """How much of the dataset the page shows."""

    max_clips: int = Field(400, ge=0)
    """Clips in the page; half of them kept ones, if there are enough of both kinds."""
    max_bytes: int = Field(8_000_000, ge=0)
    """Bytes of all frames and spectrograms together; further clips are shown without."""


def gallery(
    tables: Tables, files: ClipFiles, manifest: Manifest | None, settings: GallerySettings | None = None
) -> dict[str, Any]:
    """Rows for the page, each with ``strip`` and ``spectrum`` as data URIs, or null where the media are missing."""
    settings = settings or GallerySettings()
    total = tables.one("SELECT count(*) AS num FROM clips")["num"]
    rows = rows_of(tables, choose(tables, settings.max_clips))
    budget = settings.max_bytes
    for row in rows:
        place = clip_place(row)
        row["title"] = title_of(files.record(place)) if place.shard else None
        row["strip"] = row["spectrum"] = None
        if budget > 0:
            row["strip"] = _uri(strip_of(place, files, manifest))
            row["spectrum"] = _uri(spectrum_of(place, files))
            budget -= sum(len(row[name] or "") for name in ("strip", "spectrum"))
    return {
        "clips": rows,
        "num_clips": total,
        "measures": list(MEASURE_NAMES),
        "frame": {"width": FRAME_SIZE[0], "height": FRAME_SIZE[1], "count": NUM_FRAMES},
        "spectrum": {"width": SPECTRUM_SIZE[0], "height": SPECTRUM_SIZE[1]},
    }


def choose(tables: Tables, max_clips: int) -> list[str]:
    """Keys of the clips to show: kept ones evenly over first labels, the others evenly over reasons."""
    groups = {
        "kept": "SELECT key, coalesce(labels[1], '') AS part FROM clips WHERE state = 'kept'",
        "others": "SELECT key, coalesce(reason, state) AS part FROM clips WHERE state <> 'kept'",
    }
    counts = {name: tables.one(f"SELECT count(*) AS num FROM ({query})")["num"] for name, query in groups.items()}
    half = math.ceil(max_clips / 2)
    shares = {
        "kept": min(counts["kept"], max(half, max_clips - counts["others"])),
        "others": min(counts["others"], max(max_clips - half, max_clips - counts["kept"])),
    }
    places: list[tuple[float, str]] = []
    for name, query in groups.items():
        rows = tables.rows(
            "SELECT key FROM (SELECT key, part, row_number() OVER (PARTITION BY part ORDER BY hash(key), key) AS turn "
            f"FROM ({query})) ORDER BY turn, part LIMIT ?",
            [shares[name]],
        )
        places += [((place + 0.5) / len(rows), row["key"]) for place, row in enumerate(rows)]
    return [key for _, key in sorted(places)]  # the two groups evenly mixed


def rows_of(tables: Tables, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of these clips for the page, in that order: the fields of PLAIN, then ``values`` in the order of MEASURE_NAMES."""
    if not keys:
        return []
    columns = ", ".join(f'"{name}"' for name in (*PLAIN, *MEASURE_NAMES))
    marks = ", ".join("?" for _ in keys)
    rows = tables.rows(f"SELECT {columns} FROM clips WHERE key IN ({marks})", list(keys))
    by_key = {row["key"]: _for_page(row) for row in rows}
    return [by_key[key] for key in keys if key in by_key]


def _for_page(row: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        name: value[:MAX_TEXT] if isinstance(value := row[name], str) and name != "url" else value for name in PLAIN
    }
    numbers = [row[name] for name in MEASURE_NAMES]
    return {**plain, "values": [None if n is None else float(f"{n:.6g}") for n in numbers]}


def clip_place(row: Mapping[str, Any]) -> ClipPlace:
    return ClipPlace(row["key"], row["source_id"], row["shard"], row["start_ms"], row["end_ms"])


def title_of(record: Mapping[str, Any]) -> str | None:
    """The source's title, if the site gave one."""
    provenance = record.get("provenance")
    title = provenance.get("title") if isinstance(provenance, Mapping) else None
    return title[:MAX_TEXT] if isinstance(title, str) else None


def _uri(image: bytes | None) -> str | None:
    return None if image is None else f"data:image/webp;base64,{base64.b64encode(image).decode()}"
