"""Bugs of this program that a source triggered: how an error is recognised as one, and the record of such sources by version."""

from __future__ import annotations

import functools
import hashlib
import traceback
from pathlib import Path

from pipeline.errors import HearscapeError
from pipeline.runtime.folder import Folder
from pipeline.schema import Failure

BUG = "bug"
"""The failure code of a source that triggered a bug."""


def bug_note(num_sources: int) -> str:
    """A note for the build's summary: the number of sources that triggered a bug, and what to do."""
    return (
        f"SOURCES THAT MET A BUG of this program: {num_sources}. They are not in the dataset, and the log of their run has the tracebacks. "
        "Another version tries them again, this one with execution.try_failed_again=true"
    )


def is_bug(error: Exception) -> bool:
    """Whether an error is a bug: neither raised on purpose nor an OSError of a disk or network, which is no property of the source."""
    return not isinstance(error, HearscapeError | OSError)


def bug_failure(stage: str, error: Exception) -> Failure:
    """The error as a failure: type, message, file and line. It is transient, since the next version may have fixed it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    message = " ".join(str(error).split())[:500]
    return Failure(stage, BUG, f"{type(error).__name__}: {message}{place}; the log has the traceback", transient=True)


@functools.cache
def code_version() -> str:
    """Hash of the package's code: changes with every line."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class MetBugs:
    """Sources that triggered a bug of this version, under one recipe: an empty file each, in ``state/bugs/<version>/<recipe>``."""

    def __init__(self, state: Folder, recipe_hash: str) -> None:
        self._state, self._name = state, f"bugs/{code_version()}/{recipe_hash}"

    @functools.cached_property
    def source_ids(self) -> frozenset[str]:
        """As they were at the first access."""
        return frozenset(self._state.names(self._name))

    def note(self, source_id: str, failure: Failure | None) -> None:
        """Records or clears a source. ``failure``: its failure in this run; None: it did not fail."""
        name = f"{self._name}/{source_id}"
        if failure is not None and failure.code == BUG:
            self._state.write_bytes(name, b"")
        elif source_id in self.source_ids:
            self._state.remove(name)
