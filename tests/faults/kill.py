"""Kills builds at random times: ``python -m tests.faults.kill --rounds 50 --seed 1``.

Each round starts a build in its own process group and kills the group with SIGKILL, once or several times. The times are random within
the duration of an uninterrupted build. Then the build is run to its end. It must hold that

- the files of the dataset are byte for byte those of the uninterrupted build, except ``timings.jsonl``,
- the output folder has the same file names as that of the uninterrupted build, and the folder for temporary files is empty,
- no file that was finished before a kill is made again (it would have another inode), and no source that had a record is processed again
  (it would have other timings).

``--command`` runs ``python -m flows.build_dataset`` with its temporary server instead of the build alone, which is much slower.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, shots

PROJECT = Path(__file__).parents[2]
STARTED = "started"
"""Line that a child process prints when its imports are done."""
NOT_COMPARED = ("timings.jsonl", "report.html", "report.json", "README.md", "croissant.json")
"""Files of the output that differ between builds: they contain times, or the path of the folder."""
NOT_KEPT = ("samples.parquet", "embeddings.parquet", "ledger.jsonl", "manifest.json", *NOT_COMPARED, "state/lock")
"""Files of the output that every run writes again at its end."""
MAX_SECONDS = 300.0

RECIPE = """
name = "killed"
output = "{output}"
sources = ["{sources}"]
probe = {{ min_short_side_px = 64 }}
clips = {{ length_seconds = 2.0, min_seconds = 1.5 }}
shards = {{ max_samples = 3 }}
cut = {{ renditions = [{{ name = "96", short_side_px = 96 }}, {{ name = "48", short_side_px = 48 }}], preset = "ultrafast" }}
execution = {{ batch_size = 3, workers = 2, min_free_bytes = 0 }}
"""


@dataclass(slots=True)
class Findings:
    """The results of all rounds."""

    num_kills: int = 0
    num_too_late: int = 0
    """Kills after the build had ended."""
    num_finished: int = 0
    """Files that were finished at a kill, summed over all kills."""
    num_made_again: int = 0
    """Files that were finished at a kill, and were made again afterwards."""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Trial:
    """One output folder, and how it is built."""

    folder: Path
    sources: Path
    encoders: bool
    """Whether the clips are embedded."""
    command: bool
    """Whether the whole command runs, with its temporary server."""

    @property
    def output(self) -> Path:
        return self.folder / "killed"

    @property
    def temporary(self) -> Path:
        """Folder for the system's temporary files. Its path must be short, because sockets are made in it."""
        return self.folder / "tmp"

    def start(self) -> subprocess.Popen[str]:
        """Starts the build, or continues it. Returns when its imports are done; at once for the whole command."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        recipe = self.folder / "killed.toml"
        text = RECIPE.format(output=self.output, sources=self.sources)
        recipe.write_text(text + ("[encoders]\n" if self.encoders else ""))
        module = ["flows.build_dataset"] if self.command else ["tests.faults.kill", "--child"]
        process = subprocess.Popen(
            [sys.executable, "-m", *module, str(recipe)],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        if not self.command:
            for line in process.stdout:
                if line.strip() == STARTED:
                    break
        return process

    def finish(self) -> str:
        """Runs the build to its end. Returns a message if it failed, else an empty text."""
        process = self.start()
        output, _ = process.communicate(timeout=MAX_SECONDS)
        return "" if process.returncode == 0 else f"the build ended with {process.returncode}: {output[-2000:]}"


def write_videos(folder: Path) -> Path:
    """Writes six sources: four to keep, one without sound, one that is no media. Returns the path of their list."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {"a": [2.2, 2.4], "b": [4.3], "c": [2.1, 2.1, 2.1], "d": [3.0]}
    for seed, (name, seconds) in enumerate(lengths.items()):
        # each starts at another shot, so that no two look alike
        frames = list(shots([0.2] * seed + seconds, size=(160, 96)))[round(0.2 * seed * FPS) :]
        write_video(folder / f"{name}.mp4", frames, noise(sum(seconds), seed=seed), fps=FPS)
    write_video(folder / "deaf.mp4", shots([2.0], size=(160, 96)), None, fps=FPS)
    (folder / "text.mp4").write_text("This is no video.\n" * 30)
    rows = [json.dumps({"id": path.stem, "path": str(path)}) for path in sorted(folder.glob("*.mp4"))]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "list.jsonl"


def names_of(folder: Path) -> set[str]:
    """The names of all files below a folder, except the records of sources and batches, which depend on the interruptions."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not str(path.relative_to(folder)).startswith("state/done/")
    }


def contents(output: Path) -> dict[str, bytes]:
    """Name -> content of the dataset's files that are equal in all builds."""
    names = [name for name in names_of(output) if not name.startswith(("state/", *NOT_COMPARED))]
    return {name: (output / name).read_bytes() for name in sorted(names)}


def finished_files(output: Path) -> dict[str, int]:
    """Name -> inode of the files that need not be made again: stored results, complete cuts, shards with an index."""
    return dict(_iterate_finished(output))


def _iterate_finished(output: Path) -> Iterator[tuple[str, int]]:
    for name in sorted(names_of(output)) if output.is_dir() else ():
        path = output / name
        if (
            path.name.startswith(".")
            or name in NOT_KEPT
            or name.startswith(("state/tmp/", "state/downloads/", *NOT_COMPARED))
        ):
            continue
        if name.startswith("state/cuts/") and not (path.parent / "cut.json").exists():
            continue
        if name.startswith("state/previews/") and not _is_measured(output, path):
            continue
        if path.suffix == ".tar" and not path.with_suffix(".index.json").exists():
            continue
        yield name, path.stat().st_ino


def _is_measured(output: Path, preview: Path) -> bool:
    key = preview.name.partition(".")[0]
    return (output / "state" / "measured" / key[:2] / f"{key}.json").exists()


def recorded_timings(output: Path) -> dict[str, object]:
    """Source id -> timings in its record, for sources that have a record."""
    timings_by_source: dict[str, object] = {}
    for path in sorted((output / "state" / "done").rglob("*.json*")):
        lines = path.read_text().splitlines()
        for line in lines[1:] if path.suffix == ".jsonl" else lines:
            record = json.loads(line)
            timings_by_source[record["source"]["source_id"]] = record["timings"]
    return timings_by_source


def final_timings(output: Path) -> dict[str, object]:
    """Source id -> timings in ``timings.jsonl``."""
    lines = map(json.loads, (output / "timings.jsonl").read_text().splitlines())
    return {line.pop("source_id"): line for line in lines}


def left_over(trial: Trial, clean: Trial) -> list[str]:
    """A line for each file that the uninterrupted build has not left, or that is missing."""
    names, expected = names_of(trial.output), names_of(clean.output)
    extra = [f"left behind: {name}" for name in sorted(names - expected)]
    missing = [f"missing: {name}" for name in sorted(expected - names)]
    temporary = [f"left in the temporary folder: {name}" for name in sorted(_temporary(trial) - _temporary(clean))]
    return [*extra, *missing, *temporary]


def _temporary(trial: Trial) -> set[str]:
    return {str(path.relative_to(trial.temporary)) for path in trial.temporary.rglob("*")}


def kill_at(trial: Trial, seconds: float) -> bool:
    """Starts the build and kills its process group after so many seconds. Returns False if it had ended before."""
    process = trial.start()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=MAX_SECONDS)
        return True
    process.communicate(timeout=MAX_SECONDS)
    return False


def play_round(trial: Trial, kill_seconds: Sequence[float], clean: Trial, findings: Findings) -> None:
    """Starts the build and kills it after so many seconds, for each of ``kill_seconds``. Then runs it to its end, and compares."""
    finished: dict[str, int] = {}
    first_timings: dict[str, object] = {}
    for seconds in kill_seconds:
        was_running = kill_at(trial, seconds)
        findings.num_kills += 1
        findings.num_too_late += not was_running
        finished_now = finished_files(trial.output)
        findings.num_made_again += _compare_finished(finished, finished_now, findings)
        findings.num_finished += len(finished_now)
        finished, first_timings = finished_now, {**recorded_timings(trial.output), **first_timings}
    if problem := trial.finish():
        findings.problems.append(problem)
        return
    findings.num_made_again += _compare_finished(finished, finished_files(trial.output), findings)
    last_timings = final_timings(trial.output)
    repeated = [source_id for source_id, timings in first_timings.items() if last_timings[source_id] != timings]
    findings.problems += [f"source {source_id} was processed again" for source_id in repeated]
    expected, actual = contents(clean.output), contents(trial.output)
    differing = [name for name in sorted(expected.keys() | actual.keys()) if expected.get(name) != actual.get(name)]
    findings.problems += [f"differs: {name}" for name in differing]
    findings.problems += left_over(trial, clean)


def _compare_finished(before: dict[str, int], after: dict[str, int], findings: Findings) -> int:
    """Adds a problem for each file of ``before`` that has another inode in ``after``. Returns their number."""
    made_again = [name for name, inode in before.items() if after.get(name) != inode]
    findings.problems += [f"made again: {name}" for name in made_again]
    return len(made_again)


def run_rounds(
    folder: Path,
    rounds: int,
    seed: int,
    *,
    first: int = 0,
    encoders: bool = False,
    command: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Findings:
    """Runs an uninterrupted build, and then ``rounds`` rounds from number ``first`` on. ``report`` gets a line after each round."""
    sources = write_videos(folder / "videos")
    clean = Trial(folder / "clean", sources, encoders, command)
    process = clean.start()
    started = time.monotonic()
    output, _ = process.communicate(timeout=MAX_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"the uninterrupted build failed:\n{output}")
    clean_seconds = time.monotonic() - started
    rng = random.Random(seed)
    findings = Findings()
    for number in range(first + rounds):
        shares = [rng.random() for _ in range(rng.choice((1, 1, 2, 3)))]
        if number < first:
            continue
        kill_seconds = [clean_seconds * share for share in shares]
        num_before = len(findings.problems)
        play_round(Trial(folder / f"r{number:03d}", sources, encoders, command), kill_seconds, clean, findings)
        findings.problems[num_before:] = [f"round {number}: {problem}" for problem in findings.problems[num_before:]]
        report(f"round {number}: {len(kill_seconds)} kills, {len(findings.problems) - num_before} problems")
    return findings


def build(recipe: str) -> int:
    """Runs the build without a flow. Prints a line when the imports are done."""
    from pipeline.build.build import Build
    from pipeline.build.recipe import load_recipe
    from pipeline.events import ignore

    print(STARTED, flush=True)  # noqa: T201
    running = Build(load_recipe(recipe))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all rounds ended correctly, 1 the problems are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoders", action="store_true", help="also embed the clips")
    parser.add_argument("--command", action="store_true", help="run the whole command, with its temporary server")
    parser.add_argument("--keep", type=Path, help="folder for all outputs (default: a temporary one)")
    parser.add_argument("--child", metavar="RECIPE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        return build(options.child)
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        started = time.monotonic()
        folder = options.keep or Path(temporary)
        findings = run_rounds(
            folder,
            options.rounds,
            options.seed,
            first=options.first,
            encoders=options.encoders,
            command=options.command,
            report=lambda line: print(line, flush=True),  # noqa: T201
        )
        elapsed_seconds = time.monotonic() - started
    print(  # noqa: T201
        f"{options.rounds} rounds, seed {options.seed}, {elapsed_seconds:.0f} s, {findings.num_kills} kills ({findings.num_too_late} after "
        f"the end): {findings.num_finished} files were finished at the kills, {findings.num_made_again} of them made again; "
        f"{len(findings.problems)} problems"
    )
    for problem in findings.problems:
        print(problem)  # noqa: T201
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
