"""Explains errors of disks and folders: what happened, and what the user can do."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import OutputError
from pipeline.runtime.folder import DISK_FULL_ERRNOS

AGAIN = "and run the same command again, which continues with what was finished"


def disk_error(error: OSError, folders: Mapping[str, Path | None]) -> OutputError | None:
    """The explanation of an error by which a disk is full or one of ``folders`` (path by name) cannot be used any more.

    None: the error is none of these, and so a bug.
    """
    if error.errno == errno.EFBIG:
        return OutputError(
            f"a file exceeded the largest file size of {_folder_name(error, folders)}: raise the limit (ulimit -f), or lower "
            f"shards.max_bytes if the disk does not support larger files, {AGAIN}"
        )
    if error.errno in DISK_FULL_ERRNOS:
        return OutputError(
            f"no space left on the disk of {_folder_name(error, folders)}: free some and run the same command again"
        )
    if error.errno == errno.EMFILE:
        return OutputError(f"too many files are open at once ({error}): raise the limit (ulimit -n), {AGAIN}")
    if error.errno == errno.EROFS:
        return OutputError(
            f"{error.filename or _folder_name(error, folders)}: the disk has become read-only: repair it, {AGAIN}"
        )
    name = _folder_of(error, folders)
    if name is None:
        return None
    what = f"{error.filename}: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return OutputError(
            f"{what}. Was it removed while the build ran ({name})? Do not change the folder during a build, {AGAIN}"
        )
    return OutputError(f"{what} ({name}): correct the folder's permissions or repair its disk, {AGAIN}")


def _folder_of(error: OSError, folders: Mapping[str, Path | None]) -> str | None:
    """Name of the folder that contains the error's file. None: none of them does."""
    if not isinstance(error.filename, str) or not Path(error.filename).is_absolute():
        return None
    path = Path(error.filename)
    known = {**folders, "the folder for temporary files, $TMPDIR": Path(tempfile.gettempdir())}
    inside = [(len(str(root)), name) for name, root in known.items() if root and path.is_relative_to(root.absolute())]
    return max(inside)[1] if inside else None


def _folder_name(error: OSError, folders: Mapping[str, Path | None]) -> str:
    """Name of the folder that contains the error's file, or else of the first folder."""
    return _folder_of(error, folders) or next(iter(folders))
