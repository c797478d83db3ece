"""A built dataset's calibration, from its tables, and how it is shown and stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.calibration import Calibration, calibrate
from pipeline.agreement.pairs import ClipPool
from pipeline.dataset.manifest import Manifest, dataset_root, join, read_manifest, write_manifest
from pipeline.dataset.tables import BUILD_AGAIN, EMBEDDINGS_NAME, SAMPLES_NAME, read_table
from pipeline.errors import CalibrationError, ManifestError, UserError
from pipeline.judge.agreement_rule import ClassCalibration, pairs_needed
from pipeline.judge.rules import passes_other_rules
from pipeline.runtime.folder import Folder
from pipeline.runtime.remote_folder import read_folder
from pipeline.schema import Reason

SHOWN_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def calibrate_dataset(location: str, seed: int = 0) -> Calibration:
    """Calibrates on the clips of ``samples.parquet`` that pass all rules except that of agreement, with their rows of
    ``embeddings.parquet``. Of very many clips a part is drawn, so that memory does not grow with the dataset.

    Raises ManifestError if a table is missing or damaged, or if the two do not belong together; CalibrationError if the dataset has
    no embeddings, embeddings of several encoders or not finite ones, or too few clips.
    """
    manifest = read_manifest(location)
    if manifest.encoder_id is None:
        raise CalibrationError(
            f"{location} has no embeddings: its recipe names no encoders. Name some, and build it again"
        )
    folder = read_folder(dataset_root(location))
    chosen = _clips_to_calibrate_on(folder)
    picture, sound = _embeddings(folder, list(chosen), manifest.encoder_id)
    sources, labels = [source for source, _ in chosen.values()], [own for _, own in chosen.values()]
    return calibrate(picture, sound, sources, labels, manifest.encoder_id, seed)


def _clips_to_calibrate_on(folder: Folder) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Source and labels of the clips to calibrate on, by key."""
    pool = ClipPool()
    try:
        for batch in read_table(folder, SAMPLES_NAME, ["key", "source_id", "video_sha256", "labels", "reason"]):
            for row in batch.to_pylist():
                if passes_other_rules(row["reason"] and Reason(row["reason"])):
                    pool.add(row["key"], row["video_sha256"] or row["source_id"], row["labels"])
    except FileNotFoundError as error:
        raise ManifestError(
            f"{join(folder.url, SAMPLES_NAME)} cannot be read: it does not exist; {BUILD_AGAIN}"
        ) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise ManifestError(f"{join(folder.url, SAMPLES_NAME)} cannot be read: {error}; {BUILD_AGAIN}") from error
    return pool.clips()


def _embeddings(folder: Folder, keys: list[str], encoder_id: str) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Picture and sound embeddings (N, D) of the clips ``keys``, in their order."""
    name = join(folder.url, EMBEDDINGS_NAME)
    row_of = {key: row for row, key in enumerate(keys)}
    embeddings: dict[str, NDArray[np.float16]] = {}
    is_read = np.zeros(len(keys), bool)
    try:
        for batch in read_table(folder, EMBEDDINGS_NAME):
            others = set(batch["encoder_id"].to_pylist()) - {encoder_id}
            if others:
                raise CalibrationError(
                    f"{name} has embeddings of {', '.join(sorted(map(str, others)))}, the manifest names {encoder_id}: "
                    "build the dataset again with one pair of encoders"
                )
            keys_in_batch = batch["key"].to_pylist()
            batch_rows = [row for row, key in enumerate(keys_in_batch) if key in row_of]
            rows = [row_of[keys_in_batch[row]] for row in batch_rows]
            is_read[rows] = True
            for side in ("picture", "sound"):
                if batch[side].null_count:
                    raise ManifestError(f"{name} is damaged: a clip has no {side} embedding; {BUILD_AGAIN}")
                matrix = batch[side].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)[batch_rows]
                embeddings.setdefault(side, np.zeros((len(keys), matrix.shape[1]), np.float16))[rows] = matrix
                if not (finite := np.isfinite(matrix).all(axis=1)).all():
                    bad_key = keys[rows[int(finite.argmin())]]
                    raise CalibrationError(
                        f"{name}: the {side} embedding of clip {bad_key} is not finite; build the dataset again"
                    )
    except FileNotFoundError as error:
        raise ManifestError(f"{name} cannot be read: it does not exist; {BUILD_AGAIN}") from error
    if len({matrix.shape for matrix in embeddings.values()}) > 1:
        widths = " and ".join(f"{matrix.shape[1]} numbers for a {side}" for side, matrix in embeddings.items())
        raise ManifestError(f"{name} is damaged: its embeddings have {widths}, not the same number; {BUILD_AGAIN}")
    if not is_read.all():
        raise ManifestError(f"{name} has no row of clip {keys[int(is_read.argmin())]}: build the dataset again")
    none = np.zeros((0, 1), np.float16)
    return embeddings.get("picture", none), embeddings.get("sound", none)


def table(calibration: Calibration, *, per_class: bool = False) -> str:
    """The calibration as a table of text."""
    classes = (
        f"{calibration.num_classes} classes"
        if calibration.num_classes
        else "no labels: wrong pairs differ by source only"
    )
    left_out = (
        f"; {calibration.num_left_out:,} clips left out (embedding of length 0, or no label)"
        if calibration.num_left_out
        else ""
    )
    lines = [
        f"encoders     {calibration.encoder_id}",
        f"true pairs   {calibration.num_clips:,} clips of {calibration.num_sources:,} sources, {classes}{left_out}",
        f"wrong pairs  {calibration.num_wrong_pairs:,}, of which {calibration.num_independent_pairs:,} independent",
        f"AUC          {calibration.auc:.3f}  ({calibration.auc_low:.3f} to {calibration.auc_high:.3f})",
        "",
        "false accepts wanted     agreement                          true pairs kept       at this agreement, false accepts",
    ]
    for rate in SHOWN_RATES:
        if rate < calibration.points[0].false_accept_rate - 1e-9:
            lines.append(f"{100 * rate:>12g} %           needs {pairs_needed(rate)} independent wrong pairs")
            continue
        p = calibration.point(rate)
        lines.append(
            f"{100 * rate:>12g} %           {p.threshold:>7.4f}  ({p.threshold_low:.4f} to {p.threshold_high:.4f})"
            f"{100 * p.true_accept_rate:>9.1f} %  ({100 * p.true_accept_low:.1f} to {100 * p.true_accept_high:.1f})"
            f"{'':>5}{100 * p.false_accept_low:.1f} to {100 * p.false_accept_high:.1f} %"
        )
    lines += ["", "In parentheses: 95 % intervals, from resampled sources."]
    if per_class:
        lines += _class_lines(calibration)
    return "\n".join(lines)


def _class_lines(calibration: Calibration) -> list[str]:
    if not calibration.per_class:
        return ["No class has enough pairs for a threshold of its own."]
    lines = ["", f"{'class':<24}{'clips':>7}{'AUC':>8}   agreement for false accepts of 5, 10, 20 %"]
    for label, own in calibration.per_class.items():
        lines.append(f"{label:<24}{own.num_clips:>7}{own.auc:>8.3f}   {_class_thresholds(calibration, label, own)}")
    return lines


def _class_thresholds(calibration: Calibration, label: str, own: ClassCalibration) -> str:
    first = own.points[0].false_accept_rate
    return "  ".join(
        f"{calibration.threshold(rate, label):>7.4f}" if rate >= first - 1e-9 else "      -"
        for rate in (0.05, 0.1, 0.2)
    )


def store(calibration: Calibration, manifest: Manifest, location: str) -> str:
    """Writes the calibration into the dataset's manifest; returns the manifest's location."""
    folder = Folder(dataset_root(location))
    return write_manifest(manifest.model_copy(update={"calibration": calibration}), folder)
