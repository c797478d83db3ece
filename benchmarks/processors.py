"""Shows what in a dataset depends on the processor: builds the demo's dataset with fewer instructions, and compares.

python -m benchmarks.processors                          every setting below
python -m benchmarks.processors --only "all of them"
python -m benchmarks.processors --compare A B            two datasets that exist already

A setting forbids libraries to use instructions that this processor has. ONNX Runtime and FFmpeg's decoders have no such switch; to
compare them too, build on another machine and use --compare. Equal values of the column video_sha256 show that the painted sources are
the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

NUMPY = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}
OPENCV = {"OPENCV_CPU_DISABLE": "SSE4.1,SSE4.2,AVX,FP16,AVX2,AVX512-SKX", "OPENCV_IPP": "disabled"}
TORCH = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
BLAS = {"OPENBLAS_CORETYPE": "Nehalem"}
SETTINGS: dict[str, dict[str, str]] = {
    "again": {},
    "one core": {},
    "NumPy without AVX": NUMPY | BLAS,
    "OpenCV without SSE4 and IPP": OPENCV,
    "torch without AVX": TORCH,
    "all of them": NUMPY | BLAS | OPENCV | TORCH,
}


@dataclass(frozen=True, slots=True)
class BuiltDataset:
    """A dataset, and the lines that its build printed; none for a dataset that existed already."""

    folder: Path
    lines: list[str]


def build_demo(folder: Path, environment: dict[str, str], cores: Iterable[int]) -> BuiltDataset:
    """Builds the demo's dataset from newly rendered sources, on these cores. Raises SystemExit if the build fails."""
    sources = f'["{folder}-sources/sources.csv"]'
    command = [sys.executable, "-m", "flows.demo", "--set", f'output="{folder}"', "--set", f"sources={sources}"]
    allowed = set(cores)
    result = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}")
    return BuiltDataset(folder, [line.replace(str(folder), "OUTPUT") for line in result.stdout.splitlines()])


def dataset_differences(first: BuiltDataset, other: BuiltDataset) -> list[str]:
    """A line for each difference, and one for the number of equal files."""
    differences = [
        f"printed {other_line!r}, not {first_line!r}"
        for first_line, other_line in zip(first.lines, other.lines, strict=False)
        if first_line != other_line
    ]
    columns, other_columns = (pq.read_table(built.folder / "samples.parquet").to_pydict() for built in (first, other))
    if columns["key"] != other_columns["key"]:
        return [*differences, f"the clips differ: {len(columns['key'])} and {len(other_columns['key'])}"]
    for name in columns:
        changed = [(a, b) for a, b in zip(columns[name], other_columns[name], strict=True) if a != b]
        if changed:
            differences.append(f"{name}: {len(changed)} of {len(columns[name])} clips{_largest_change(changed)}")
    differences += _embedding_differences(first.folder, other.folder)
    num_equal, num_files = _equal_files(first.folder, other.folder)
    differences.append(f"files equal byte for byte: {num_equal} of {num_files}")
    return differences


def _largest_change(changed: list[tuple[Any, Any]]) -> str:
    """The largest difference of numbers, or the first pair of other values."""
    numbers = [(a, b) for a, b in changed if isinstance(a, float) and isinstance(b, float)]
    if not numbers:
        return f", such as {changed[0][0]!r} and {changed[0][1]!r}"
    largest = max(numbers, key=lambda pair: abs(pair[0] - pair[1]))
    return f", by at most {abs(largest[0] - largest[1]):.2g} ({largest[0]:.6g} and {largest[1]:.6g})"


def _embedding_differences(first: Path, other: Path) -> list[str]:
    differences = []
    table, other_table = (pq.read_table(folder / "embeddings.parquet") for folder in (first, other))
    for name in ("picture", "sound"):
        rows_ND, other_ND = (np.stack(part[name].to_pylist()).astype(np.float64) for part in (table, other_table))
        if not np.array_equal(rows_ND, other_ND):
            num_changed, largest = int((rows_ND != other_ND).any(1).sum()), np.abs(rows_ND - other_ND).max()
            differences.append(
                f"{name} embedding: {num_changed} of {len(rows_ND)} clips, a number by at most {largest:.2g}"
            )
    return differences


def _equal_files(first: Path, other: Path) -> tuple[int, int]:
    """The number of files with equal contents, and of all files of the first dataset."""
    checksums, other_checksums = (_checksums(folder) for folder in (first, other))
    return sum(other_checksums.get(name) == sha256 for name, sha256 in checksums.items()), len(checksums)


def _checksums(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that the manifest lists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {record["path"]: record["sha256"] for record in [*manifest["shards"], *manifest["files"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", default=list(SETTINGS))
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FOLDER", help="two datasets of the demo's recipe")
    options = parser.parse_args()
    if options.compare:
        first, other = (BuiltDataset(folder, []) for folder in options.compare)
        print("\n".join(dataset_differences(first, other)))
        return
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="hearscape-processors-") as name:
        first = build_demo(Path(name) / "demo" / "demo", {}, cores)
        for number, setting in enumerate(options.only):
            allowed = cores[:1] if setting == "one core" else cores
            other = build_demo(Path(name) / str(number) / "demo", SETTINGS[setting], allowed)
            print(f"{setting}\n" + "\n".join(f"  {line}" for line in dataset_differences(first, other)), flush=True)


if __name__ == "__main__":
    main()
