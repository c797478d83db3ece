"""Counts time-outs and lack of memory across runs: work that exceeds the same limit in several runs is not tried again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.errors import ClipError
from pipeline.runtime.damage import read_named, write_named
from pipeline.runtime.folder import Folder
from pipeline.schema import stable_hash

TIMED_OUT = "timed_out"
OUT_OF_MEMORY = "out_of_memory"
COUNTED = frozenset({TIMED_OUT, OUT_OF_MEMORY})
"""Codes of errors that are counted here."""
MAX_TIMES = 3
"""A single such error may come from a busy machine, so it is transient. After this many runs it is lasting."""
MORE_MEMORY = (
    "raise execution.process_memory_bytes (--set execution.process_memory_bytes=8000000000), and set "
    "execution.try_failed_again=true for that run"
)


class Timeouts:
    """The counts, stored in ``state`` by work and limit. ``try_again``: ignore the counts of earlier runs. ``memory_bytes``: memory limit
    of the work. None: that of the machine. ``source_id``: stored with the counts, for people who read them."""

    def __init__(
        self, state: Folder, *, try_again: bool = False, memory_bytes: int | None = None, source_id: str = ""
    ) -> None:
        self._state, self._try_again, self._memory_bytes, self._source_id = state, try_again, memory_bytes, source_id

    @contextlib.contextmanager
    def counted(self, key: str, limit_seconds: float, advice: str) -> Iterator[None]:
        """Counts a ClipError ``timed_out`` or ``out_of_memory`` of the block. ``key`` identifies the work.

        From the error number MAX_TIMES on, raises a ClipError that is no TransientError, in later runs before the work.
        """
        limits = {TIMED_OUT: f"{limit_seconds:.3f}", OUT_OF_MEMORY: f"{self._memory_bytes} bytes"}
        names = {code: _name(key, limit) for code, limit in limits.items()}
        times = {code: 0 if self._try_again else self._times(name) for code, name in names.items()}
        for code, count in times.items():
            if count >= MAX_TIMES:
                raise self._lasting(code, count, limit_seconds, advice)
        try:
            yield
        except ClipError as error:
            if error.code not in COUNTED:
                raise
            count = times[error.code] + 1
            write_named(self._state, names[error.code], {"times": count, "source_id": self._source_id})
            if count < MAX_TIMES:
                raise
            raise self._lasting(error.code, count, limit_seconds, advice) from error
        for code, count in times.items():
            if count:
                self._state.remove(names[code])

    def _times(self, name: str) -> int:
        return read_named(self._state, name, lambda values: int(values["times"])) or 0

    def _lasting(self, code: str, times: int, limit_seconds: float, advice: str) -> ClipError:
        if code == TIMED_OUT:
            return ClipError(code, f"took longer than {limit_seconds:.0f} s in each of {times} runs: {advice}")
        limit = f"{self._memory_bytes} bytes" if self._memory_bytes else "there is"
        return ClipError(code, f"took more memory than {limit} in each of {times} runs: {MORE_MEMORY}")


def _name(key: str, limit: str) -> str:
    hashed = stable_hash("timeouts", 1, key, limit, length=40)
    return f"timeouts/{hashed[:2]}/{hashed}.json"
