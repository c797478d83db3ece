"""Gives numba, which librosa imports, a folder for compiled code: without a writable one the import of librosa fails."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pipeline.runtime.process_folder import temporary_folder


def provide_numba_cache() -> None:
    """Must be called before librosa is imported. Uses a temporary folder if neither librosa's nor the user's cache folder is writable.

    Raises OutputError if there is no folder for temporary files either.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    spec = importlib.util.find_spec("librosa")
    package_folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    user_folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not any(_can_be_written(folder) for folder in (*package_folders, user_folder)):
        os.environ["NUMBA_CACHE_DIR"] = str(temporary_folder() / "numba")


def _can_be_written(folder: Path) -> bool:
    """Whether the folder is writable, or can be created if it does not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
