"""Reads files of a build's state that may be damaged. A damaged file counts as missing: the log names it, and it is made again."""

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
"""Errors that parsing damaged content can raise."""
OF_THE_FILE = frozenset(
    {errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENODATA, getattr(errno, "EUCLEAN", errno.EIO)}
)
"""Error numbers that concern one file only. Others (too many open files, no network) would occur with the next file, too."""
NAMED = "kept_as"
"""Key of a state file that holds the file's own name."""
MAX_LOGGED = 20
"""Most damaged files that are named in the log at once."""


def read_whole(folder: Folder, name: str, parse: Callable[[bytes], T]) -> T | None:
    """The file's content, parsed. None: it is missing, or damaged, which is logged.

    Raises OSError for errors that do not concern this file only.
    """
    try:
        content = folder.read_bytes(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            raise
        LOG.warning("%s/%s cannot be read (%s): it is made again", folder, name, error.strerror)
        return None
    try:
        return parse(content)
    except UNREADABLE as error:
        LOG.warning("%s/%s is damaged (%s): it is made again", folder, name, described(error))
        return None


def read_json_whole(folder: Folder, name: str, parse: Callable[[Any], T]) -> T | None:
    """Like :func:`read_whole` for JSON: ``parse`` gets its values."""
    return read_whole(folder, name, lambda content: parse(as_json(content)))


def write_named(folder: Folder, name: str, values: Mapping[str, Any]) -> None:
    """Writes JSON that contains its own name, so that a file in the wrong place is recognised."""
    folder.write_json(name, {**values, NAMED: name})


def read_named(folder: Folder, name: str, parse: Callable[[Any], T]) -> T | None:
    """Reads what :func:`write_named` wrote, like :func:`read_json_whole`. A file with another name in it is damaged. Files of older
    versions contain no name."""

    def parse_named(values: Any) -> T:
        without_name = dict(values)
        check_name(without_name.pop(NAMED, name), name)
        return parse(without_name)

    return read_json_whole(folder, name, parse_named)


def check_name(stored_name: str, name: str) -> None:
    """Raises ValueError if the name that is stored in a file is not its own."""
    if stored_name != name:
        raise ValueError(f"it is {stored_name}, put into the place of another")


def as_json(content: bytes) -> Any:
    """Parses JSON in UTF-8. Raises ValueError. (json.loads on bytes would take zeros for UTF-16 or UTF-32.)"""
    return json.loads(content.decode())


def described(error: Exception) -> str:
    """A short text of an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError | TypeError) else str(error)


def log_damage(folder: Folder, damaged: dict[str, str]) -> None:
    """Logs damaged files, each with its problem. Of many only the first are named."""
    for name, problem in sorted(damaged.items())[:MAX_LOGGED]:
        LOG.warning("%s/%s %s: it is made again", folder, name, problem)
    if len(damaged) > MAX_LOGGED:
        LOG.warning(
            "%d more files below %s are missing or damaged: they are made again", len(damaged) - MAX_LOGGED, folder
        )
