"""Errors of the folders that a build works in, as what its user can put right."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import OutputError
from pipeline.runtime.folder import DISK_FULL_ERRNOS

AGAIN = "and run the same command again, which goes on with what was finished"


def disk_error(error: OSError, folders: Mapping[str, Path | None]) -> OutputError | None:
    """What to say of an error that says that a disk is full or that one of ``folders`` (by name) cannot be used any more.

    None: it is neither, and so a bug.
    """
    if error.errno == errno.EFBIG:
        return OutputError(
            f"a file grew larger than one may be on {_place(error, folders)}: raise the limit (ulimit -f), or lower "
            f"shards.max_bytes where the disk cannot hold larger files, {AGAIN}"
        )
    if error.errno in DISK_FULL_ERRNOS:
        return OutputError(
            f"no space left on the disk of {_place(error, folders)}: free some and run the same command again"
        )
    if error.errno == errno.EMFILE:
        return OutputError(f"too many files are open at once ({error}): raise the limit (ulimit -n), {AGAIN}")
    if error.errno == errno.EROFS:
        return OutputError(
            f"{error.filename or _place(error, folders)}: the disk takes no more writes: mend it, {AGAIN}"
        )
    name = _named(error, folders)
    if name is None:
        return None
    what = f"{error.filename}: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return OutputError(f"{what}. Was it removed while the build ran ({name})? Leave the folder alone, {AGAIN}")
    return OutputError(f"{what} ({name}): mend the folder's rights or its disk, {AGAIN}")


def _named(error: OSError, folders: Mapping[str, Path | None]) -> str | None:
    """The folder in which the error's file lies."""
    if not isinstance(error.filename, str) or not Path(error.filename).is_absolute():
        return None
    path = Path(error.filename)
    known = {**folders, "the folder for temporary files, $TMPDIR": Path(tempfile.gettempdir())}
    inside = [(len(str(root)), name) for name, root in known.items() if root and path.is_relative_to(root.absolute())]
    return max(inside)[1] if inside else None


def _place(error: OSError, folders: Mapping[str, Path | None]) -> str:
    return _named(error, folders) or next(iter(folders))
