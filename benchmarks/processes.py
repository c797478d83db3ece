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
    pr_set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def cpu_seconds(*, own: bool = True) -> float:
    """User and system time of all children of this process that have ended, and with ``own`` of this process too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    processes = [resource.RUSAGE_CHILDREN, *([resource.RUSAGE_SELF] if own else [])]
    usages = [resource.getrusage(who) for who in processes]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cost_of(work: Callable[[], Any], *, own: bool = True) -> Cost:
    """Runs ``work``, and returns its cost. ``own=False`` leaves out the CPU time of this process, as when it only watches others."""
    started_cpu, started = cpu_seconds(own=own), time.monotonic()
    work()
    elapsed_seconds = time.monotonic() - started
    return Cost(cpu_seconds(own=own) - started_cpu, elapsed_seconds)


class Peak:
    """Peak memory of a process and its descendants, sampled every tenth of a second. Shared pages count once (PSS)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.together_mb = self.largest_mb = self.first_mb = 0.0
        """Of all processes together, of the largest process, and of the first one, which started the others."""

    def watch(self) -> None:
        """Samples until the process has ended. Raises SystemExit if it failed."""
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
    """Memory in RAM, with shared pages divided among the processes that share them (PSS). 0 if the process has ended."""
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0
