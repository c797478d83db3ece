"""Histograms of every measure over kept and over rejected clips, with the threshold between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.catalogue import MEASURES, RULES, Measure, Thresholds
from pipeline.report.tables import Tables

NUM_BINS = 40
_STATES = ("kept", "rejected")


def distributions(tables: Tables, thresholds: Thresholds) -> list[dict[str, Any]]:
    """One entry for every measure that any clip has, in the catalogue's order.

    ``edges``: NUM_BINS + 1 numbers; values outside of them are counted in the first or last bin. ``kept`` and
    ``rejected``: clips in each bin. ``missing``: clips without the measure.
    """
    rule_of = {rule.measure: rule for rule in RULES}
    entries = []
    for measure in MEASURES:
        limit, side = None, None
        if (rule := rule_of.get(measure.name)) is not None:
            limit, side = thresholds.values.get(rule.setting), rule.side
        entry = _distribution(tables, measure, limit)
        if entry is not None:
            setting = rule.setting if rule else None
            entries.append({**entry, "setting": setting, "side": side, "threshold": limit})
    return entries


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
    """The range of the bins: the values without the outermost 0.5 % on each side, and the threshold, with a margin.

    For shares it begins at 0, and ends at 1 if values or threshold are above 0.5, otherwise at twice the highest.
    """
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
    """Rounded to six digits, which are enough for a chart."""
    return float(f"{value:.6g}")
