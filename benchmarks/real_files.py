"""Builds a dataset from a folder of real, labelled files, and compares every verdict with the label.

python -m benchmarks.real_files FOLDER [--set a.b=c]

``FOLDER/index.csv`` has the columns path, kind (landscape, negative), class and audio_kind (natural, speech, music, silent, none,
unknown). The files are served on loopback, fetched by yt-dlp, and built by the flow. Landscapes with natural sound should be kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from pipeline.build.recipe import load_recipe
from pipeline.synthetic.serve import serve_folder

RECIPE = Path(__file__).with_name("real_files.toml")
PORT = 8766
KINDS = ("landscape", "negative")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    options = parser.parse_args()
    recipe = load_recipe(RECIPE, options.set)
    with (options.folder / "index.csv").open(newline="") as file:
        labels = [row for row in csv.DictReader(file) if row["kind"] in KINDS]
    source_list = Path(recipe.sources[0])
    source_list.parent.mkdir(parents=True, exist_ok=True)
    with serve_folder(options.folder, PORT) as url:
        rows = [
            {
                "id": _source_id(row["path"]),
                "url": url + quote(row["path"]),
                "label": row["class"],
                "licence": row.get("license", ""),
            }
            for row in labels
        ]
        source_list.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes = [word for change in options.set for word in ("--set", change)]
        result = subprocess.run([sys.executable, "-m", "flows.build_dataset", str(RECIPE), *changes], check=False)
    if result.returncode:
        return result.returncode
    entries = {
        entry["source_id"]: entry
        for entry in map(json.loads, (Path(recipe.output) / "ledger.jsonl").read_text().splitlines())
    }
    _compare(labels, entries)
    return 0


def _source_id(path: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in path)[-96:]


def _compare(labels: list[dict[str, str]], entries: dict[str, dict[str, object]]) -> None:
    tally: Counter[str] = Counter()
    for row in sorted(labels, key=lambda row: (row["kind"], row["class"], row["path"])):
        entry = entries[_source_id(row["path"])]
        should_keep = _should_keep(row)
        is_kept = entry["state"] == "kept"
        outcome = "as labelled" if should_keep is None or should_keep == is_kept else "DIFFERENT"
        expected = "either" if should_keep is None else "keep" if should_keep else "reject"
        tally[f"{expected}: {entry['state']}"] += 1
        print(f"{outcome:<12}{expected:<8}{entry['state']:<10}{row['audio_kind']:<9}{row['path']:<75}{_reason(entry)}")
    print("; ".join(f"{name} {count}" for name, count in sorted(tally.items())))


def _should_keep(row: dict[str, str]) -> bool | None:
    """Whether the file should be kept. None: unknown from its label."""
    if row["kind"] == "negative":
        return False
    return None if row["audio_kind"] == "unknown" else row["audio_kind"] == "natural"


def _reason(entry: dict[str, object]) -> str:
    """Why the source failed, or the counted reasons of its clips, or its own reason."""
    failure = entry.get("failure")
    if isinstance(failure, dict):
        return f"{failure['code']}: {failure['message']}"
    clips = entry["clips"]
    if isinstance(clips, list) and clips:
        counts = Counter(str(clip["reason"] or clip["state"]) for clip in clips)
        detail = next((clip["detail"] for clip in clips if clip["detail"]), "")
        return ", ".join(f"{count} {name}" for name, count in counts.items()) + (f" ({detail})" if detail else "")
    return f"{entry['reason']}: {entry['detail']}"


if __name__ == "__main__":
    sys.exit(main())
