"""Measures the cost of the report on a large dataset: ``python -m benchmarks.report [--clips 1000000]``.

Writes synthetic tables, embeddings and a manifest of that many clips (no media) to a temporary folder. Then it makes the report in a
process of its own, on two cores, and prints its time, its memory, and the size of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest import Counts, FileRecord, Manifest, Rendition, ShardRecord, write_manifest
from pipeline.dataset.tables import EMBEDDINGS_NAME, SAMPLES_NAME, samples_schema
from pipeline.judge.rules import JudgeSettings
from pipeline.report.catalogue import RULES
from pipeline.runtime.folder import Folder

GROUP = 50_000
"""Clips that are made at once."""
CLIPS_PER_SOURCE = 8
NUM_CLASSES = 200
EMBEDDING_WIDTH = 64
JUDGE = JudgeSettings(min_agreement=0.12)


def columns(first: int, num: int) -> dict[str, Any]:
    """Name -> values of the clips ``first`` to ``first + num``. As in real datasets, most shares are near 0, and other measures spread."""
    rng = np.random.default_rng(first)
    number = np.arange(first, first + num)
    source = number // CLIPS_PER_SOURCE
    start_ms = number % CLIPS_PER_SOURCE * 10_000
    ids = [f"video{i:08d}" for i in source.tolist()]

    def shares(spread: float) -> Any:
        """Values near 0; those of a share ``spread`` of the clips lie anywhere from 0 to 1."""
        return np.where(rng.random(num) < spread, rng.random(num), rng.random(num) * 0.005)

    values_of: dict[str, Any] = {
        "key": [f"{name}_{start:08d}_{start + 10_000:08d}" for name, start in zip(ids, start_ms.tolist(), strict=True)],
        "source_id": ids,
        "url": [f"https://example.org/watch?v={i:08d}" for i in source.tolist()],
        "labels": [[f"class {i % NUM_CLASSES}"] for i in source.tolist()],
        "caption": [f"a caption of some length, number {i}" for i in number.tolist()],
        "licence": ["CC-BY-4.0" if i % 3 else "CC0-1.0" for i in source.tolist()],
        "video_sha256": [f"{i:064x}" for i in source.tolist()],
        "scene_index": number % 5,
        "start_ms": start_ms,
        "end_ms": start_ms + 10_000,
        "source_width_px": np.full(num, 1920),
        "source_height_px": np.full(num, 1080),
        "source_fps": rng.choice([24.0, 25.0, 29.97, 30.0, 59.94], num),
        "num_frames": np.full(num, 250),
        "luma_mean": rng.uniform(10, 240, num),
        "luma_std": rng.gamma(8, 5, num),
        "black_share": shares(0.02),
        "white_share": shares(0.02),
        "motion": rng.gamma(2, 3, num),
        "still_share": shares(0.05),
        "sharpness": rng.lognormal(-5, 1, num),
        "bar_left_px": np.zeros(num, np.int64),
        "bar_top_px": rng.choice([0, 0, 0, 140], num),
        "bar_right_px": np.zeros(num, np.int64),
        "bar_bottom_px": np.zeros(num, np.int64),
        "picture_hash": [f"{value:016x}" * 4 for value in rng.integers(0, 2**62, num).tolist()],
        "loudness_lufs": rng.normal(-25, 8, num),
        "peak_dbfs": -rng.gamma(2, 3, num),
        "covered_share": 1 - shares(0.02),
        "silent_share": shares(0.05),
        "clipped_share": shares(0.02) * 0.1,
        "dc_offset": rng.gamma(1, 0.002, num),
        "dual_mono": rng.random(num) < 0.2,
        "speech_share": shares(0.15),
        "music_share": shares(0.1),
        "sound_hash": [f"{value:016x}" * 4 for value in rng.integers(0, 2**62, num).tolist()],
        "encoder_id": ["pair-1"] * num,
        "agreement": rng.normal(0.25, 0.1, num),
        "best_agreement": rng.normal(0.3, 0.1, num),
    }
    reasons = np.full(num, "", object)
    for rule in reversed(RULES):
        limit = getattr(JUDGE, rule.setting)
        if limit is not None and rule.measure in values_of:
            values = values_of[rule.measure]
            passes = values <= limit if rule.side == "at_most" else values >= limit
            reasons[~passes] = rule.reason.value
    kept = reasons == ""
    split = np.where(source % 10 == 0, "test", "train")
    return {
        **values_of,
        "state": np.where(kept, "kept", "rejected").tolist(),
        "reason": [r or None for r in reasons.tolist()],
        "detail": [""] * num,
        "split": [s if k else None for s, k in zip(split.tolist(), kept.tolist(), strict=True)],
        "shard": [f"{s}-000000.tar" if k else None for s, k in zip(split.tolist(), kept.tolist(), strict=True)],
    }


def batches(num_clips: int) -> Iterator[pa.Table]:
    schema = samples_schema()
    for first in range(0, num_clips, GROUP):
        values_of = columns(first, min(GROUP, num_clips - first))
        empty = [None] * len(values_of["key"])
        yield pa.table({name: values_of.get(name, empty) for name in schema.names}, schema=schema)


def write_random_embeddings(path: Path, keys: list[str]) -> None:
    """Writes narrow random embeddings in the format of a build."""
    vectors = pa.list_(pa.float16(), EMBEDDING_WIDTH)
    schema = pa.schema([("key", pa.string()), ("encoder_id", pa.string()), ("picture", vectors), ("sound", vectors)])
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, len(keys), GROUP):
            group = keys[first : first + GROUP]
            pictures = rng.standard_normal((len(group), EMBEDDING_WIDTH)).astype(np.float16)
            sounds = (0.4 * pictures + rng.standard_normal(pictures.shape)).astype(np.float16)
            both = [
                pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), EMBEDDING_WIDTH)
                for embeddings in (pictures, sounds)
            ]
            writer.write_table(
                pa.table([pa.array(group), pa.array(["pair-1"] * len(group)), *both], schema=schema),
                row_group_size=10_000,
            )


def make_dataset(folder: Folder, num_clips: int) -> None:
    """Writes the tables, ledger, timings, embeddings and manifest of a dataset without media."""
    assert folder.local_path is not None
    folder.local_path.mkdir(parents=True, exist_ok=True)
    states: dict[str, int] = {}
    reasons: dict[str, int] = {}
    kept_of_split: dict[str, int] = {}
    with (
        pq.ParquetWriter(folder.local_path / SAMPLES_NAME, samples_schema(), compression="zstd") as writer,
        (folder.local_path / "ledger.jsonl").open("w") as ledger,
        (folder.local_path / "timings.jsonl").open("w") as timings,
    ):
        for table in batches(num_clips):
            writer.write_table(table, row_group_size=10_000)
            rows = table.select(["key", "source_id", "url", "state", "reason", "split"]).to_pylist()
            for begin in range(0, len(rows), CLIPS_PER_SOURCE):
                source_rows = rows[begin : begin + CLIPS_PER_SOURCE]
                state = "kept" if any(row["state"] == "kept" for row in source_rows) else "rejected"
                clips = [
                    {"key": row["key"], "state": row["state"], "reason": row["reason"], "detail": "", "failure": None}
                    for row in source_rows
                ]
                entry = {
                    "source_id": source_rows[0]["source_id"],
                    "url": source_rows[0]["url"],
                    "state": state,
                    "reason": None if state == "kept" else "no_clip_kept",
                    "clips": clips,
                }
                ledger.write(json.dumps(entry) + "\n")
                timings.write(
                    json.dumps({"source_id": source_rows[0]["source_id"], "fetch": 2.0, "measure": 7.5, "cut": 20.0})
                    + "\n"
                )
                states[state] = states.get(state, 0) + 1
            for row in rows:
                if row["reason"]:
                    reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
                else:
                    kept_of_split[row["split"]] = kept_of_split.get(row["split"], 0) + 1
    write_random_embeddings(
        folder.local_path / EMBEDDINGS_NAME,
        pq.read_table(folder.local_path / SAMPLES_NAME, columns=["key"])["key"].to_pylist(),
    )
    num_kept = sum(kept_of_split.values())
    for split in kept_of_split:
        folder.write_json(f"shards/256/{split}-000000.index.json", {"samples": []})  # there are no media
    shards = [
        ShardRecord(
            path=f"shards/256/{split}-000000.tar",
            rendition="256",
            split=split,
            num_samples=num,
            num_bytes=num * 300_000,
            sha256="0" * 64,
        )
        for split, num in sorted(kept_of_split.items())
    ]
    size = (folder.local_path / SAMPLES_NAME).stat().st_size
    manifest = Manifest(
        name="large",
        recipe={"name": "large", "judge": JUDGE.model_dump(mode="json")},
        versions={"hearscape": "0.1.0"},
        encoder_id="pair-1",
        members=("flac", "json", "mp4"),
        renditions=(Rendition(name="256", short_side_px=256, video_codec="h264", sound_codec="aac"),),
        splits=tuple(sorted(kept_of_split)),
        shards=tuple(shards),
        files=(FileRecord(path=SAMPLES_NAME, num_rows=num_clips, num_bytes=size, sha256="0" * 64),),
        sources=Counts(states=states, reasons={"no_clip_kept": states["rejected"]} if states.get("rejected") else {}),
        clips=Counts(
            states={"kept": num_kept, "rejected": num_clips - num_kept}, reasons=reasons, splits=kept_of_split
        ),
    )
    write_manifest(manifest, folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000, help="clips of the synthetic dataset (%(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", help="make the dataset in this folder, and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hearscape-benchmark-") as scratch:
        folder = Folder(Path(options.keep or scratch) / "large")
        started = time.monotonic()
        make_dataset(folder, options.clips)
        print(f"made a table of {options.clips:,} clips in {time.monotonic() - started:.0f} s", flush=True)
        cores = sorted(os.sched_getaffinity(0))[:2]
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pipeline.report", folder.url],
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        elapsed_seconds, usage = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        page = Path(folder.url) / "report.html"
        print(
            f"report: {elapsed_seconds:.1f} s on {len(cores)} cores ({usage.ru_utime + usage.ru_stime:.1f} s of CPU), "
            f"at most {usage.ru_maxrss / 1e6:.2f} GB, page of {page.stat().st_size / 1e6:.1f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
