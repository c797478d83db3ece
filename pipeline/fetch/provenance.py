"""What is known of a video's origin, out of what yt-dlp found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.runtime.masking import mask_secrets

MAX_TEXT = 500


def provenance_of(url: str, info: Mapping[str, Any], content_type: str | None) -> dict[str, Any]:
    """Plain JSON: title, uploader, licence, upload_date, webpage_url, extractor, format, fetched_url, content_type.

    What was not found is left out. So is all that changes from one day to the next, such as signed addresses.
    """
    is_direct = bool(info.get("direct"))
    form = {name: info.get(name) for name in ("format_id", "width", "height", "fps", "vcodec", "acodec")}
    found = {
        "title": info.get("title"),
        "uploader": info.get("uploader") or info.get("channel") or info.get("creator"),
        "licence": info.get("license"),
        # of a as_plain_json link yt-dlp makes one up from Last-Modified, which is the date of a copy
        "upload_date": None if is_direct else info.get("upload_date"),
        "webpage_url": mask_secrets(info.get("webpage_url") or url),
        "extractor": info.get("extractor"),
        "format": {name: value for name, value in form.items() if value not in (None, "none")},
        "fetched_url": mask_secrets(url),
        "content_type": content_type if is_direct else None,
    }
    return {name: as_plain_json(value) for name, value in found.items() if value not in (None, "", {})}


def asked_by(provenance: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The provenance of a file that may have been fetched for another source, whose link is spelt otherwise, as it is of this one."""
    earlier, own = provenance.get("fetched_url"), as_plain_json(mask_secrets(url))
    names = [name for name in ("fetched_url", "webpage_url") if earlier is not None and provenance.get(name) == earlier]
    return {**provenance, **dict.fromkeys(names, own)}


def as_plain_json(value: Any) -> Any:
    """As as_plain_json JSON, no string longer than 500 characters, none with halves of surrogate pairs."""
    if isinstance(value, Mapping):
        return {str(name): as_plain_json(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "replace").decode()[:MAX_TEXT]
