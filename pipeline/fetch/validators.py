"""What a server says of a file that changes when the file does: entity tag, time of the last change, length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Validators = dict[str, str]
"""Of ``etag``, ``last_modified`` and ``length`` those that are known."""

_HEADERS = {"etag": "ETag", "last_modified": "Last-Modified", "length": "Content-Length"}
_DETAILS = {
    "etag": ("ETag", "etag", "md5Hash", "content_md5"),
    "last_modified": ("LastModified", "last_modified", "mtime", "updated", "modified", "created"),
    "length": ("size",),
}
"""As fsspec's file systems name them."""


def of_headers(headers: Mapping[str, str]) -> Validators:
    """Of the answer of a web server. The length of a packed body is not the file's, nor is that of a part."""
    found = {name: headers.get(header) for name, header in _HEADERS.items()}
    if (part := headers.get("Content-Range")) is not None:
        found["length"] = part.rpartition("/")[2].replace("*", "")
    if headers.get("Content-Encoding") not in (None, "identity"):
        found["length"] = None
    return {name: str(value) for name, value in found.items() if value}


def of_details(details: Mapping[str, Any]) -> Validators:
    """Of what a file system of fsspec says of a file."""
    found = {name: next((details[key] for key in keys if details.get(key)), None) for name, keys in _DETAILS.items()}
    return {name: str(value) for name, value in found.items() if value is not None}


def differ(before: Mapping[str, str], now: Mapping[str, str]) -> bool | None:
    """Whether the file has changed; entity tags decide where both have one. None: they have nothing in common."""
    common = before.keys() & now.keys()
    if not common:
        return None
    decisive = {"etag"} & common or common
    return any(before[name] != now[name] for name in decisive)
