"""Builds that are killed at any moment: ``python -m tests.faults.kill --rounds 50 --seed 1``.

Each round begins a build in a process group of its own, kills the group with SIGKILL, once or more often, at moments that the seed
draws from the time that an uninterrupted build takes, and then lets it come to its end. What must hold:

- the files of the dataset are byte for byte those of the uninterrupted build (``timings.jsonl`` apart),
- the output folder holds the same names as that of the uninterrupted build, and the folder for temporary files holds none,
- no file that was finished when the kill came was made again (its inode would be another one), no source that had its record was
  carried to its end again (its timings would be others).

``--command`` runs ``python -m flows.build_dataset``, with its temporary server, in place of the build alone: slower by far.
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
BEGUN = "begun"
NOT_COMPARED = ("timings.jsonl", "report.html", "report.json", "README.md", "croissant.json")
"""In the output: seconds differ from run to run, and the report names its folder."""
NOT_KEPT = ("samples.parquet", "embeddings.parquet", "ledger.jsonl", "manifest.json", *NOT_COMPARED, "state/lock")
"""In the output: written at each end, from what was finished."""
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
    """What became of all rounds."""

    num_kills: int = 0
    num_killed_after: int = 0
    """Kills that came too late: the build had ended."""
    num_finished: int = 0
    """Files that were finished when a kill came, over all kills."""
    num_made_again: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Trial:
    """One output folder and the command that builds it."""

    folder: Path
    sources: Path
    encoders: bool
    command: bool

    @property
    def output(self) -> Path:
        return self.folder / "killed"

    @property
    def temporary(self) -> Path:
        """For the system's temporary files. Its path must be short: sockets lie there."""
        return self.folder / "tmp"

    def start(self) -> subprocess.Popen[str]:
        """Begins the build, or goes on with it; returns when it is past its imports."""
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
                if line.strip() == BEGUN:
                    break
        return process

    def finish(self) -> str:
        """Lets the build come to its end. Returns what is wrong, or nothing."""
        process = self.start()
        said, _ = process.communicate(timeout=MAX_SECONDS)
        return "" if process.returncode == 0 else f"the build ended with {process.returncode}: {said[-2000:]}"


def write_videos(folder: Path) -> Path:
    """Six sources: four to keep, one without sound, one that is no media. Returns their list."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {"a": [2.2, 2.4], "b": [4.3], "c": [2.1, 2.1, 2.1], "d": [3.0]}
    for seed, (name, seconds) in enumerate(lengths.items()):
        # not from the first shot on, or all would look alike
        frames = list(shots([0.2] * seed + seconds, size=(160, 96)))[round(0.2 * seed * FPS) :]
        write_video(folder / f"{name}.mp4", frames, noise(sum(seconds), seed=seed), fps=FPS)
    write_video(folder / "deaf.mp4", shots([2.0], size=(160, 96)), None, fps=FPS)
    (folder / "text.mp4").write_text("This is no video.\n" * 30)
    rows = [json.dumps({"id": path.stem, "path": str(path)}) for path in sorted(folder.glob("*.mp4"))]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "list.jsonl"


def names_of(folder: Path) -> set[str]:
    """All files below, but for the records of single sources and of batches: which of them there are depends on the interruptions."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not str(path.relative_to(folder)).startswith("state/done/")
    }


def contents(output: Path) -> dict[str, bytes]:
    """The files of the dataset that every build must give alike."""
    names = [name for name in names_of(output) if not name.startswith(("state/", *NOT_COMPARED))]
    return {name: (output / name).read_bytes() for name in sorted(names)}


def finished_files(output: Path) -> dict[str, int]:
    """What need not be made again, with its inode: kept results, whole cuts, shards with their index."""
    return dict(_finished(output))


def _finished(output: Path) -> Iterator[tuple[str, int]]:
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


def recorded(output: Path) -> dict[str, object]:
    """The timings of each source that has its record, as they stand in it."""
    found: dict[str, object] = {}
    for path in sorted((output / "state" / "done").rglob("*.json*")):
        lines = path.read_text().splitlines()
        for line in lines[1:] if path.suffix == ".jsonl" else lines:
            record = json.loads(line)
            found[record["source"]["source_id"]] = record["timings"]
    return found


def timings(output: Path) -> dict[str, object]:
    lines = map(json.loads, (output / "timings.jsonl").read_text().splitlines())
    return {line.pop("source_id"): line for line in lines}


def left_over(trial: Trial, clean: Trial) -> list[str]:
    """Files that the uninterrupted build does not leave, and those that are missing."""
    found, wanted = names_of(trial.output), names_of(clean.output)
    extra = [f"left behind: {name}" for name in sorted(found - wanted)]
    missing = [f"missing: {name}" for name in sorted(wanted - found)]
    now, then = ({str(path.relative_to(one.temporary)) for path in one.temporary.rglob("*")} for one in (trial, clean))
    temporary = [f"left in the temporary folder: {name}" for name in sorted(now - then)]
    return [*extra, *missing, *temporary]


def kill_at(trial: Trial, seconds: float) -> bool:
    """Begins the build and kills its whole process group. Returns whether it was still at work."""
    process = trial.start()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=MAX_SECONDS)
        return True
    process.communicate(timeout=MAX_SECONDS)
    return False


def play_round(trial: Trial, moments: Sequence[float], clean: Trial, findings: Findings) -> None:
    """Kills the build at each of the moments (seconds from its beginning), lets it end, and compares."""
    kept: dict[str, int] = {}
    told: dict[str, object] = {}
    for seconds in moments:
        was_alive = kill_at(trial, seconds)
        findings.num_kills += 1
        findings.num_killed_after += not was_alive
        now = finished_files(trial.output)
        findings.num_made_again += _compare_finished(kept, now, findings)
        findings.num_finished += len(now)
        kept, told = now, {**recorded(trial.output), **told}
    if problem := trial.finish():
        findings.problems.append(problem)
        return
    findings.num_made_again += _compare_finished(kept, finished_files(trial.output), findings)
    ended = timings(trial.output)
    findings.problems += [f"source {name} was done again" for name, spent in told.items() if ended[name] != spent]
    expected, found = contents(clean.output), contents(trial.output)
    differing = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    findings.problems += [f"differs: {name}" for name in differing]
    findings.problems += left_over(trial, clean)


def _compare_finished(before: dict[str, int], after: dict[str, int], findings: Findings) -> int:
    again = [name for name, inode in before.items() if after.get(name) != inode]
    findings.problems += [f"made again: {name}" for name in again]
    return len(again)


def run_rounds(
    folder: Path,
    rounds: int,
    seed: int,
    *,
    first: int = 0,
    encoders: bool = False,
    command: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> Findings:
    """An uninterrupted build, and then the rounds from ``first`` on; ``tell`` is given a line after each."""
    sources = write_videos(folder / "videos")
    clean = Trial(folder / "clean", sources, encoders, command)
    process = clean.start()
    started = time.monotonic()
    said, _ = process.communicate(timeout=MAX_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"the uninterrupted build failed:\n{said}")
    elapsed = time.monotonic() - started
    rng = random.Random(seed)
    findings = Findings()
    for number in range(first + rounds):
        shares = [rng.random() for _ in range(rng.choice((1, 1, 2, 3)))]
        if number < first:
            continue
        moments = [elapsed * share for share in shares]
        before = len(findings.problems)
        play_round(Trial(folder / f"r{number:03d}", sources, encoders, command), moments, clean, findings)
        findings.problems[before:] = [f"round {number}: {problem}" for problem in findings.problems[before:]]
        tell(f"round {number}: {len(moments)} kills, {len(findings.problems) - before} problems")
    return findings


def build(recipe: str) -> int:
    """The build without a flow; says when it begins."""
    from pipeline.build.build import Build
    from pipeline.build.recipe import load_recipe
    from pipeline.events import ignore

    print(BEGUN, flush=True)  # noqa: T201
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
    """0: all rounds ended as they should. 1: not so; what was wrong is listed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoders", action="store_true", help="embed the clips, too")
    parser.add_argument("--command", action="store_true", help="run the whole command, with its temporary server")
    parser.add_argument("--keep", type=Path, help="folder for all that is built; none: a temporary one")
    parser.add_argument("--child", metavar="RECIPE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        return build(options.child)
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        started = time.monotonic()
        folder = options.keep or Path(temporary)
        found = run_rounds(
            folder,
            options.rounds,
            options.seed,
            first=options.first,
            encoders=options.encoders,
            command=options.command,
            tell=lambda line: print(line, flush=True),  # noqa: T201
        )
        elapsed = time.monotonic() - started
    print(  # noqa: T201
        f"{options.rounds} rounds, seed {options.seed}, {found.num_kills} kills ({found.num_killed_after} after the end), {elapsed:.0f} s: "
        f"{found.num_finished} finished files met by kills, {found.num_made_again} made again, {len(found.problems)} problems"
    )
    for problem in found.problems:
        print(problem)  # noqa: T201
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
