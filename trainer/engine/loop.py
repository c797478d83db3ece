"""The training loop of every stage: reads batches, and calls step, tick, validation and checkpoint. It knows no losses.

setup (the stage) -> fit (here) -> close
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from pipeline.errors import DataError, FitError
from trainer.engine.compiling import uncompiled
from trainer.engine.ranks import wait_for_all
from trainer.engine.run import Run
from trainer.engine.stats import Display, Tick, peak_memory_bytes
from trainer.streaming.reader import Batch, ReadFailure

logger = logging.getLogger(__name__)

Ended = Literal["done", "paused", "stopped"]
SETTLE_SECONDS = 5.0
"""The remaining time is shown only after this: before it, the mean rate is not reliable."""


class Stage(Protocol):
    """What the loop needs of a stage. Every rank calls the same methods in the same order."""

    name: str
    samples_seen: int
    """Number of samples learned from, over all ranks."""
    headline: Sequence[str]
    """Names of the validation measures that the terminal shows. Empty, or none of them measured: it shows all."""

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Learns from one batch. Returns its measures, with ``loss``; empty if no rank has a sample.

        Raises FitError if the loss is not finite; the stage is then unchanged.
        """

    def validate(self) -> Mapping[str, float]:
        """Measures on the validation split; empty if there is none."""

    def save(self, reader_state: Mapping[str, Any]) -> None:
        """Writes the exported files, and starts to write the checkpoint to resume from; each file through a rename."""

    def finish_saving(self) -> None:
        """Returns when the checkpoint is on the disk."""


class BatchSource(Protocol):
    """Batches of this rank, one epoch for each loop over it; ``trainer.streaming.reader.Reader`` is one."""

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
    """Runs the stage until ``num_samples``, a pause, or a request to stop. Writes a checkpoint in each case.

    Raises FitError if a step does. The checkpoint is then the state before that step, and the next run reads its batch again.
    """
    first = stage.samples_seen
    pause = run.settings.pause_after_samples
    counter = _TickCounter(stage, reader, run, display, num_samples)
    batches = _endless(reader)
    ended: Ended | None = None if stage.samples_seen < num_samples else "done"
    while ended is None:
        reader_state = reader.state_dict()
        with counter.waiting():
            batch = next(batches)
        before = stage.samples_seen
        try:
            measures = stage.step(batch)
        except FitError as error:
            stage.samples_seen = before
            stage.save(reader_state)
            stage.finish_saving()
            wait_for_all()
            raise FitError(
                f"{error}. Nothing was learned from that batch, and a checkpoint was written to "
                f"{run.stage_folder(stage.name)}: the same command goes on from it"
            ) from error
        counter.count(measures)
        now = stage.samples_seen
        if now >= num_samples:
            ended = "done"
        elif run.stop_signal():
            ended = "stopped"
        elif pause is not None and now - first >= pause:
            ended = "paused"
        if ended == "done" or _passed(before, now, validate_every_samples):
            counter.tick()
            _validate(stage, run, display)
        if ended is not None or _passed(before, now, save_every_samples):
            stage.save(reader.state_dict())
    stage.finish_saving()
    wait_for_all()
    counter.tick()
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
    with uncompiled():  # its batches have other sizes
        measures = stage.validate()
    if not measures:
        return
    run.stats.write(stage.name, "validation", stage.samples_seen, measures)
    shown = {name: measures[name] for name in stage.headline if name in measures} or measures
    text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in shown.items())
    display.say(f"{stage.name}: validation after {stage.samples_seen:,} samples: {text}")


class _TickCounter:
    """Sums measures and waiting time from one tick to the next. Writes and shows the means every ``run.tick_seconds``."""

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
        """Adds the measures of one step; ticks when ``run.tick_seconds`` have passed."""
        if not measures:
            return
        for name, value in measures.items():
            self._sums[name] += value
        self._num_steps += 1
        if time.monotonic() - self._last >= self._run.settings.tick_seconds:
            self.tick()

    def tick(self) -> None:
        """Writes and shows the means over the steps since the last tick. Does nothing if there was no step."""
        if not self._num_steps:
            return
        now, samples_seen = time.monotonic(), self._stage.samples_seen
        elapsed = max(now - self._last, 1e-9)
        rate = (samples_seen - self._first_seen) / max(now - self._began, 1e-9)
        settled = now - self._began >= SETTLE_SECONDS and rate > 0
        means = {name: total / self._num_steps for name, total in self._sums.items()}
        tick = Tick(
            stage=self._stage.name,
            samples_seen=samples_seen,
            num_samples=self._num_samples,
            samples_per_second=(samples_seen - self._last_seen) / elapsed,
            data_wait_share=self._waited / elapsed,
            memory_bytes=peak_memory_bytes(self._run.fabric.device),
            loss=means["loss"],
            remaining_seconds=max(0, self._num_samples - samples_seen) / rate if settled else None,
        )
        timing = {
            "samples_per_second": tick.samples_per_second,
            "data_wait_share": tick.data_wait_share,
            "memory_bytes": float(tick.memory_bytes),
            "bad_samples": float(sum(times for _, times in self._reader.bad)),
        }
        self._run.stats.write(self._stage.name, "tick", samples_seen, {**means, **timing})
        self._display.tick(tick)
        self._last, self._last_seen, self._waited, self._num_steps = now, samples_seen, 0.0, 0
        self._sums.clear()
