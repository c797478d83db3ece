"""The progress of a build: counted from its events, shown on a terminal or as plain lines.

:class:`Progress` is a listener for ``pipeline.events`` events, which any thread may call. :func:`displayed` shows it.
rich.progress is not used: its rate includes reused sources, and it prints nothing where there is no terminal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.dataset.bugs import BUG
from pipeline.events import Event, SourceEvent, StageEvent
from pipeline.schema import State

RATE_WINDOW_SECONDS = 300
"""The window of the rates: long enough to average over uneven sources, short enough to follow a change."""
SETTLE_SECONDS = 5.0
"""The remaining time is not estimated in the first seconds of a run: too few sources have ended."""
PLAIN_EVERY_SECONDS = 10.0
QUEUED = "queued"
"""The stage of a source that is being fetched or waits to be fetched."""
NEXT_STAGE = {"fetch": "measure", "measure": "embed", "embed": "cut", "cut": "cut"}
"""The stage that follows each stage of a source (``cut`` ends once a clip). Other stages concern the whole dataset."""


@dataclass(frozen=True, slots=True)
class RunningSource:
    """A source at work."""

    source_id: str
    stage: str
    seconds: float
    """Since it entered the stage."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a build at one moment."""

    num_sources: int
    num_ended: int
    """Sources that are kept, rejected or failed, in this run or an earlier one."""
    sources: Mapping[str, int]
    """Sources that ended in this run, by state."""
    clips: Mapping[str, int]
    """Clips of those sources: ``kept``, ``rejected``, ``failed``."""
    running: tuple[RunningSource, ...]
    step: str
    """The last finished step of the whole dataset; empty while sources are being processed."""
    elapsed_seconds: float
    media_rate: float
    """Seconds of sources decoded and measured, per second of real time."""
    sources_per_minute: float
    remaining_seconds: float | None
    """Estimated time until the last source ends. None: not known yet."""
    num_bugs: int = 0
    """Sources of this run that met a bug of this program."""

    @property
    def share(self) -> float:
        """Share of the sources that have ended, 0..1."""
        return self.num_ended / self.num_sources if self.num_sources else 1.0


class _Rate:
    """Mean rate over the last ``RATE_WINDOW_SECONDS``; amounts are summed for each second of the clock."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._sums: deque[tuple[int, float]] = deque()

    def add(self, now: float, amount: float) -> None:
        second = int(now)
        if self._sums and self._sums[-1][0] == second:
            amount += self._sums.pop()[1]
        self._sums.append((second, amount))
        self._drop_old(now)

    def per_second(self, now: float) -> float:
        self._drop_old(now)
        window_seconds = min(now - self._started, RATE_WINDOW_SECONDS)
        return sum(amount for _, amount in self._sums) / window_seconds if window_seconds > 0 else 0.0

    def _drop_old(self, now: float) -> None:
        while self._sums and self._sums[0][0] < int(now) - RATE_WINDOW_SECONDS:
            self._sums.popleft()


class Progress:
    """Counts the events of a build. ``clock`` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._num_sources = self._num_ended = 0
        self._sources: Counter[str] = Counter()
        self._clips: Counter[str] = Counter()
        self._num_bugs = 0
        self._running: dict[str, tuple[str, float]] = {}
        self._reused_only: dict[str, bool] = {}
        self._step = ""
        self._next = NEXT_STAGE
        self._restart()

    def _restart(self) -> None:
        self._started = self._clock()
        self._media = _Rate(self._started)
        self._ends = _Rate(self._started)

    def begin(self, num_sources: int, num_ended: int = 0, *, embeds: bool = True) -> None:
        """Sets the number of sources and of those that an earlier run has finished, and starts the clock.

        ``embeds``: whether clips are embedded between the stages ``measure`` and ``cut``.
        """
        with self._lock:
            self._next = NEXT_STAGE if embeds else {**NEXT_STAGE, "measure": "cut"}
            self._num_sources, self._num_ended = num_sources, num_ended
            self._restart()

    def queue(self, source_ids: Iterable[str]) -> None:
        """Marks these sources as being fetched or waiting to be fetched."""
        with self._lock:
            now = self._clock()
            for source_id in source_ids:
                self._running.setdefault(source_id, (QUEUED, now))

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, StageEvent):
                self._stage(event)
            else:
                self._end(event)

    def _stage(self, event: StageEvent) -> None:
        now = self._clock()
        if event.stage not in self._next:
            self._step = f"{event.stage}: {event.subject}"
            return
        self._running[event.subject] = (self._next[event.stage], now)
        self._reused_only[event.subject] = event.reused and self._reused_only.get(event.subject, True)
        if event.stage == "measure" and not event.reused:
            self._media.add(now, event.media_seconds)

    def _end(self, event: SourceEvent) -> None:
        now = self._clock()
        self._num_ended += 1
        self._sources[event.state.value] += 1
        self._num_bugs += event.code == BUG
        for outcome, number in event.clips.items():
            # an outcome that is no state is the reason of a rejection
            is_state = outcome in (State.KEPT, State.REJECTED, State.FAILED)
            self._clips[outcome if is_state else State.REJECTED.value] += number
        self._running.pop(event.source_id, None)
        if not self._reused_only.pop(event.source_id, False):
            self._ends.add(now, 1)

    def snapshot(self) -> Snapshot:
        with self._lock:
            now = self._clock()
            elapsed = now - self._started
            ends_per_second = self._ends.per_second(now)
            num_left = self._num_sources - self._num_ended
            running = [RunningSource(name, stage, now - since) for name, (stage, since) in self._running.items()]
            if num_left <= 0:
                remaining_seconds: float | None = 0.0
            else:
                is_known = elapsed >= SETTLE_SECONDS and ends_per_second > 0
                remaining_seconds = num_left / ends_per_second if is_known else None
            return Snapshot(
                num_sources=self._num_sources,
                num_ended=min(self._num_ended, self._num_sources),  # a source of a repeated batch is counted twice
                sources=dict(self._sources),
                clips=dict(self._clips),
                running=tuple(running),
                step=self._step,
                elapsed_seconds=elapsed,
                media_rate=self._media.per_second(now),
                sources_per_minute=ends_per_second * 60,
                remaining_seconds=remaining_seconds,
                num_bugs=self._num_bugs,
            )


def duration(seconds: float | None) -> str:
    """``h:mm:ss``, or ``-:--`` for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def counts(numbers: Mapping[str, int]) -> str:
    """``kept 3, rejected 1, failed 0``."""
    return ", ".join(
        f"{state.value} {numbers.get(state.value, 0)}" for state in (State.KEPT, State.REJECTED, State.FAILED)
    )


def rates(now: Snapshot) -> str:
    """Seconds of sources measured per second, and sources that end per minute."""
    return f"{now.media_rate:.1f} source-s/s, {now.sources_per_minute:.1f} sources/min"


def line(now: Snapshot) -> str:
    """The state of a build in one line, for a log."""
    doing = now.step or f"{duration(now.remaining_seconds)} left, {rates(now)}"
    return (
        f"{now.num_ended}/{now.num_sources} sources ({now.share:.0%}), "
        f"{duration(now.elapsed_seconds)} elapsed, {doing}; "
        f"sources of this run: {counts(now.sources)}; their clips: {counts(now.clips)}{bugs(now)}"
    )


def bugs(now: Snapshot) -> str:
    """The end of a line that counts sources with bugs; empty where there were none."""
    return f"; {now.num_bugs} SOURCES MET A BUG: see the log" if now.num_bugs else ""


class Panel:
    """The state as a few lines, which rich redraws several times a second."""

    def __init__(self, progress: Progress, title: str, max_running: int = 6) -> None:
        self._progress, self._title, self._max_running = progress, title, max_running

    def __rich__(self) -> RenderableType:
        now = self._progress.snapshot()
        header = Table.grid(padding=(0, 1), expand=True)
        header.add_column(no_wrap=True, overflow="ellipsis")
        header.add_column(ratio=1)
        header.add_column(no_wrap=True, justify="right")
        header.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(now.num_sources, 1), completed=now.num_ended if now.num_sources else 1),
            f"{now.num_ended}/{now.num_sources} sources",
        )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim", no_wrap=True, min_width=7)
        body.add_column(overflow="ellipsis", no_wrap=True)
        remaining = "" if now.step else f", {duration(now.remaining_seconds)} left"
        body.add_row("time", f"{duration(now.elapsed_seconds)} elapsed{remaining}")
        if not now.step:
            body.add_row("rate", rates(now))
        body.add_row("sources", _coloured(now.sources))
        body.add_row("clips", _coloured(now.clips))
        if now.num_bugs:
            body.add_row("BUGS", Text(f"met by {now.num_bugs} sources: see the log", style="bold red"))
        if now.step:
            body.add_row("now", Text(now.step))
        at_work = [source for source in now.running if source.stage != QUEUED]
        for index, source in enumerate(at_work[: self._max_running]):
            text = Text.assemble((f"{source.stage:<8}", "cyan"), f"{duration(source.seconds)}  {source.source_id}")
            body.add_row("" if index or now.step else "now", text)
        rest = [f"{len(at_work) - self._max_running} more"] if len(at_work) > self._max_running else []
        rest += (
            [f"{len(now.running) - len(at_work)} queued or being fetched"] if len(now.running) > len(at_work) else []
        )
        if rest:
            body.add_row("", Text("and " + ", ".join(rest), style="dim"))
        return Group(header, body)


def _coloured(numbers: Mapping[str, int]) -> Text:
    styles = {State.KEPT: "green", State.REJECTED: "yellow", State.FAILED: "red"}
    parts = [(f"{state.value} {numbers.get(state.value, 0):<6}", style) for state, style in styles.items()]
    return Text.assemble(*parts)


class ConsoleHandler(logging.Handler):
    """Writes log records above the panel instead of through it."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow"
        self._console.print(Text(self.format(record), style=style), soft_wrap=True)


@contextmanager
def displayed(
    progress: Progress, title: str, console: Console, every_seconds: float = PLAIN_EVERY_SECONDS
) -> Iterator[None]:
    """Shows ``progress`` while the block runs: as a panel on a terminal, else as lines, ``every_seconds`` apart or more."""
    if console.is_terminal:
        with Live(
            Panel(progress, title), console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False
        ):
            yield
        return
    ended = threading.Event()
    printer = threading.Thread(target=_print_lines, args=(progress, title, console, every_seconds, ended), daemon=True)
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()


def _print_lines(
    progress: Progress, title: str, console: Console, every_seconds: float, ended: threading.Event
) -> None:
    """Prints a line every ``every_seconds`` if a source or step has ended since the last, and a final one."""
    last_position = ""
    is_last = False
    while not is_last:
        is_last = ended.wait(every_seconds)
        now = progress.snapshot()
        position = now.step or str(now.num_ended)
        if position != last_position and now.num_sources:
            console.print(Text(f"{title}: {line(now)}"), soft_wrap=True)
        last_position = position
