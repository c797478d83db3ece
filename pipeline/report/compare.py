"""Compares two builds: recipes, versions, counts, and the outcomes of clips that both have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.dataset.manifest import Manifest
from pipeline.report.tables import Tables

MAX_EXAMPLES = 3
MAX_FLIPS = 40
MAX_CLASSES = 60
_OUTCOME = "CASE WHEN state = 'rejected' THEN coalesce(reason, 'rejected') ELSE state END"


def compare(
    now: Tables, before: Tables, now_manifest: Manifest | None, before_manifest: Manifest | None, name_before: str
) -> dict[str, Any]:
    """The differences. Key, outcome and detail of the clips of ``before`` are copied into the database of ``now``."""
    _attach(now, before)
    joined = (
        f"SELECT coalesce(n.key, b.key) AS key, b.outcome AS before, n.outcome AS now, b.detail AS before_detail, "
        f"n.detail AS now_detail FROM (SELECT key, {_OUTCOME} AS outcome, coalesce(detail, '') AS detail FROM clips) n "
        "FULL JOIN clips_before b ON n.key = b.key"
    )
    totals = now.one(
        "SELECT count(*) FILTER (before = now) AS num_same, count(*) FILTER (before <> now) AS num_flipped, "
        f"count(*) FILTER (before IS NULL) AS num_only_now, count(*) FILTER (now IS NULL) AS num_only_before FROM ({joined})"
    )
    flips = now.rows(
        "SELECT before, now, count(*) AS count, "
        f"list({{key: key, before_detail: before_detail, now_detail: now_detail}} ORDER BY key)[1:{MAX_EXAMPLES}] AS examples "
        f"FROM ({joined}) WHERE before <> now GROUP BY before, now ORDER BY count DESC, before, now LIMIT {MAX_FLIPS}"
    )
    return {
        "other": name_before,
        **totals,
        "flips": flips,
        "recipe": recipe_changes(
            before_manifest.recipe if before_manifest else {}, now_manifest.recipe if now_manifest else {}
        ),
        "versions": [
            {"name": name, "before": old, "now": new}
            for name, old, new in _differing(
                before_manifest.versions if before_manifest else {}, now_manifest.versions if now_manifest else {}
            )
        ],
        "clips": _counts(now, before, "state", "true"),
        "reasons": _counts(now, before, "reason", "state = 'rejected'"),
        "classes": _counts(
            now, before, "label", "state = 'kept'", "(SELECT unnest(labels) AS label, state FROM clips)"
        )[:MAX_CLASSES],
    }


def recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, str]]:
    """Settings that differ, by dotted name, with both values as JSON; ``not there`` where a recipe lacks the setting."""
    return [{"setting": n, "before": old, "now": new} for n, old, new in _differing(_flat(before), _flat(now))]


def _attach(now: Tables, before: Tables) -> None:
    columns = before.columns(f"SELECT key, {_OUTCOME} AS outcome, coalesce(detail, '') AS detail FROM clips")
    now.attach("clips_before", pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))


def _counts(now: Tables, before: Tables, column: str, where: str, table: str = "clips") -> list[dict[str, Any]]:
    query = f"SELECT {column} AS name, count(*) AS clips FROM {table} WHERE {where} GROUP BY ALL"
    old, new = ({str(row["name"]): row["clips"] for row in tables.rows(query)} for tables in (before, now))
    names = sorted({*old, *new}, key=lambda name: (-new.get(name, 0), -old.get(name, 0), name))
    return [{"name": name, "before": old.get(name, 0), "now": new.get(name, 0)} for name in names]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return flat


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for name in sorted({*before, *now}):
        old, new = before.get(name, "not there"), now.get(name, "not there")
        if old != new:
            yield name, old, new
