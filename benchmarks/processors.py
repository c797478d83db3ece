"""Shows what of a dataset depends on the processor: builds the demo's dataset as other processors would, and compares.

python -m benchmarks.processors                          every setting below
python -m benchmarks.processors --only "all of them"
python -m benchmarks.processors --compare A B            two datasets that are there already

A setting keeps libraries from instructions that this processor has. What has no such switch (ONNX Runtime, FFmpeg's decoders) runs
as always here; a dataset that another machine built shows that too, with --compare. That the painted sources are the same shows in
the column video_sha256.
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
class Built:
    """A dataset, and what its build printed."""

    folder: Path
    lines: list[str]


def build_demo(folder: Path, environment: dict[str, str], cores: Iterable[int]) -> Built:
    """The demo's dataset, from sources that are rendered anew. Exits where the build fails."""
    sources = f'["{folder}-sources/sources.csv"]'
    command = [sys.executable, "-m", "flows.demo", "--set", f'output="{folder}"', "--set", f"sources={sources}"]
    allowed = set(cores)
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return Built(folder, [line.replace(str(folder), "OUTPUT") for line in done.stdout.splitlines()])


def found_at(folder: Path) -> Built:
    return Built(folder, [])


def dataset_differences(first: Built, other: Built) -> list[str]:
    """What differs, a line each."""
    found = [f"printed {one!r}, not {two!r}" for one, two in zip(other.lines, first.lines, strict=False) if one != two]
    one, two = (pq.read_table(built.folder / "samples.parquet").to_pydict() for built in (first, other))
    if one["key"] != two["key"]:
        return [*found, f"the clips differ: {len(one['key'])} and {len(two['key'])}"]
    for name in one:
        changed = [(a, b) for a, b in zip(one[name], two[name], strict=True) if a != b]
        if changed:
            found.append(f"{name}: {len(changed)} of {len(one[name])} clips{_largest(changed)}")
    found += _embeddings(first.folder, other.folder)
    same, total = _equal_files(first.folder, other.folder)
    found.append(f"files equal byte for byte: {same} of {total}")
    return found


def _largest(changed: list[tuple[Any, Any]]) -> str:
    numbers = [(a, b) for a, b in changed if isinstance(a, float) and isinstance(b, float)]
    if not numbers:
        return f", as {changed[0][0]!r} and {changed[0][1]!r}"
    largest = max(numbers, key=lambda pair: abs(pair[0] - pair[1]))
    return f", by {abs(largest[0] - largest[1]):.2g} at most ({largest[0]:.6g} and {largest[1]:.6g})"


def _embeddings(first: Path, other: Path) -> list[str]:
    found = []
    one, two = (pq.read_table(folder / "embeddings.parquet") for folder in (first, other))
    for name in ("picture", "sound"):
        a, b = (np.stack(table[name].to_pylist()).astype(np.float64) for table in (one, two))
        if not np.array_equal(a, b):
            rows = int((a != b).any(1).sum())
            found.append(f"{name} embedding: {rows} of {len(a)} clips, a number by {np.abs(a - b).max():.2g} at most")
    return found


def _equal_files(first: Path, other: Path) -> tuple[int, int]:
    one, two = (_sums(folder) for folder in (first, other))
    return sum(two.get(name) == sum_ for name, sum_ in one.items()), len(one)


def _sums(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {record["path"]: record["sha256"] for record in [*manifest["shards"], *manifest["files"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", default=list(SETTINGS))
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FOLDER", help="two datasets of the demo's recipe")
    options = parser.parse_args()
    if options.compare:
        print("\n".join(dataset_differences(*map(found_at, options.compare))))
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
