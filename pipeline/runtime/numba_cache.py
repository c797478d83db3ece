"""Where numba, which librosa needs, keeps what it compiles: as librosa is imported, it fails where it finds no place to write."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pipeline.runtime.process_folder import temporary_folder


def provide_numba_cache() -> None:
    """To be called before librosa is imported. Names a temporary folder where neither librosa's own nor the user's can be written.

    Raises OutputError where there is no folder for temporary files either.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    found = importlib.util.find_spec("librosa")
    own = [Path(found.origin).parent] if found is not None and found.origin else []
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not any(_can_be_written(folder) for folder in (*own, users)):
        os.environ["NUMBA_CACHE_DIR"] = str(temporary_folder() / "numba")


def _can_be_written(folder: Path) -> bool:
    """Of one that is not there: whether it can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
