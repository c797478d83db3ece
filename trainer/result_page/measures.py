"""The table of measures: what each means in plain words, its value with its interval, chance, and what real frames reach."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.proof.evaluation import ROWS

IN_WORDS = {
    "agreement_right": "How well the encoder finds a video to fit the sound that it was made of: 1 is a perfect fit, 0 none.",
    "agreement_wrong": "How well a video of another class's sound fits this sound. It should be low.",
    "agreement_silent": "How well a video of silence fits this sound. It should be low.",
    "right_minus_wrong": "How much better the right sound's video fits than the other's. Above 0: the sound decides the picture.",
    "right_minus_silent": "How much better the right sound's video fits than the video of silence.",
    "retrieval_at_1": "How often a video's own sound is the nearest of all held-out sounds.",
    "retrieval_at_5": "How often a video's own sound is among the nearest five.",
    "retrieval_class": "How often the sound nearest to a video is of the right class.",
    "class_accuracy": "How often the class seen in a video is that of its sound.",
    "change_in_time": "How much better each half of a video fits its own half of a sound that changes half-way. Above 0: it follows.",
    "half_distance_changed": "How far apart the two halves of the picture are when the sound changes half-way: 0 is the same picture.",
    "half_distance_unchanged": "How far apart they are when the sound stays.",
}
"""A sentence for each measure of ``ROWS``."""
NO_DIFFERENCE = ("right_minus_wrong", "right_minus_silent", "change_in_time")
"""Differences that are 0 for a model which ignores the sound."""


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure, as the table shows it. None: not known."""

    name: str
    title: str
    words: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    real: float | None


@dataclass(frozen=True, slots=True)
class PageMeasures:
    """What ``trainer.evaluate`` wrote, as far as it can be used."""

    rows: tuple[MeasureRow, ...]
    missing: tuple[str, ...]
    """Titles of measures that are not there."""
    verdict: str
    notes: tuple[str, ...]
    num_clips: float | None
    num_sources: float | None


def read_measures(path: Path) -> PageMeasures | str:
    """The measures in the JSON that ``trainer.evaluate`` wrote; or why there are none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{path.name}: {error.strerror or error}"
    except ValueError as error:
        return f"{path.name} is damaged: {error}"
    if not isinstance(result, dict) or not isinstance(result.get("measures"), dict):
        return f"{path.name} holds no measures"
    return measures_of(result)


def measures_of(result: Mapping[str, Any]) -> PageMeasures:
    """The table of a result of :func:`trainer.proof.evaluation.evaluate`."""
    measures = result["measures"]
    rows, missing = [], []
    for title, name, chance in ROWS:
        value = _number(measures, name)
        if value is None:
            missing.append(title)
            continue
        guessed = 0.0 if name in NO_DIFFERENCE else _number(measures, chance or "")
        low, high, real = (_number(measures, key) for key in (f"{name}_low", f"{name}_high", f"real_{name}"))
        rows.append(MeasureRow(name, title, IN_WORDS.get(name, ""), value, low, high, guessed, real))
    notes = []
    if result.get("measured_by_loss_encoder"):
        notes.append(
            "The encoder that measures was part of the losses in training, so it finds the fit better than it is. Trust your own eyes and "
            "ears more than these figures."
        )
    return PageMeasures(
        tuple(rows),
        tuple(missing),
        str(result.get("verdict", "")),
        tuple(notes),
        _number(measures, "num_clips"),
        _number(measures, "num_sources"),
    )


def _number(measures: Mapping[str, Any], name: str) -> float | None:
    value = measures.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
