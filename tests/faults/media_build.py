"""The real build over a folder of files, and what became of each."""

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
    """A recipe over local files whose output is ``folder/hostile``; the id of a source is its place in ``files``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": f"s{number:05d}", "path": str(path)}) for number, path in enumerate(files)]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "hostile.toml").write_text(RECIPE.format(output=folder / "hostile", sources=folder / "list.jsonl"))
    return load_recipe(folder / "hostile.toml", changes)


def run_build(recipe: BuildRecipe) -> None:
    """Plans, runs every batch, and finishes. A build that keeps nothing is fine here."""
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
    """For each file what its entries in the ledger say: ``kept``, a reason, or an error's code, clips' errors among them.

    One entry is what each must have.
    """
    found: dict[str, list[str]] = {path.name: [] for path in files}
    for line in (output / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        failures = [entry["failure"], *(clip["failure"] for clip in entry["clips"])]
        codes = [failure["code"] for failure in failures if failure]
        outcome = codes[0] if codes else entry["reason"] or entry["state"]
        found[files[int(entry["source_id"][1:])].name].append(outcome)
    return found
