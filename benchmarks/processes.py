"""What processes cost: CPU time and memory of one with all that it starts. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work took, over all its processes."""

    cpu_seconds: float
    wall_seconds: float


def adopt_orphans() -> None:
    """Processes that outlive their parent become this one's children, so that their time is counted when they end."""
    set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def cpu_seconds(*, own: bool = True) -> float:
    """User and system time of all ended children of this process, and with ``own`` of itself."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    counted = [resource.RUSAGE_CHILDREN, *([resource.RUSAGE_SELF] if own else [])]
    used = [resource.getrusage(who) for who in counted]
    return sum(part.ru_utime + part.ru_stime for part in used)


def cost_of(work: Callable[[], Any], *, own: bool = True) -> Cost:
    """``own=False`` leaves out what this process itself does meanwhile, such as watching."""
    cpu, wall = cpu_seconds(own=own), time.monotonic()
    work()
    took = time.monotonic() - wall
    return Cost(cpu_seconds(own=own) - cpu, took)


class Peak:
    """Memory of a process and all below it, looked at every tenth of a second. Shared pages count once (PSS)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.together_mb = self.largest_mb = self.first_mb = 0.0
        """All processes, the largest of them, and the one that started the others."""

    def watch(self) -> None:
        """Returns when the process has ended. Exits where it failed."""
        waiter = threading.Thread(target=self._process.wait)
        waiter.start()
        while waiter.is_alive():
            sizes = [pss_mb(pid) for pid in process_tree(self._process.pid)]
            self.together_mb = max(self.together_mb, sum(sizes))
            self.largest_mb = max(self.largest_mb, *sizes, 0.0)
            self.first_mb = max(self.first_mb, sizes[0])
            waiter.join(0.1)
        if self._process.returncode:
            raise SystemExit(f"the build ended with {self._process.returncode}")


def process_tree(pid: int) -> list[int]:
    """``pid`` first, then every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def pss_mb(pid: int) -> float:
    """0 where the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
