"""Runs the real build on local files, and reads the outcome of each file from the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.errors import NothingKeptError
from pipeline.events import ignore

RECIPE = """
name = "hostile"
output = "{output}"
sources = ["{sources}"]
probe = {{ min_short_side_px = 64 }}
clips = {{ length_seconds = 2.0, min_seconds = 1.5 }}
cut = {{ renditions = [{{ name = "64", short_side_px = 64 }}], preset = "ultrafast", timeout_seconds = 60.0 }}
dedup = {{ reject_duplicates = false }}
"""


def recipe_for(files: Sequence[Path], folder: Path, changes: Sequence[str] = ()) -> BuildRecipe:
    """A recipe for local files whose output is ``folder/hostile``. The id of a source is its index in ``files``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": f"s{number:05d}", "path": str(path)}) for number, path in enumerate(files)]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "hostile.toml").write_text(RECIPE.format(output=folder / "hostile", sources=folder / "list.jsonl"))
    return load_recipe(folder / "hostile.toml", changes)


def run_build(recipe: BuildRecipe) -> None:
    """Plans, runs every batch, and finishes. Does not raise if the build keeps no clip."""
    build = Build(recipe)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, ignore)
        build.finish(ignore)
    except NothingKeptError:
        pass
    finally:
        build.close()


def outcomes(files: Sequence[Path], output: Path) -> dict[str, list[str]]:
    """File name -> the outcome of each of its ledger entries: ``kept``, a reason, or the code of an error of the source or a clip.

    A correct ledger has one entry for each file.
    """
    outcomes_by_file: dict[str, list[str]] = {path.name: [] for path in files}
    for line in (output / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        failures = [entry["failure"], *(clip["failure"] for clip in entry["clips"])]
        codes = [failure["code"] for failure in failures if failure]
        outcome = codes[0] if codes else entry["reason"] or entry["state"]
        outcomes_by_file[files[int(entry["source_id"][1:])].name].append(outcome)
    return outcomes_by_file
