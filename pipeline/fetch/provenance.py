"""The origin of a video, from what yt-dlp found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.runtime.masking import mask_secrets

MAX_TEXT = 500


def provenance_of(url: str, info: Mapping[str, Any], content_type: str | None) -> dict[str, Any]:
    """Plain JSON: title, uploader, licence, upload_date, webpage_url, extractor, format, fetched_url, content_type.

    Values that are not known are left out, and values that change between days, such as signed addresses.
    """
    is_direct = bool(info.get("direct"))
    media_format = {name: info.get(name) for name in ("format_id", "width", "height", "fps", "vcodec", "acodec")}
    values = {
        "title": info.get("title"),
        "uploader": info.get("uploader") or info.get("channel") or info.get("creator"),
        "licence": info.get("license"),
        # for a plain link yt-dlp takes it from Last-Modified, which is the date of a copy
        "upload_date": None if is_direct else info.get("upload_date"),
        "webpage_url": mask_secrets(info.get("webpage_url") or url),
        "extractor": info.get("extractor"),
        "format": {name: value for name, value in media_format.items() if value not in (None, "none")},
        "fetched_url": mask_secrets(url),
        "content_type": content_type if is_direct else None,
    }
    return {name: as_plain_json(value) for name, value in values.items() if value not in (None, "", {})}


def with_own_link(provenance: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The provenance with the link of this source: the file may have been fetched for another source, with another spelling of it."""
    earlier, own = provenance.get("fetched_url"), as_plain_json(mask_secrets(url))
    names = [name for name in ("fetched_url", "webpage_url") if earlier is not None and provenance.get(name) == earlier]
    return {**provenance, **dict.fromkeys(names, own)}


def as_plain_json(value: Any) -> Any:
    """The value as plain JSON: texts are cut to 500 characters, and lone surrogates in them are replaced."""
    if isinstance(value, Mapping):
        return {str(name): as_plain_json(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "replace").decode()[:MAX_TEXT]
