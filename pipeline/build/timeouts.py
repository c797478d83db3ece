"""Time-outs that recur: what takes too long in several runs under the same limit is not tried for ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from pipeline.errors import ClipError
from pipeline.runtime.folder import Folder
from pipeline.schema import stable_hash

TIMED_OUT = "timed_out"
MAX_TIMES = 3
"""The machine may have been busy, so a time-out passes; this many runs that end alike are no chance."""


class Timeouts:
    """Counts them in the state, by work and limit. ``try_again``: those that are there count no more."""

    def __init__(self, state: Folder, *, try_again: bool = False) -> None:
        self._state, self._try_again = state, try_again

    @contextlib.contextmanager
    def counted(self, key: str, limit_seconds: float, advice: str) -> Iterator[None]:
        """Around work that raises a ClipError ``timed_out`` above ``limit_seconds``; ``key`` names it.

        Raises one that is no TransientError from the last of MAX_TIMES on.
        """
        hashed = stable_hash("timeouts", 1, key, f"{limit_seconds:.3f}", length=40)
        name = f"timeouts/{hashed[:2]}/{hashed}.json"
        times = 0 if self._try_again else self._times(name)
        if times >= MAX_TIMES:
            raise self._lasting(times, limit_seconds, advice)
        try:
            yield
        except ClipError as error:
            if error.code != TIMED_OUT:
                raise
            self._state.write_json(name, {"times": times + 1})
            if times + 1 < MAX_TIMES:
                raise
            raise self._lasting(times + 1, limit_seconds, advice) from error
        if times:
            self._state.remove(name)

    def _times(self, name: str) -> int:
        try:
            return int(self._state.read_json(name)["times"])
        except FileNotFoundError:
            return 0
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            return 0  # damaged: as if it had not been counted

    @staticmethod
    def _lasting(times: int, limit_seconds: float, advice: str) -> ClipError:
        return ClipError(TIMED_OUT, f"took longer than {limit_seconds:.0f} s in each of {times} runs: {advice}")
