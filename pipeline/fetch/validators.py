"""Validators of a file on a server, which change when the file changes: entity tag, time of the last change, length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Validators = dict[str, str]
"""``etag``, ``last_modified`` and ``length``, those of them that are known."""

_HEADERS = {"etag": "ETag", "last_modified": "Last-Modified", "length": "Content-Length"}
_DETAILS = {
    "etag": ("ETag", "etag", "md5Hash", "content_md5"),
    "last_modified": ("LastModified", "last_modified", "mtime", "updated", "modified", "created"),
    "length": ("size",),
}
"""Names that file systems of fsspec use for them."""


def of_headers(headers: Mapping[str, str]) -> Validators:
    """Validators from the headers of an HTTP answer. The length of a compressed body, or of a part, is not that of the file."""
    values = {name: headers.get(header) for name, header in _HEADERS.items()}
    if (part := headers.get("Content-Range")) is not None:
        values["length"] = part.rpartition("/")[2].replace("*", "")
    if headers.get("Content-Encoding") not in (None, "identity"):
        values["length"] = None
    return {name: str(value) for name, value in values.items() if value}


def of_details(details: Mapping[str, Any]) -> Validators:
    """Validators from the details of a file that a file system of fsspec gives."""
    values = {name: next((details[key] for key in keys if details.get(key)), None) for name, keys in _DETAILS.items()}
    return {name: str(value) for name, value in values.items() if value is not None}


def differ(before: Mapping[str, str], now: Mapping[str, str]) -> bool | None:
    """Whether the file has changed. If both have entity tags, these decide. None: they have no validator in common."""
    common = before.keys() & now.keys()
    if not common:
        return None
    decisive = {"etag"} & common or common
    return any(before[name] != now[name] for name in decisive)
