"""Files of a build's own that may be damaged. What cannot be read is not there: the log names it, and it is made again."""

from __future__ import annotations

import errno
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.runtime.folder import Folder

LOG = logging.getLogger(__name__)

T = TypeVar("T")

UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What is raised while content is taken apart that is not what was written."""
OF_THE_FILE = frozenset(
    {errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENODATA, getattr(errno, "EUCLEAN", errno.EIO)}
)
"""Errors that say something of one file. Others (too many open files, a network that is gone) would meet the next one, too."""
NAMED = "kept_as"
"""In a file of the state: its own name there."""
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


def write_named(folder: Folder, name: str, values: Mapping[str, Any]) -> None:
    """Writes JSON that says where it belongs: put into another's place, it is not taken for what should lie there."""
    folder.write_json(name, {**values, NAMED: name})


def read_named(folder: Folder, name: str, parse: Callable[[Any], T]) -> T | None:
    """What :func:`write_named` wrote, as :func:`read_json_whole`; what belongs elsewhere is damaged. Files of older versions do not
    say where they belong."""

    def parse_named(values: Any) -> T:
        kept = dict(values)
        check_name(kept.pop(NAMED, name), name)
        return parse(kept)

    return read_json_whole(folder, name, parse_named)


def check_name(found: str, wanted: str) -> None:
    """Raises ValueError where a file says that it is another one."""
    if found != wanted:
        raise ValueError(f"it is {found}, put into the place of another")


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
