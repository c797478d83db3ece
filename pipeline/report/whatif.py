"""What-if: how many clips and hours would be kept at other thresholds; computed in the page, from one byte per clip and rule.

Each rule has a grid of thresholds (``steps``, with the build's own among them). Each clip has, for each rule, a number
``code`` from which follows at which steps it passes. The page compares these small integers, and its counts equal those
of :func:`pipeline.judge.rules.judge_clip` at the same thresholds.

    at_least:  passes at step k when steps[k] <= value, that is k <  code
    at_most:   passes at step k when value <= steps[k], that is k >= code

Shape suffixes: N clips, R rules.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.report.catalogue import ACROSS_DATASET, MEASURE_OF, RULES, Rule, Thresholds
from pipeline.report.tables import Tables

MAX_STEPS = 250
MAX_CLIPS = 150_000
"""Clips in the page. Of more, a random sample: counts for one changed threshold stay exact, for several they are estimated."""
MAX_LABELS = 300
_JUDGED = 0
"""The value of ``fate_N`` for clips whose measures decide."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The codes of all clips that were measured."""

    rules: tuple[Rule, ...]
    steps: tuple[tuple[float, ...], ...]
    """Thresholds of each rule, ascending."""
    now: tuple[int | None, ...]
    """The step of the build's own threshold. None: the rule is off."""
    codes_RN: Codes
    fate_N: npt.NDArray[np.uint8]
    """0: its measures decide. 1: rejected as a duplicate or by a cap, failed, or without sound; no threshold changes that."""
    agrees_N: npt.NDArray[np.bool_]
    """Whether a clip passes the build's own agreement threshold, which may differ by class."""
    label_N: npt.NDArray[np.uint16]
    labels: tuple[str, ...]
    millis_N: npt.NDArray[np.uint32]

    def stays(self, chosen: Sequence[int | None]) -> npt.NDArray[np.bool_]:
        """Which clips are kept at these steps (None: rule off), (N,). The agreement rule's own step keeps its thresholds by class."""
        stays: npt.NDArray[np.bool_] = self.fate_N == _JUDGED
        for index in range(len(self.rules)):
            stays &= self.passes(index, chosen[index])
        return stays

    def passes(self, index: int, step: int | None) -> npt.NDArray[np.bool_]:
        rule = self.rules[index]
        if rule.setting == "min_agreement" and step == self.now[index]:
            return self.agrees_N
        if step is None:
            return np.ones(len(self.fate_N), np.bool_)
        codes = self.codes_RN[index]
        passes: npt.NDArray[np.bool_] = step < codes if rule.side == "at_least" else step >= codes
        return passes


def what_if(tables: Tables, thresholds: Thresholds) -> WhatIf | None:
    """None where no recipe is known, or no clip was measured."""
    if not thresholds.values:
        return None
    names = [rule.measure for rule in RULES]
    marks = ", ".join(f"'{reason.value}'" for reason in ACROSS_DATASET)
    listed = ", ".join(f'"{name}"' for name in names)
    soundless = "covered_share IS NULL" if "covered_share" in tables.stored else "false"
    columns = tables.columns(
        f"SELECT {listed}, "
        f"CAST(state = 'failed' OR coalesce(reason, '') IN ({marks}) OR {soundless} AS UTINYINT) AS fate, "
        "CAST(end_ms - start_ms AS UINTEGER) AS millis, hash(labels) AS labels_id "
        "FROM clips WHERE luma_mean IS NOT NULL ORDER BY key"
    )
    if not len(columns["fate"]):
        return None
    kept_rules = [
        rule
        for rule in RULES
        if thresholds.values.get(rule.setting) is not None or np.isfinite(columns[rule.measure]).any()
    ]
    steps = tuple(_steps(columns[rule.measure], thresholds.values.get(rule.setting), rule) for rule in kept_rules)
    codes = [_codes(columns[rule.measure], grid, rule) for rule, grid in zip(kept_rules, steps, strict=True)]
    now = tuple(
        None if (limit := thresholds.values.get(rule.setting)) is None else grid.index(limit)
        for rule, grid in zip(kept_rules, steps, strict=True)
    )
    ids, which_N = np.unique(columns["labels_id"], return_inverse=True)
    of_id = {row["id"]: row["labels"] for row in tables.rows("SELECT DISTINCT hash(labels) AS id, labels FROM clips")}
    combined = [tuple(of_id[int(each)]) for each in ids]
    labels, label_N = _labels([each[0] if each else "" for each in combined], which_N)
    return WhatIf(
        tuple(kept_rules),
        steps,
        now,
        np.stack(codes),
        columns["fate"].astype(np.uint8),
        _agrees(columns["agreement"], combined, which_N, thresholds),
        label_N,
        labels,
        columns["millis"].astype(np.uint32),
    )


def _agrees(
    agreement_N: npt.NDArray[np.float64],
    combined: Sequence[tuple[str, ...]],
    which_N: npt.NDArray[np.int64],
    thresholds: Thresholds,
) -> npt.NDArray[np.bool_]:
    """Whether each clip passes the build's agreement threshold, (N,): the highest of its labels' own, else the overall one.

    ``combined``: the distinct sets of labels; ``which_N``: the index of each clip's set.
    """
    overall = thresholds.values.get("min_agreement")
    if overall is None:
        return np.ones(len(agreement_N), np.bool_)
    own = [[thresholds.per_class[label] for label in labels if label in thresholds.per_class] for labels in combined]
    limits = np.asarray([max(each, default=overall) for each in own])
    with np.errstate(invalid="ignore"):
        passes: npt.NDArray[np.bool_] = agreement_N >= limits[which_N]
    return passes


def _steps(values: npt.NDArray[np.float64], limit: float | None, rule: Rule) -> tuple[float, ...]:
    """Thresholds evenly over the range of values, at the quantiles of the clips, and finer around the build's own one."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if MEASURE_OF[rule.measure].unit == "share":
        low, high = 0.0, 1.0
    grid = {_nice(value) for value in np.linspace(low, high, 101)}
    if finite.size:
        grid |= {_nice(value) for value in np.quantile(finite, np.linspace(0, 1, 61))}  # where most clips are
    if limit is not None:
        reach = abs(limit) or (high - low) / 10 or 1.0
        near = np.linspace(limit - reach, limit + reach, 81)
        inside = [value for value in near if low - reach <= value <= high + reach and (low < 0 or value >= 0)]
        grid |= {_nice(value) for value in inside} - {_nice(limit)} | {limit}
    assert len(grid) <= MAX_STEPS, "a step must fit into a byte"
    return tuple(sorted(grid))


def _nice(value: float) -> float:
    return float(f"{value:.3g}") + 0.0  # -0.0 is 0.0


def _codes(values: npt.NDArray[np.float64], steps: Sequence[float], rule: Rule) -> Codes:
    missing = ~np.isfinite(values)
    codes = np.searchsorted(steps, np.where(missing, 0.0, values), "right" if rule.side == "at_least" else "left")
    codes[missing] = 0  # without a value, a clip never passes at_least and always passes at_most, as in the judge
    return codes.astype(np.uint8)


def _labels(first: Sequence[str], which_N: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], npt.NDArray[np.uint16]]:
    """The most frequent first labels, and each clip's index into them, (N,); all other labels share the last index."""
    names, of_set = np.unique(np.asarray(first, object).astype(str), return_inverse=True)
    name_N = of_set[which_N]
    order = np.argsort(-np.bincount(name_N, minlength=len(names)), kind="stable")[:MAX_LABELS]
    place = np.full(len(names), len(order), np.uint16)
    place[order] = np.arange(len(order))
    rest = ("(other classes)",) if len(names) > len(order) else ()
    return tuple(str(names[i]) or "(no label)" for i in order) + rest, place[name_N]


def for_page(result: WhatIf) -> dict[str, Any]:
    """Rules, steps, exact counts for one changed rule, and the clips' codes (base64 of gzipped arrays) for the page."""
    chosen = np.arange(len(result.fate_N))
    if len(chosen) > MAX_CLIPS:
        chosen = np.sort(np.random.default_rng(0).choice(len(chosen), MAX_CLIPS, replace=False))
    now = result.stays(result.now)
    packed = np.concatenate(
        [
            result.codes_RN[:, chosen].ravel(),
            result.fate_N[chosen],
            result.agrees_N[chosen].astype(np.uint8),
            np.ascontiguousarray(result.label_N[chosen].astype("<u2")).view(np.uint8),
            np.ascontiguousarray(result.millis_N[chosen].astype("<u4")).view(np.uint8),
        ]
    )
    return {
        "rules": [_rule_for_page(result, index) for index in range(len(result.rules))],
        "labels": list(result.labels),
        "num_clips": len(result.fate_N),
        "num_packed": len(chosen),
        "now": {"clips": int(now.sum()), "millis": int(result.millis_N[now].sum())},
        "packed": base64.b64encode(gzip.compress(packed.tobytes(), 6, mtime=0)).decode(),
    }


def _rule_for_page(result: WhatIf, index: int) -> dict[str, Any]:
    rule, steps = result.rules[index], result.steps[index]
    others = [result.now[i] for i in range(len(result.rules))]
    stays = result.fate_N == _JUDGED
    for i, step in enumerate(others):
        if i != index:
            stays &= result.passes(i, step)
    codes = result.codes_RN[index][stays].astype(np.int64)
    millis = result.millis_N[stays].astype(np.float64)
    clips_at = np.bincount(codes, minlength=len(steps) + 1)
    millis_at = np.bincount(codes, weights=millis, minlength=len(steps) + 1).astype(np.int64)
    if rule.side == "at_least":  # passes at k when code > k
        clips = clips_at[::-1].cumsum()[::-1][1 : len(steps) + 1]
        kept_millis = millis_at[::-1].cumsum()[::-1][1 : len(steps) + 1]
    else:  # passes at k when code <= k
        clips, kept_millis = clips_at.cumsum()[: len(steps)], millis_at.cumsum()[: len(steps)]
    measure = MEASURE_OF[rule.measure]
    return {
        "setting": rule.setting,
        "measure": rule.measure,
        "label": measure.label,
        "unit": measure.unit,
        "side": rule.side,
        "reason": rule.reason.value,
        "steps": list(steps),
        "now": result.now[index],
        "clips": clips.tolist(),
        "millis": kept_millis.tolist(),
        "off": {"clips": len(codes), "millis": int(millis.sum())},
        "by_class": bool(rule.setting == "min_agreement" and (result.agrees_N != _passes_now(result, index)).any()),
    }


def _passes_now(result: WhatIf, index: int) -> npt.NDArray[np.bool_]:
    step = result.now[index]
    return np.ones(len(result.fate_N), np.bool_) if step is None else step < result.codes_RN[index]
