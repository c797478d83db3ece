"""What /proc says of other processes, any of which may end while it is read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    name: str
    state: str
    """``T``: stopped. ``Z``: ended, and not waited for yet."""
    parent: int


def read_process(pid: int) -> Process | None:
    """None: there is no such process (any more)."""
    with suppress(FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or before it was read
        named, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
        state, parent, *_ = rest.split()
        return Process(named.partition("(")[2], state, int(parent))
    return None


def all_processes() -> dict[int, Process]:
    read = {int(folder.name): read_process(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    return {pid: process for pid, process in read.items() if process is not None}


def children(pid: int) -> set[int]:
    """All processes below this one."""
    processes = all_processes()
    below: set[int] = set()
    parents = {pid}
    while parents:
        parents = {child for child, process in processes.items() if process.parent in parents} - below
        below |= parents
    return below
