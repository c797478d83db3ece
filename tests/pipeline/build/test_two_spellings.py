"""One file under several spellings of its path: what a clip says of its origin is its own row's, whichever was read first."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.events import ignore
from pipeline.synthetic.video import write_video
from tests.faults.kill import RECIPE, contents
from tests.footage import FPS, noise, shots


def build(output: Path, *lists: Sequence[dict[str, object]]) -> dict[str, bytes]:
    """Builds the dataset with each list in turn; returns its files."""
    sources, recipe = output.with_suffix(".jsonl"), output.with_suffix(".toml")
    recipe.write_text(RECIPE.format(output=output, sources=sources))
    for rows in lists:
        sources.write_text("".join(json.dumps(row) + "\n" for row in rows))
        running = Build(load_recipe(recipe))
        try:
            running.check()
            for batch in running.plan().batches:
                running.run_batch(batch, ignore)
            running.finish(ignore)
        finally:
            running.close()
    return contents(output)


def test_the_origin_of_a_clip_does_not_depend_on_which_row_was_read_first(tmp_path: Path) -> None:
    video = tmp_path / "x.mp4"
    write_video(video, shots([4.3], size=(160, 96)), noise(4.3), fps=FPS)
    first: dict[str, object] = {"id": "p", "path": str(video), "start": 0, "end": 2.1}
    second: dict[str, object] = {"id": "q", "url": f"file://{video}", "start": 2, "end": 4.2}
    at_once, one_by_one = build(tmp_path / "a", [first, second]), build(tmp_path / "b", [second], [first, second])
    differing = {name for name, content in at_once.items() if one_by_one[name] != content}
    assert differing <= {"ledger.jsonl", "manifest.json"}  # the names of the lists differ
    with tarfile.open(tmp_path / "b" / "shards" / "96" / "train-000000.tar") as tar:
        texts = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        told = {
            sample["source_id"]: sample["provenance"]["fetched_url"] for sample in map(json.load, filter(None, texts))
        }
    assert told == {"p": str(video), "q": f"file://{video}"}
