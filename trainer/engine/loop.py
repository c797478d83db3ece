"""The loop of every stage: batches in, steps, ticks, validations, checkpoints. It knows no losses.

setup (the stage) -> fit (here) -> close
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from pipeline.errors import DataError, FitError
from trainer.engine.run import Run
from trainer.engine.stats import Display, Tick, peak_memory_bytes
from trainer.streaming.reader import Batch, ReadFailure

logger = logging.getLogger(__name__)

Ended = Literal["done", "paused", "stopped"]
SETTLE_SECONDS = 5.0
"""No remaining time is told before this, for want of anything to tell it from."""


class Stage(Protocol):
    """What the loop asks of a stage. Every rank calls the same methods in the same order."""

    name: str
    samples_seen: int
    """Samples of all ranks that it has learned from."""
    headline: Sequence[str]
    """Names of the measures of a validation that the terminal shows. None of them: it shows all."""

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Learns from one batch; its measures, ``loss`` among them, or none for a batch without a sample on any rank.

        Raises FitError, unchanged, when the loss is not finite.
        """

    def validate(self) -> Mapping[str, float]:
        """Measures on data that it does not learn from; empty where there is none."""

    def save(self, reader_state: Mapping[str, Any]) -> None:
        """Writes what is needed to go on from here, and what others may use, by rename."""


class BatchSource(Protocol):
    """Batches of this rank, epoch after epoch: ``trainer.streaming.reader.Reader``, or what behaves as it does."""

    @property
    def bad(self) -> Sequence[tuple[ReadFailure, int]]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...


def fit(
    stage: Stage,
    reader: BatchSource,
    run: Run,
    display: Display,
    *,
    num_samples: int,
    validate_every_samples: int,
    save_every_samples: int,
) -> Ended:
    """Runs the stage to ``num_samples``, to a pause, or until the run is asked to stop. Each ends with a checkpoint.

    Raises FitError when a step did; the checkpoint is then that of the moment before it, with its batch still to come.
    """
    first = stage.samples_seen
    pause = run.settings.pause_after_samples
    clock = _TickCounter(stage, reader, run, display, num_samples)
    batches = _endless(reader)
    ended: Ended | None = None if stage.samples_seen < num_samples else "done"
    while ended is None:
        reader_state = reader.state_dict()
        with clock.waiting():
            batch = next(batches)
        before = stage.samples_seen
        try:
            measures = stage.step(batch)
        except FitError as error:
            stage.samples_seen = before
            stage.save(reader_state)
            raise FitError(
                f"{error}. Nothing was learned from that batch, and a checkpoint was written to "
                f"{run.stage_folder(stage.name)}: the same command goes on from it"
            ) from error
        clock.count(measures)
        seen = stage.samples_seen
        if seen >= num_samples:
            ended = "done"
        elif run.stop_wanted():
            ended = "stopped"
        elif pause is not None and seen - first >= pause:
            ended = "paused"
        if ended == "done" or _passed(before, seen, validate_every_samples):
            clock.tick()
            _validate(stage, run, display)
        if ended is not None or _passed(before, seen, save_every_samples):
            stage.save(reader.state_dict())
    clock.tick()
    return ended


def _passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]."""
    return now // every > before // every


def _endless(reader: BatchSource) -> Iterator[Batch]:
    while True:
        num_batches = 0
        for batch in reader:
            num_batches += 1
            yield batch
        if not num_batches and not len(reader):
            raise DataError("the training split has fewer samples than one batch: lower reader.batch_size")


def _validate(stage: Stage, run: Run, display: Display) -> None:
    measures = stage.validate()
    if not measures:
        return
    run.stats.write(stage.name, "validation", stage.samples_seen, measures)
    shown = {name: measures[name] for name in stage.headline if name in measures} or measures
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in shown.items())
    display.say(f"{stage.name}: validation after {stage.samples_seen:,} samples: {told}")


class _TickCounter:
    """Counts what happens between two ticks, and tells it when ``run.tick_seconds`` are over."""

    def __init__(self, stage: Stage, reader: BatchSource, run: Run, display: Display, num_samples: int) -> None:
        self._stage, self._reader, self._run, self._display = stage, reader, run, display
        self._num_samples = num_samples
        self._began = self._last = time.monotonic()
        self._first_seen = self._last_seen = stage.samples_seen
        self._waited = 0.0
        self._waiting_since = 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._num_steps = 0

    def waiting(self) -> _TickCounter:
        return self

    def __enter__(self) -> None:
        self._waiting_since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._waiting_since

    def count(self, measures: Mapping[str, float]) -> None:
        """One step; tells of it and those before it when it is time."""
        if not measures:
            return
        for name, value in measures.items():
            self._sums[name] += value
        self._num_steps += 1
        if time.monotonic() - self._last >= self._run.settings.tick_seconds:
            self.tick()

    def tick(self) -> None:
        """Writes the means since the last tick, unless nothing has happened since."""
        if not self._num_steps:
            return
        now, seen = time.monotonic(), self._stage.samples_seen
        elapsed = max(now - self._last, 1e-9)
        rate = (seen - self._first_seen) / max(now - self._began, 1e-9)
        settled = now - self._began >= SETTLE_SECONDS and rate > 0
        means = {name: total / self._num_steps for name, total in self._sums.items()}
        tick = Tick(
            stage=self._stage.name,
            samples_seen=seen,
            num_samples=self._num_samples,
            samples_per_second=(seen - self._last_seen) / elapsed,
            data_wait_share=self._waited / elapsed,
            memory_bytes=peak_memory_bytes(self._run.fabric.device),
            loss=means["loss"],
            remaining_seconds=max(0, self._num_samples - seen) / rate if settled else None,
        )
        timing = {
            "samples_per_second": tick.samples_per_second,
            "data_wait_share": tick.data_wait_share,
            "memory_bytes": float(tick.memory_bytes),
            "bad_samples": float(sum(times for _, times in self._reader.bad)),
        }
        self._run.stats.write(self._stage.name, "tick", seen, {**means, **timing})
        self._display.tick(tick)
        self._last, self._last_seen, self._waited, self._num_steps = now, seen, 0.0, 0
        self._sums.clear()
