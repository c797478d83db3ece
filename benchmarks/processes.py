"""CPU time and memory of a process and all its descendants. Linux only."""

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
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of a piece of work, over all its processes."""

    cpu_seconds: float
    wall_seconds: float


def adopt_orphans() -> None:
    """Makes this process the parent of descendants that outlive their own parent, so that their time is counted when they end."""
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
    """The cost of ``work``. ``own=False`` leaves out the CPU time of this process, such as watching."""
    cpu, wall = cpu_seconds(own=own), time.monotonic()
    work()
    took = time.monotonic() - wall
    return Cost(cpu_seconds(own=own) - cpu, took)


class Peak:
    """Peak memory of a process and its descendants, sampled every tenth of a second. Shared pages count once (PSS)."""

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
    """``pid``, then all its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def pss_mb(pid: int) -> float:
    """Memory in RAM, with shared pages divided among those that share them. 0 when the process has ended."""
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0
