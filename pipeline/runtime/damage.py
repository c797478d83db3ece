"""Files of a build's own that may be damaged. What cannot be read is not there: the log names it, and it is made again."""

from __future__ import annotations

import errno
import json
import logging
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.runtime.storage import Folder

LOG = logging.getLogger(__name__)

T = TypeVar("T")

UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What is raised while content is taken apart that is not what was written."""
OF_THE_FILE = frozenset(
    {errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENODATA, getattr(errno, "EUCLEAN", errno.EIO)}
)
"""Errors that say something of one file. Others (too many open files, a network that is gone) would meet the next one, too."""
MAX_TOLD = 20
"""Files that are named in the log, one a line, where many are damaged at once."""


def read_whole(folder: Folder, name: str, parse: Callable[[bytes], T]) -> T | None:
    """What ``parse`` makes of a file. None: it is missing, or damaged, which the log tells.

    Raises OSError where it is not the file that is at fault.
    """
    try:
        content = folder.read_bytes(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            raise
        LOG.warning("%s/%s cannot be read (%s): made again", folder, name, error.strerror)
        return None
    try:
        return parse(content)
    except UNREADABLE as error:
        LOG.warning("%s/%s is damaged (%s): made again", folder, name, described(error))
        return None


def read_json_whole(folder: Folder, name: str, parse: Callable[[Any], T]) -> T | None:
    """The same for JSON: ``parse`` is given its values."""
    return read_whole(folder, name, lambda content: parse(as_json(content)))


def as_json(content: bytes) -> Any:
    """Raises ValueError where it is none. Zeros are taken for no other encoding."""
    return json.loads(content.decode())


def described(error: Exception) -> str:
    """An error in a few words, whatever its kind."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError | TypeError) else str(error)


def tell_of(folder: Folder, damaged: dict[str, str]) -> None:
    """Names damaged files in the log, each with what is wrong; of many only the first."""
    for name, problem in sorted(damaged.items())[:MAX_TOLD]:
        LOG.warning("%s/%s %s: made again", folder, name, problem)
    if len(damaged) > MAX_TOLD:
        LOG.warning("%d more files below %s are missing or damaged: made again", len(damaged) - MAX_TOLD, folder)
