"""Checks that no source, video file, picture or sound is in two splits."""

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
    """For each check, the number of violations, and two clips of each of the first MAX_EXAMPLES.

    Near-duplicates are not checked: the build itself puts them in one split.
    """
    checks = []
    for column, what, title in _CHECKS:
        groups = (
            f"SELECT {column} AS shared, count(DISTINCT split) AS splits, min(key) AS first, max(key) AS last "
            f"FROM clips WHERE state = 'kept' AND {column} IS NOT NULL GROUP BY {column} HAVING splits > 1"
        )
        count = tables.one(f"SELECT count(*) AS num FROM ({groups})")["num"]
        examples = tables.rows(f"{groups} ORDER BY first LIMIT {MAX_EXAMPLES}") if count else []
        checks.append(
            {
                "check": column,
                "title": title,
                "what": what,
                "count": count,
                "examples": [[row["first"], row["last"]] for row in examples],
            }
        )
    return checks
