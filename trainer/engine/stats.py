"""Statistics and progress of a fit: one line of JSON for every tick and validation, the same for TensorBoard, and the terminal."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE_NAME = "stats.jsonl"


class Stats:
    """Writes ``stats.jsonl`` and the folder ``tensorboard`` of a run. Other ranks than 0 pass ``folder=None``; they write nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._boards: dict[str, SummaryWriter] = {}

    def resume(self, stage: str, samples_seen: int) -> None:
        """Removes the stage's lines after ``samples_seen``: the resumed run writes them again."""
        if self._folder is None:
            return
        path = self._folder / FILE_NAME
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _stays(line, stage, samples_seen)]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        if stage in self._boards:
            self._boards.pop(stage).close()
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (slow to import)

        purge = samples_seen + 1 if samples_seen else None
        place = str(self._folder / "tensorboard" / stage)
        self._boards[stage] = SummaryWriter(place, purge_step=purge)

    def write(self, stage: str, kind: str, samples_seen: int, measures: Mapping[str, float]) -> None:
        """Writes one line. A measure that is not finite is written as null."""
        if self._folder is None:
            return
        finite = {name: value if abs(value) < float("inf") else None for name, value in measures.items()}
        line = {
            "stage": stage,
            "kind": kind,
            "samples_seen": samples_seen,
            "unix_seconds": round(time.time(), 3),
            **finite,
        }
        with (self._folder / FILE_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if board := self._boards.get(stage):
            for name, value in finite.items():
                if value is not None:
                    board.add_scalar(f"{kind}/{name}", value, samples_seen)
            board.flush()

    def picture(self, stage: str, name: str, samples_seen: int, picture_HWC: NDArray[np.uint8]) -> None:
        """Writes an RGB picture to TensorBoard."""
        if board := self._boards.get(stage):
            board.add_image(name, picture_HWC, samples_seen, dataformats="HWC")
            board.flush()

    def close(self) -> None:
        for board in self._boards.values():
            board.close()
        self._boards.clear()


def fitted_seconds(folder: Path) -> float | None:
    """How long the stages of a run learned, in seconds, validations and pauses left out. None: ``stats.jsonl`` does not say."""
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    seconds, last_seen = 0.0, dict[str, float]()
    for line in lines:
        try:
            values = json.loads(line)
            if values["kind"] != "tick":
                continue
            stage, samples_seen = str(values["stage"]), float(values["samples_seen"])
            seconds += (samples_seen - last_seen.get(stage, 0.0)) / float(values["samples_per_second"])
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # the last line of a run that was killed while it wrote
        last_seen[stage] = samples_seen
    return seconds or None


def _stays(line: str, stage: str, samples_seen: int) -> bool:
    try:
        values = json.loads(line)
        return bool(values["stage"] != stage or values["samples_seen"] <= samples_seen)
    except (ValueError, KeyError, TypeError):
        return False  # the last line of a run that was killed while it wrote


@dataclass(frozen=True, slots=True)
class Tick:
    """The progress of a stage at one tick."""

    stage: str
    samples_seen: int
    num_samples: int
    samples_per_second: float
    data_wait_share: float
    """Share of the time since the last tick that the stage waited for the reader, 0..1."""
    memory_bytes: int
    """Peak memory so far: of the GPU, or without one of this process."""
    loss: float
    remaining_seconds: float | None
    """None: not known yet."""

    def line(self) -> str:
        """All values in one line."""
        left = "-:--" if self.remaining_seconds is None else _duration(self.remaining_seconds)
        return (
            f"{self.stage}: {self.samples_seen:,}/{self.num_samples:,} samples "
            f"({min(1.0, self.samples_seen / self.num_samples):.0%}), {self.samples_per_second:.1f} samples/s, "
            f"waiting for data {self.data_wait_share:.0%}, {self.memory_bytes / 1e9:.2f} GB, loss {self.loss:.4f}, {left} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Display:
    """Shows ticks: on a terminal as a progress bar, elsewhere one line each. With ``console=None`` it shows nothing."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if self._console is None or not self._console.is_terminal:
            yield
            return
        with Live(
            console=self._console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False
        ) as self._live:
            yield
        self._live = None

    def tick(self, tick: Tick) -> None:
        if self._live is not None:
            grid = Table.grid(padding=(0, 1), expand=True)
            grid.add_column(no_wrap=True)
            grid.add_column(ratio=1)
            bar = ProgressBar(total=tick.num_samples, completed=min(tick.samples_seen, tick.num_samples))
            grid.add_row(Text(tick.stage, style="bold"), bar)
            rows = Table.grid()
            rows.add_row(grid)
            rows.add_row(Text(tick.line()))
            self._live.update(rows)
        elif self._console is not None:
            self._console.print(Text(tick.line()), soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line that stays above the progress bar."""
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far, in bytes: torch's allocations on a GPU, else the resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
