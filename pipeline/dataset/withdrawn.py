"""``withdrawn.json`` beside the manifest: the sources that were withdrawn from a built dataset. Later builds read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from pipeline.dataset.manifest import canonical_json
from pipeline.dataset.shards import Sample
from pipeline.dataset.source_records import SourceRecord
from pipeline.errors import ManifestError
from pipeline.runtime.folder import Folder
from pipeline.schema import Reason, Source, State
from pipeline.settings import JsonRecord

NAME = "withdrawn.json"
JOURNAL_NAME = "state/withdrawing.json"
"""Exists while sources are being withdrawn. It holds what the indexes that are being rewritten said before."""
MAX_NAMED = 10
DETAIL = "withdrawn from the built dataset; later builds leave it out"


class Gap(JsonRecord):
    """The place of a withdrawn clip in its shard. Shards are filled as if it were still there, so that the others do not change."""

    key: str
    split: str
    num_bytes: int = Field(ge=0)
    """Size of its members in the largest rendition."""


class Withdrawn(JsonRecord):
    """All sources that were ever withdrawn from one dataset, and their clips that had been kept."""

    format: Literal["hearscape-withdrawn"] = "hearscape-withdrawn"
    sources: tuple[str, ...] = Field(default=(), strict=False)
    """Ids, sorted."""
    gaps: tuple[Gap, ...] = Field(default=(), strict=False)
    """Sorted by key."""
    contents: tuple[str, ...] = Field(default=(), strict=False)
    """SHA-256 of the files of these sources, if known, sorted. They identify a withdrawn file that is listed under another id."""

    @property
    def samples(self) -> list[Sample]:
        """The gaps, for :func:`plan_shards`."""
        return [Sample(gap.key, gap.split, gap.num_bytes, "") for gap in self.gaps]

    def with_more(self, sources: Iterable[str], gaps: Iterable[Gap], contents: Iterable[str] = ()) -> Withdrawn:
        """A copy with more sources, gaps and contents. A gap that it has already is not replaced."""
        gap_of = {gap.key: gap for gap in (*gaps, *self.gaps)}
        return Withdrawn(
            sources=tuple(sorted({*self.sources, *sources})),
            gaps=tuple(gap_of[key] for key in sorted(gap_of)),
            contents=tuple(sorted({*self.contents, *contents})),
        )


def read_withdrawn(output: Folder) -> Withdrawn:
    """Reads ``withdrawn.json``. Without such a file nothing was withdrawn. Raises ManifestError if it is damaged."""
    try:
        content = output.read_bytes(NAME)
    except FileNotFoundError:
        return Withdrawn()
    except OSError as error:
        raise ManifestError(f"{output}/{NAME} cannot be read ({error.strerror or error}): put back a copy") from error
    try:
        return Withdrawn.model_validate(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{output}/{NAME} is damaged ({error}): put back a copy. Without it withdrawn sources would be built again"
        ) from error


def write_withdrawn(withdrawn: Withdrawn, output: Folder) -> None:
    output.write_bytes(NAME, canonical_json(withdrawn.model_dump(mode="json"), indent=1))


def same_files_note(source_ids: Sequence[str]) -> str:
    """A note for the build's summary. ``source_ids``: sources whose file is that of a withdrawn source."""
    more = f" and {len(source_ids) - MAX_NAMED} more" if len(source_ids) > MAX_NAMED else ""
    return (
        f"{len(source_ids)} listed source(s) are the same file as one that was withdrawn, under another id or in another "
        f"section: {', '.join(source_ids[:MAX_NAMED])}{more}. They stay in the dataset: withdraw them as well if that is not wanted"
    )


def withdrawn_record(source: Source) -> SourceRecord:
    """The record of a withdrawn source, for the ledger."""
    return SourceRecord(source, State.REJECTED, Reason.WITHDRAWN, DETAIL)
