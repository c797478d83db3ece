"""How every measure is distributed over kept and rejected clips, with the threshold that parted them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.catalogue import MEASURES, RULES, Measure, Thresholds
from pipeline.report.tables import Tables

NUM_BINS = 40
_STATES = ("kept", "rejected")


def distributions(tables: Tables, thresholds: Thresholds) -> list[dict[str, Any]]:
    """One entry for every measure that any clip has, in the catalogue's order.

    ``edges`` are NUM_BINS + 1 numbers; what lies beyond the outer ones is counted in the outer bins. ``kept`` and
    ``rejected`` are the clips in each bin, ``missing`` those without the measure.
    """
    rule_of = {rule.measure: rule for rule in RULES}
    found = []
    for measure in MEASURES:
        limit, side = None, None
        if (rule := rule_of.get(measure.name)) is not None:
            limit, side = thresholds.values.get(rule.setting), rule.side
        entry = _distribution(tables, measure, limit)
        if entry is not None:
            setting = rule.setting if rule else None
            found.append({**entry, "setting": setting, "side": side, "threshold": limit})
    return found


def _distribution(tables: Tables, measure: Measure, limit: float | None) -> dict[str, Any] | None:
    name = f'"{measure.name}"'
    ends = tables.one(
        f"SELECT min({name}) AS lowest, max({name}) AS highest, "
        f"quantile_cont({name}, 0.005) AS low, quantile_cont({name}, 0.995) AS high FROM clips WHERE state IN ('kept', 'rejected')"
    )
    if ends["lowest"] is None:
        return None
    low, high = _domain(measure, ends, limit)
    width = (high - low) / NUM_BINS
    counted = tables.rows(
        f"SELECT state, CASE WHEN {name} IS NOT NULL THEN greatest(0, least({NUM_BINS - 1}, CAST(floor(({name} - ?) / ?) AS BIGINT))) "
        "END AS bin, count(*) AS clips FROM clips WHERE state IN ('kept', 'rejected') GROUP BY ALL",
        [low, width],
    )
    bins = {state: [0] * NUM_BINS for state in _STATES}
    missing = dict.fromkeys(_STATES, 0)
    for row in counted:
        if row["bin"] is None:
            missing[row["state"]] += row["clips"]
        else:
            bins[row["state"]][row["bin"]] = row["clips"]
    quantiles = tables.rows(
        f"SELECT state, quantile_cont({name}, [0.05, 0.25, 0.5, 0.75, 0.95]) AS q FROM clips "
        f"WHERE state IN ('kept', 'rejected') AND {name} IS NOT NULL GROUP BY state"
    )
    return {
        "name": measure.name,
        "label": measure.label,
        "unit": measure.unit,
        "group": measure.group,
        "meaning": measure.meaning,
        "edges": [_short(float(edge)) for edge in np.linspace(low, high, NUM_BINS + 1)],
        **bins,
        "missing": missing,
        "lowest": _short(ends["lowest"]),
        "highest": _short(ends["highest"]),
        "quantiles": {row["state"]: [_short(value) for value in row["q"]] for row in quantiles},
    }


def _domain(measure: Measure, ends: dict[str, float], limit: float | None) -> tuple[float, float]:
    """What the bins cover: all of 0..1 for shares that use it, else what is not extreme, and the threshold with some room."""
    low, high = ends["low"], ends["high"]
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    if measure.unit == "share":
        low = 0.0
        high = 1.0 if high > 0.5 else min(1.0, 2 * high) or 1.0
    elif high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    elif limit is not None and limit in (low, high):
        room = (high - low) / 20
        low, high = (low - room if limit == low else low), (high + room if limit == high else high)
    return low, high


def _short(value: float) -> float:
    """Six digits are enough to draw."""
    return float(f"{value:.6g}")
