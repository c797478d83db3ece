"""Counts of the dataset's clips by class, split, size, frame rate and source."""

from __future__ import annotations

from typing import Any

from pipeline.report.outcomes import Outcomes
from pipeline.report.tables import Tables

MAX_CLASSES = 300
MAX_SOURCES = 25


def hours(seconds: float | None) -> float:
    return round((seconds or 0.0) / 3600, 6)


def classes(tables: Tables) -> dict[str, Any]:
    """Clips of every class by state, split and reason. A clip with several labels counts in each."""
    by_label = (
        "SELECT unnest(CASE WHEN len(labels) = 0 THEN [''] ELSE labels END) AS label, * EXCLUDE labels FROM clips"
    )
    counted = tables.rows(
        f"SELECT label, count(*) FILTER (state = 'kept') AS kept, count(*) FILTER (state = 'rejected') AS rejected, "
        f"count(*) FILTER (state = 'failed') AS failed, sum(seconds) FILTER (state = 'kept') AS seconds, "
        f"count(DISTINCT source_id) FILTER (state = 'kept') AS sources FROM ({by_label}) GROUP BY label ORDER BY kept DESC, label "
        "LIMIT ?",
        [MAX_CLASSES],
    )
    num = tables.one(f"SELECT count(DISTINCT label) AS num FROM ({by_label})")["num"]
    parts = tables.rows(f"SELECT label, split, count(*) AS clips FROM ({by_label}) WHERE state = 'kept' GROUP BY ALL")
    why = tables.rows(
        f"SELECT label, reason, count(*) AS clips FROM ({by_label}) WHERE state = 'rejected' GROUP BY ALL"
    )
    shown: dict[str, dict[str, dict[str, int]]] = {row["label"]: {"splits": {}, "reasons": {}} for row in counted}
    for rows, name, key in ((parts, "splits", "split"), (why, "reasons", "reason")):
        for row in rows:
            if row["label"] in shown:
                shown[row["label"]][name][str(row[key])] = row["clips"]
    return {
        "num": num,
        "listed": [
            {
                "label": row["label"] or None,
                "kept": row["kept"],
                "rejected": row["rejected"],
                "failed": row["failed"],
                "hours": hours(row["seconds"]),
                "sources": row["sources"],
                **shown[row["label"]],
            }
            for row in counted
        ],
    }


def splits(tables: Tables) -> list[dict[str, Any]]:
    """Kept clips by split."""
    rows = tables.rows(
        "SELECT split, count(*) AS clips, sum(seconds) AS seconds, count(DISTINCT source_id) AS sources FROM clips "
        "WHERE state = 'kept' GROUP BY split ORDER BY clips DESC"
    )
    return [
        {"split": row["split"], "clips": row["clips"], "hours": hours(row["seconds"]), "sources": row["sources"]}
        for row in rows
    ]


def shapes(tables: Tables) -> dict[str, Any]:
    """Sizes and frame rates of the sources of measured clips, the commonest first."""
    size = "CAST(source_width_px AS VARCHAR) || 'x' || CAST(source_height_px AS VARCHAR)"
    counts = "count(*) AS clips, count(*) FILTER (state = 'kept') AS kept"
    return {
        "sizes": tables.rows(
            f"SELECT {size} AS size, {counts} FROM clips WHERE source_width_px IS NOT NULL GROUP BY ALL ORDER BY clips DESC, size LIMIT 20"
        ),
        "frame_rates": tables.rows(
            f"SELECT round(source_fps, 2) AS fps, {counts} FROM clips WHERE source_fps IS NOT NULL "
            "GROUP BY ALL ORDER BY clips DESC, fps LIMIT 20"
        ),
    }


def sources(tables: Tables, outcomes: Outcomes) -> dict[str, Any]:
    """The sources with most clips, how evenly clips are spread over sources, and the sources without any."""
    most = tables.rows(
        "SELECT source_id, any_value(url) AS url, count(*) FILTER (state = 'kept') AS kept, count(*) AS clips, "
        "sum(seconds) FILTER (state = 'kept') AS seconds FROM clips GROUP BY source_id HAVING kept > 0 "
        "ORDER BY kept DESC, source_id LIMIT ?",
        [MAX_SOURCES],
    )
    spread = tables.one(
        "SELECT count(*) AS sources, median(kept) AS median, max(kept) AS highest, "
        "sum(kept) FILTER (place <= greatest(1, CAST(ceil(0.1 * n) AS BIGINT))) AS of_top_tenth FROM "
        "(SELECT kept, row_number() OVER (ORDER BY kept DESC) AS place, count(*) OVER () AS n FROM "
        "(SELECT count(*) AS kept FROM clips WHERE state = 'kept' GROUP BY source_id))"
    )
    return {
        "most": [{**row, "hours": hours(row.pop("seconds"))} for row in most],
        "median_clips": spread["median"],
        "highest_clips": spread["highest"],
        "clips_of_top_tenth": int(spread["of_top_tenth"] or 0),
        "num_nothing": outcomes.num_nothing,
        "nothing": outcomes.nothing,
        "hosts": outcomes.host_list(),
    }
