"""Compares the agreement of matched pairs (picture and sound of one clip) and shuffled ones, from stored embeddings.

Shape suffixes: N clips, D width of the space.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.agreement.roc import auc
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.tables import EMBEDDINGS_NAME
from pipeline.report.catalogue import Thresholds
from pipeline.report.tables import Tables
from pipeline.runtime.folder import Folder

logger = logging.getLogger(__name__)

MAX_PAIRS = 20_000
MAX_GROUPS = 12
NUM_BINS = 48
MIN_PAIRS = 2
ROC_POINTS = 120

Vectors = npt.NDArray[np.float32]


def agreement_facts(
    folder: Folder, manifest: Manifest | None, tables: Tables, thresholds: Thresholds
) -> dict[str, Any] | None:
    """Histograms of matched and shuffled pairs, the ROC curve and its area; None where agreement was not measured.

    A shuffled pair is a picture with the sound of another source, and of another first label where there are labels. Above
    MAX_PAIRS clips, a sample of them is used. The manifest's calibration is included if it has one.
    """
    measured = tables.one("SELECT count(agreement) AS num FROM clips")["num"]
    if not measured:
        return None
    facts: dict[str, Any] = {
        "num_measured": measured,
        "threshold": thresholds.values.get("min_agreement"),
        "per_class": dict(thresholds.per_class),
        "origin": thresholds.origin,
        "by_class": _by_class(tables),
        "problem": None,
        "pairs": None,
        "calibration": _calibration(manifest),
    }
    try:
        pictures, sounds, sources, labels = _sample(folder, tables)
    except FileNotFoundError:
        return {**facts, "problem": f"{EMBEDDINGS_NAME} is missing: true pairs cannot be held against wrong ones."}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        logger.warning("%s/%s cannot be read: %s", folder, EMBEDDINGS_NAME, error)
        return {
            **facts,
            "problem": f"{EMBEDDINGS_NAME} cannot be read, it is damaged: {str(error).partition(chr(10))[0]}",
        }
    partners = wrong_partners(sources, labels)
    paired = np.flatnonzero(partners >= 0)
    if len(paired) < MIN_PAIRS:
        return {**facts, "problem": "Wrong pairs need clips of two sources and two classes."}
    matched = np.einsum("nd,nd->n", pictures, sounds)
    shuffled = np.einsum("nd,nd->n", pictures[paired], sounds[partners[paired]])
    facts["pairs"] = _pairs(matched, shuffled, thresholds.values.get("min_agreement"))
    return facts


def _sample(folder: Folder, tables: Tables) -> tuple[Vectors, Vectors, npt.NDArray[Any], npt.NDArray[Any]]:
    """Unit embeddings (N, D) of pictures and sounds, source ids (N,) and first labels (N,), in the order of the table."""
    keys: list[str] = []
    parts: list[list[Vectors]] = []
    with folder.open(EMBEDDINGS_NAME) as file, pq.ParquetFile(file) as table:
        for group, wanted in _chosen([table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]):
            if any(
                not pa.types.is_fixed_size_list(table.schema_arrow.field(name).type) for name in ("picture", "sound")
            ):
                raise ValueError("its columns picture and sound hold no vectors")
            some = table.read_row_group(group, ["key", "picture", "sound"]).take(wanted).combine_chunks()
            keys += some["key"].to_pylist()
            parts.append([_unit(some[name].combine_chunks()) for name in ("picture", "sound")])
    tables.attach("embedded", pa.table({"key": pa.array(keys, pa.string()), "place": list(range(len(keys)))}))
    rows = tables.columns(
        "SELECT place, source_id, coalesce(labels[1], '') AS label FROM embedded JOIN clips USING (key) ORDER BY place"
    )
    place = rows["place"].astype(np.int64)
    if not len(place):
        raise ValueError("none of its clips is in samples.parquet")
    pictures, sounds = (np.concatenate([part[i] for part in parts])[place] for i in (0, 1))
    if pictures.shape != sounds.shape:
        raise ValueError(f"pictures have {pictures.shape[1]} numbers, sounds {sounds.shape[1]}")
    has_direction = (np.abs(pictures).sum(axis=1) > 0) & (np.abs(sounds).sum(axis=1) > 0)
    return (
        pictures[has_direction],
        sounds[has_direction],
        rows["source_id"][has_direction],
        rows["label"][has_direction],
    )


def _chosen(num_rows: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Row groups and the rows to take of each, about MAX_PAIRS rows together.

    All rows of a small table; of a larger one some rows of MAX_GROUPS groups, so that the others need not be read.
    """
    groups = [group for group, num in enumerate(num_rows) if num]
    if sum(num_rows) > MAX_PAIRS:
        groups = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, MAX_GROUPS).astype(int))]
    num_available = sum(num_rows[group] for group in groups)
    rng = np.random.default_rng(0)
    for group in groups:
        num = num_rows[group]
        share = min(num, -(-num * MAX_PAIRS // num_available))
        yield group, np.sort(rng.choice(num, share, replace=False))


def _unit(column: pa.Array) -> Vectors:
    flat = column.flatten()
    rows = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), -1)
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def wrong_partners(sources: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each clip the index of one of another source and label, (N,), -1 where there is none.

    Random permutations are tried first, so that every clip is chosen about as often.
    """
    rng = np.random.default_rng(0)
    partners = np.full(len(sources), -1, np.int64)
    unmatched = np.arange(len(sources))
    for _ in range(30):
        if not len(unmatched):
            break
        candidates = rng.permutation(len(sources))[: len(unmatched)]
        fits = (sources[unmatched] != sources[candidates]) & (
            (labels[unmatched] != labels[candidates]) | (labels[unmatched] == "")
        )
        partners[unmatched[fits]] = candidates[fits]
        unmatched = unmatched[~fits]
    for index in unmatched:  # in a dataset that is almost all of one class
        others = np.flatnonzero((sources != sources[index]) & ((labels != labels[index]) | (labels[index] == "")))
        if len(others):
            partners[index] = rng.choice(others)
    return partners


def _pairs(matched: npt.NDArray[Any], shuffled: npt.NDArray[Any], threshold: float | None) -> dict[str, Any]:
    low = float(min(matched.min(), shuffled.min(), *([threshold] if threshold is not None else [])))
    high = float(max(matched.max(), shuffled.max(), *([threshold] if threshold is not None else [])))
    edges = np.linspace(low - 0.005, high + 0.005, NUM_BINS + 1)
    at = None
    if threshold is not None:
        at = {
            "true_accept_rate": float((matched >= threshold).mean()),
            "false_accept_rate": float((shuffled >= threshold).mean()),
        }
    return {
        "num_matched": len(matched),
        "num_shuffled": len(shuffled),
        "edges": [round(float(edge), 5) for edge in edges],
        "matched": np.histogram(matched, edges)[0].tolist(),
        "shuffled": np.histogram(shuffled, edges)[0].tolist(),
        "median_matched": round(float(np.median(matched)), 5),
        "median_shuffled": round(float(np.median(shuffled)), 5),
        "auc": round(auc(matched, shuffled), 5),
        "roc": roc_points(matched, shuffled),
        "at_threshold": at,
    }


def roc_points(matched: npt.NDArray[Any], shuffled: npt.NDArray[Any]) -> list[list[float]]:
    """[false-accept rate, true-accept rate, threshold] at quantiles of the shuffled cosines, from strict to lenient."""
    ranks = np.unique(np.concatenate([np.linspace(0, 1, ROC_POINTS), np.geomspace(1 / len(shuffled), 1, ROC_POINTS)]))
    points = []
    for threshold in np.unique(np.quantile(shuffled, 1 - ranks, method="higher"))[::-1]:
        points.append(
            [
                round(float((shuffled >= threshold).mean()), 5),
                round(float((matched >= threshold).mean()), 5),
                round(float(threshold), 5),
            ]
        )
    return points


def _by_class(tables: Tables) -> list[dict[str, Any]]:
    return tables.rows(
        "SELECT label, count(*) AS clips, round(median(agreement), 5) AS median, round(quantile_cont(agreement, 0.1), 5) AS low, "
        "round(quantile_cont(agreement, 0.9), 5) AS high FROM (SELECT unnest(labels) AS label, agreement FROM clips) "
        "WHERE agreement IS NOT NULL GROUP BY label ORDER BY clips DESC, label LIMIT 60"
    )


def _calibration(manifest: Manifest | None) -> dict[str, Any] | None:
    calibration = getattr(manifest, "calibration", None)
    if calibration is None:
        return None
    values: dict[str, Any] = calibration.model_dump(mode="json")
    names = ("encoder_id", "num_clips", "num_sources", "num_classes", "num_wrong_pairs", "auc", "auc_low", "auc_high")
    points = [
        {name: point[name] for name in ("false_accept_rate", "threshold", "true_accept_rate")}
        for point in values["points"]
    ]
    return {**{name: values.get(name) for name in names}, "points": points}
