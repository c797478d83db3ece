"""What-if: how many clips and hours would be kept at other thresholds. The page computes it, from one byte per clip and rule.

Each rule has a grid of thresholds, its ``steps``, which include the build's own threshold. For each rule a clip has an integer, its
``code``, that determines at which steps the clip passes. The page compares these integers, and its counts equal those
of :func:`pipeline.judge.rules.judge_clip` at the same thresholds.

    at_least:  passes at step k when steps[k] <= value, that is k <  code
    at_most:   passes at step k when value <= steps[k], that is k >= code

Shape suffixes: N clips, R rules, L distinct sets of labels.
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
"""Clips in the page. Of more clips a random sample is used: counts for one changed threshold stay exact, for several they are
estimated."""
MAX_LABELS = 300
"""Labels in the page; all others are counted together."""
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
        """Which clips pass the rule ``index`` at this step (None: rule off), (N,)."""
        rule = self.rules[index]
        if rule.setting == "min_agreement" and step == self.now[index]:
            return self.agrees_N
        if step is None:
            return np.ones(len(self.fate_N), np.bool_)
        codes = self.codes_RN[index]
        passes: npt.NDArray[np.bool_] = step < codes if rule.side == "at_least" else step >= codes
        return passes


def what_if(tables: Tables, thresholds: Thresholds) -> WhatIf | None:
    """The codes of a dataset's clips. None if the recipe is not known, or no clip was measured."""
    if not thresholds.values:
        return None
    measures = ", ".join(f'"{rule.measure}"' for rule in RULES)
    reasons = ", ".join(f"'{reason.value}'" for reason in ACROSS_DATASET)
    is_soundless = "covered_share IS NULL" if "covered_share" in tables.stored else "false"
    columns = tables.columns(
        f"SELECT {measures}, "
        f"CAST(state = 'failed' OR coalesce(reason, '') IN ({reasons}) OR {is_soundless} AS UTINYINT) AS fate, "
        "CAST(end_ms - start_ms AS UINTEGER) AS millis, hash(labels) AS labels_id "
        "FROM clips WHERE luma_mean IS NOT NULL ORDER BY key"
    )
    if not len(columns["fate"]):
        return None
    rules = [
        rule
        for rule in RULES
        if thresholds.values.get(rule.setting) is not None or np.isfinite(columns[rule.measure]).any()
    ]
    steps = tuple(_steps(columns[rule.measure], thresholds.values.get(rule.setting), rule) for rule in rules)
    codes = [_codes(columns[rule.measure], grid, rule) for rule, grid in zip(rules, steps, strict=True)]
    now = tuple(
        None if (limit := thresholds.values.get(rule.setting)) is None else grid.index(limit)
        for rule, grid in zip(rules, steps, strict=True)
    )
    ids_L, set_N = np.unique(columns["labels_id"], return_inverse=True)
    labels_by_id = {
        row["id"]: row["labels"] for row in tables.rows("SELECT DISTINCT hash(labels) AS id, labels FROM clips")
    }
    label_sets_L = [tuple(labels_by_id[int(labels_id)]) for labels_id in ids_L]
    labels, label_N = _labels([label_set[0] if label_set else "" for label_set in label_sets_L], set_N)
    return WhatIf(
        tuple(rules),
        steps,
        now,
        np.stack(codes),
        columns["fate"].astype(np.uint8),
        _agrees(columns["agreement"], label_sets_L, set_N, thresholds),
        label_N,
        labels,
        columns["millis"].astype(np.uint32),
    )


def _agrees(
    agreement_N: npt.NDArray[np.float64],
    label_sets_L: Sequence[tuple[str, ...]],
    set_N: npt.NDArray[np.int64],
    thresholds: Thresholds,
) -> npt.NDArray[np.bool_]:
    """Whether each clip passes the build's agreement threshold, (N,): the highest one of its labels, else the overall one.

    ``label_sets_L``: the distinct sets of labels; ``set_N``: the index of each clip's set.
    """
    overall = thresholds.values.get("min_agreement")
    if overall is None:
        return np.ones(len(agreement_N), np.bool_)
    limits_L = np.asarray(
        [
            max((thresholds.per_class[label] for label in labels if label in thresholds.per_class), default=overall)
            for labels in label_sets_L
        ]
    )
    with np.errstate(invalid="ignore"):
        passes: npt.NDArray[np.bool_] = agreement_N >= limits_L[set_N]
    return passes


def _steps(values: npt.NDArray[np.float64], limit: float | None, rule: Rule) -> tuple[float, ...]:
    """Thresholds: evenly spaced over the range of values, at the quantiles of the clips, and closely spaced around the build's own."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if MEASURE_OF[rule.measure].unit == "share":
        low, high = 0.0, 1.0
    grid = {_nice(value) for value in np.linspace(low, high, 101)}
    if finite.size:
        grid |= {_nice(value) for value in np.quantile(finite, np.linspace(0, 1, 61))}  # where most clips are
    if limit is not None:
        reach = abs(limit) or (high - low) / 10 or 1.0
        around_limit = np.linspace(limit - reach, limit + reach, 81)
        in_range = [value for value in around_limit if low - reach <= value <= high + reach and (low < 0 or value >= 0)]
        grid |= {_nice(value) for value in in_range} - {_nice(limit)} | {limit}
    assert len(grid) <= MAX_STEPS, "a step must fit into a byte"
    return tuple(sorted(grid))


def _nice(value: float) -> float:
    """The value with three digits."""
    return float(f"{value:.3g}") + 0.0  # -0.0 is 0.0


def _codes(values: npt.NDArray[np.float64], steps: Sequence[float], rule: Rule) -> Codes:
    """The code of each clip for one rule, (N,): see the top of this file."""
    missing = ~np.isfinite(values)
    codes = np.searchsorted(steps, np.where(missing, 0.0, values), "right" if rule.side == "at_least" else "left")
    codes[missing] = 0  # without a value, a clip never passes at_least and always passes at_most, as in the judge
    return codes.astype(np.uint8)


def _labels(
    first_labels_L: Sequence[str], set_N: npt.NDArray[np.int64]
) -> tuple[tuple[str, ...], npt.NDArray[np.uint16]]:
    """The most frequent first labels, and each clip's index into them, (N,); all other labels share the last index."""
    names, name_L = np.unique(np.asarray(first_labels_L, object).astype(str), return_inverse=True)
    name_N = name_L[set_N]
    most_frequent = np.argsort(-np.bincount(name_N, minlength=len(names)), kind="stable")[:MAX_LABELS]
    index_of_name = np.full(len(names), len(most_frequent), np.uint16)
    index_of_name[most_frequent] = np.arange(len(most_frequent))
    others = ("(other classes)",) if len(names) > len(most_frequent) else ()
    return tuple(str(names[i]) or "(no label)" for i in most_frequent) + others, index_of_name[name_N]


def for_page(result: WhatIf) -> dict[str, Any]:
    """Rules, steps, exact counts for one changed rule, and the clips' codes (base64 of gzipped arrays) for the page."""
    clips = np.arange(len(result.fate_N))
    if len(clips) > MAX_CLIPS:
        clips = np.sort(np.random.default_rng(0).choice(len(clips), MAX_CLIPS, replace=False))
    stays_now_N = result.stays(result.now)
    packed = np.concatenate(
        [
            result.codes_RN[:, clips].ravel(),
            result.fate_N[clips],
            result.agrees_N[clips].astype(np.uint8),
            np.ascontiguousarray(result.label_N[clips].astype("<u2")).view(np.uint8),
            np.ascontiguousarray(result.millis_N[clips].astype("<u4")).view(np.uint8),
        ]
    )
    return {
        "rules": [_rule_for_page(result, index) for index in range(len(result.rules))],
        "labels": list(result.labels),
        "num_clips": len(result.fate_N),
        "num_packed": len(clips),
        "now": {"clips": int(stays_now_N.sum()), "millis": int(result.millis_N[stays_now_N].sum())},
        "packed": base64.b64encode(gzip.compress(packed.tobytes(), 6, mtime=0)).decode(),
    }


def _rule_for_page(result: WhatIf, index: int) -> dict[str, Any]:
    """A rule, and how many clips and milliseconds are kept at each of its steps while all other rules stay as they are."""
    rule, steps = result.rules[index], result.steps[index]
    passes_others_N = result.fate_N == _JUDGED
    for other, step in enumerate(result.now):
        if other != index:
            passes_others_N &= result.passes(other, step)
    codes = result.codes_RN[index][passes_others_N].astype(np.int64)
    millis = result.millis_N[passes_others_N].astype(np.float64)
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
    """Which clips pass the overall threshold of an ``at_least`` rule, (N,), without thresholds by class."""
    step = result.now[index]
    return np.ones(len(result.fate_N), np.bool_) if step is None else step < result.codes_RN[index]
