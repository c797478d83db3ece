"""Whether splits share what they must not: the same source, the same video, the same picture or sound."""

from __future__ import annotations

from typing import Any

from pipeline.report.tables import Tables

MAX_EXAMPLES = 5
_CHECKS = (
    ("source_id", "sources", "The same source in two splits"),
    ("video_sha256", "videos", "The same video file in two splits"),
    ("picture_id", "fingerprints", "Clips with the very same picture fingerprint in two splits"),
    ("sound_id", "fingerprints", "Clips with the very same sound fingerprint in two splits"),
)


def leakage(tables: Tables) -> list[dict[str, Any]]:
    """For each check how many were found, and the clips of the first few. Near-duplicates are the build's own work: it
    keeps them in one split."""
    found = []
    for column, what, title in _CHECKS:
        groups = (
            f"SELECT {column} AS shared, count(DISTINCT split) AS splits, min(key) AS first, max(key) AS last "
            f"FROM clips WHERE state = 'kept' AND {column} IS NOT NULL GROUP BY {column} HAVING splits > 1"
        )
        count = tables.one(f"SELECT count(*) AS num FROM ({groups})")["num"]
        examples = tables.rows(f"{groups} ORDER BY first LIMIT {MAX_EXAMPLES}") if count else []
        found.append(
            {
                "check": column,
                "title": title,
                "what": what,
                "count": count,
                "examples": [[row["first"], row["last"]] for row in examples],
            }
        )
    return found
