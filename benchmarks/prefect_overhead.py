"""Measures the cost of Prefect in a build with many sources that an earlier run has finished, and one to build.

python -m benchmarks.prefect_overhead               1,000 finished sources, then 10,000
python -m benchmarks.prefect_overhead 10000 100000

Compares the command ``python -m flows.build_dataset`` (its own server on a new database, the flow, one batch, the tables) with the same
build without Prefect. The records of the earlier run are written here: every source but one was rejected because it has no sound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.processes import Cost, Peak, adopt_orphans, cost_of
from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.dataset.source_records import DoneRecords, SourceRecord
from pipeline.media.ffmpeg import probe
from pipeline.schema import Reason, State, stable_hash
from pipeline.sources.lists import read_source_lists
from pipeline.synthetic.catalogue import catalogue
from pipeline.synthetic.render import render

RECIPE = Path(__file__).with_name("build.toml")
FILM = "ocean_pier"
BUILT_ID = "built"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 10_000], help="numbers of finished sources")
    options = parser.parse_args()
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="hearscape-bench-") as name:
        work = Path(name)
        film = work / f"{FILM}.mp4"
        render(next(spec for spec in catalogue() if spec.name == FILM), film, scale=0.35)
        for count in options.counts:
            _report(count, film, work / str(count))


def _report(count: int, film: Path, work: Path) -> None:
    changes = _prepare(count, film, work)
    words = [str(RECIPE), *(word for change in changes for word in ("--set", change))]
    alone = _run(["benchmarks.build", "--child", *words], {})
    shutil.rmtree(work / "output")
    shutil.copytree(work / "prepared", work / "output")
    started = datetime.now(UTC)
    home = work / "prefect"
    flow = _run(["flows.build_dataset", *words], {"PREFECT_HOME": str(home)})
    times = {**_run_times(home / "prefect.db"), "end of the command": started.timestamp() + flow.cost.wall_seconds}
    print(f"{count} finished sources, and one to build")
    print(f"{'':<20}{'wall s':>9}{'CPU s':>9}{'MB, all processes':>20}{'MB, first process':>25}")
    for name, run in (("with Prefect", flow), ("without", alone)):
        print(_line(name, run.cost, f"{run.together_mb:>20.0f}{run.first_mb:>25.0f}"))
    difference = Cost(flow.cost.cpu_seconds - alone.cost.cpu_seconds, flow.cost.wall_seconds - alone.cost.wall_seconds)
    print(_line("Prefect", difference))
    print("seconds from the start of the command to:", end=" ")
    print(", ".join(f"{name} {instant - started.timestamp():.1f}" for name, instant in times.items()), flush=True)
    shutil.rmtree(work)


def _line(name: str, cost: Cost, rest: str = "") -> str:
    return f"{name:<20}{cost.wall_seconds:>9.1f}{cost.cpu_seconds:>9.1f}{rest}"


def _prepare(count: int, film: Path, work: Path) -> list[str]:
    """Writes an output with the records of ``count`` finished sources, and a copy of it. Returns the changes of the recipe."""
    work.mkdir()
    source_list = work / "sources.jsonl"
    rows = [{"id": f"s{number:06d}", "url": f"https://example.org/{number:06d}.mp4"} for number in range(count)]
    source_list.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": BUILT_ID, "path": str(film)}]))
    changes = [
        f'sources=["{source_list}"]',
        f'output="{work / "output"}"',
        "probe.min_short_side_px=200",
        "clips.length_seconds=4.0",
        'cut.renditions=[{name="128", short_side_px=128}]',
    ]
    recipe = load_recipe(RECIPE, changes)
    _finish(recipe, film)
    shutil.copytree(work / "output", work / "prepared")
    return changes


def _finish(recipe: BuildRecipe, film: Path) -> None:
    build = Build(recipe)
    records = DoneRecords(build.state, f"done/{recipe.per_source_hash()}")
    facts = probe(film)
    finished = [source for source in read_source_lists(recipe.sources).sources if source.source_id != BUILT_ID]
    size = recipe.execution.batch_size
    for start in range(0, len(finished), size):
        batch = finished[start : start + size]
        for source in batch:
            sha256 = stable_hash(source.source_id, length=64)
            records.put(SourceRecord(source, State.REJECTED, Reason.NO_AUDIO, content_sha256=sha256, facts=facts))
        records.close_batch(stable_hash(start), [source.source_id for source in batch])


@dataclass(frozen=True, slots=True)
class CommandCost:
    """The cost of a command, and the peak memory of all its processes together and of the first one."""

    cost: Cost
    together_mb: float
    first_mb: float


def _run(words: Sequence[str], variables: Mapping[str, str]) -> CommandCost:
    """Runs a module in a process of its own, without the Prefect variables of this process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    peaks: list[Peak] = []

    def work() -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env={**environment, **variables}, stdout=subprocess.DEVNULL
        )
        peaks.append(Peak(process))
        peaks[0].watch()

    cost = cost_of(work, own=False)
    return CommandCost(cost, peaks[0].together_mb, peaks[0].first_mb)


def _run_times(database: Path) -> dict[str, float]:
    """Start and end of the flow run and its only task run, in seconds since 1970."""
    connection = sqlite3.connect(database)
    try:
        ((flow_started, flow_ended),) = connection.execute("select start_time, end_time from flow_run").fetchall()
        ((task_started, task_ended),) = connection.execute("select start_time, end_time from task_run").fetchall()
    finally:
        connection.close()
    times = {
        "start of the flow run": flow_started,
        "start of the batch": task_started,
        "end of the batch": task_ended,
        "end of the flow run": flow_ended,
    }
    return {name: datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() for name, text in times.items()}


if __name__ == "__main__":
    main()
