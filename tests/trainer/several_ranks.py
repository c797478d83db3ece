"""Fits in several processes that torchrun starts, watched by what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE_SECONDS = 900
"""For what takes half a minute on a quiet machine."""
SCRIPT = """
import sys
from pathlib import Path
from tests import paired
from trainer.fit import main

if __name__ == "__main__":
    paired.know_model(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
"""


def fit_script(folder: Path) -> list[str]:
    """The real command, as torchrun starts it, in a process that is told of the small model first."""
    path = folder / "run_fit.py"
    path.write_text(SCRIPT)
    return [str(path), str(folder)]


def torchrun(folder: Path, words: Sequence[str]) -> list[str]:
    """The real command in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, *fit_script(folder), *words]


class Started:
    """A command that runs, with all that it prints in a file."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT | environment, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Fails, with all that was printed, if the command ends before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def end(self) -> int:
        """The exit code, when it has ended."""
        return self.process.wait(PATIENCE_SECONDS)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next(one for one in below if is_rank(one, number))

    def kill(self) -> None:
        """Kills all that is left of it."""
        if self.process.poll() is None:
            for one in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                one.kill()
            self.process.wait()


def is_rank(process: psutil.Process, number: int) -> bool:
    """Whether this is the process that computes: those below it have the same environment."""
    return process.environ().get("RANK") == str(number) and "--shards" in process.cmdline()


def ticks(out: Path, stage: str) -> list[dict[str, Any]]:
    """The complete lines of the stats."""
    path = out / "stats.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    read = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in read if line["stage"] == stage and line["kind"] == "tick"]
