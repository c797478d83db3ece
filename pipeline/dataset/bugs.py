"""Errors of this program itself: what tells them apart, and which sources met one under which version of it."""

from __future__ import annotations

import functools
import hashlib
import traceback
from pathlib import Path

from pipeline.errors import HearscapeError
from pipeline.runtime.folder import Folder
from pipeline.schema import Failure

BUG = "bug"
"""The code of a source that met one."""


def bug_note(num_sources: int) -> str:
    """For people, of sources that met one."""
    return (
        f"SOURCES THAT MET A BUG of this program: {num_sources}. They are not in the dataset, and the log of their run has the tracebacks. "
        "Another version tries them again, this one with execution.try_failed_again=true"
    )


def is_bug(error: Exception) -> bool:
    """Whether an error is neither told on purpose nor one of disks and networks, which say nothing of a source either."""
    return not isinstance(error, HearscapeError | OSError)


def bug_failure(stage: str, error: Exception) -> Failure:
    """The error as it is recorded: kind, message and place. It passes, since the next version may have mended it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())[:500]
    return Failure(stage, BUG, f"{type(error).__name__}: {said}{place}; the log has the traceback", transient=True)


@functools.cache
def code_version() -> str:
    """Changes with any line of the package's code."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class MetBugs:
    """Sources that met a bug of this very version, under one recipe: an empty file each, in ``bugs/<version>/<recipe>`` of the state."""

    def __init__(self, state: Folder, recipe_hash: str) -> None:
        self._state, self._name = state, f"bugs/{code_version()}/{recipe_hash}"

    @functools.cached_property
    def source_ids(self) -> frozenset[str]:
        """As they were when this was first asked."""
        return frozenset(self._state.names(self._name))

    def note(self, source_id: str, failure: Failure | None) -> None:
        """``failure``: how the source ended."""
        name = f"{self._name}/{source_id}"
        if failure is not None and failure.code == BUG:
            self._state.write_bytes(name, b"")
        elif source_id in self.source_ids:
            self._state.remove(name)
