"""Removes the files of sources from ``state``: downloads, cuts, previews, measures, embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.runtime.folder import Folder
from pipeline.runtime.output_lock import STATE_NAME

LOG = logging.getLogger(__name__)


def remove_state_files(output: Folder, source_ids: Collection[str]) -> list[str]:
    """Removes the files that only these sources need; returns their names in ``state``, sorted. Reads the records of all sources.

    The records themselves stay: they hold numbers and the origin. A download store elsewhere (``execution.store``) is not changed.
    """
    state = Folder(f"{output.url.rstrip('/')}/{STATE_NAME}")
    theirs: set[str] = set()
    others: set[str] = set()
    for record in _records(state):
        (theirs if record["source"]["source_id"] in source_ids else others).update(_files_of(record))
    removed = [name for name in theirs - others if not name.startswith("sha256:") and state.exists(name)]
    stored = {name.rpartition("/")[2].partition(".")[0]: name for name in state.walk("downloads/objects")}
    removed += [stored[sha256] for sha256 in {name.removeprefix("sha256:") for name in theirs - others} & stored.keys()]
    state.remove_for_good(sorted(removed))
    return sorted(removed)


def _records(state: Folder) -> Iterator[Mapping[str, Any]]:
    for name in state.walk("done"):
        parsed = [_parsed(line) for line in state.read_bytes(name).splitlines()]
        records = [values for values in parsed if "source" in values]
        header = parsed[0] if name.endswith(".jsonl") and parsed else {"sources": [name]}
        if len(records) != len(header.get("sources", ())) or not records:
            LOG.warning(
                "%s/%s is damaged: files of a source whose record cannot be read are not removed. To remove them, delete %s",
                *(state, name, state),
            )
        yield from records


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _files_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Names in ``state`` of a source's files. The downloaded file is given as ``sha256:`` and its sum."""
    if record.get("content_sha256"):
        yield f"sha256:{record['content_sha256']}"
    if measured := record.get("measured_key"):
        yield f"measured/{measured[:2]}/{measured}.json"
        yield from (f"previews/{measured[:2]}/{measured}{suffix}" for suffix in (".frames.npz", ".flac"))
    if embedded := record.get("embedded_key"):
        yield f"embedded/{embedded[:2]}/{embedded}.npz"
    for clip in record.get("clips") or ():
        if cut := clip.get("cut_key"):
            yield f"cuts/{cut[:2]}/{cut}"
