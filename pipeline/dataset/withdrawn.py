"""What was withdrawn from a dataset after it had been built: ``withdrawn.json`` beside the manifest. Later builds read it."""

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
"""There while sources are being withdrawn: what the indexes said that are being written anew."""
MAX_NAMED = 10
DETAIL = "withdrawn from the built dataset; no later build takes it up again"


class Gap(JsonRecord):
    """The place that a withdrawn clip had in its shard: the shards are filled as if it were still there."""

    key: str
    split: str
    num_bytes: int = Field(ge=0)
    """Of its members in the largest rendition."""


class Withdrawn(JsonRecord):
    """All sources that were ever withdrawn from one dataset, and the clips of theirs that had been kept."""

    format: Literal["hearscape-withdrawn"] = "hearscape-withdrawn"
    sources: tuple[str, ...] = Field(default=(), strict=False)
    """Ids, sorted."""
    gaps: tuple[Gap, ...] = Field(default=(), strict=False)
    """By key."""
    contents: tuple[str, ...] = Field(default=(), strict=False)
    """SHA-256 of the files that these sources were, as far as it is known, sorted: to know them under another id."""

    @property
    def samples(self) -> list[Sample]:
        """The gaps, for :func:`plan_shards`."""
        return [Sample(gap.key, gap.split, gap.num_bytes, "") for gap in self.gaps]

    def with_more(self, sources: Iterable[str], gaps: Iterable[Gap], contents: Iterable[str] = ()) -> Withdrawn:
        """Of a clip that is known already, what is known of it stays."""
        known = {gap.key: gap for gap in (*gaps, *self.gaps)}
        return Withdrawn(
            sources=tuple(sorted({*self.sources, *sources})),
            gaps=tuple(known[key] for key in sorted(known)),
            contents=tuple(sorted({*self.contents, *contents})),
        )


def read_withdrawn(output: Folder) -> Withdrawn:
    """Nothing was withdrawn where there is no such file. Raises ManifestError where it is damaged."""
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
    """For people. ``source_ids``: of sources that are the same file as a withdrawn one."""
    more = f" and {len(source_ids) - MAX_NAMED} more" if len(source_ids) > MAX_NAMED else ""
    return (
        f"{len(source_ids)} listed source(s) are the same file as one that was withdrawn, under another id or in another "
        f"section: {', '.join(source_ids[:MAX_NAMED])}{more}. Withdraw them as well, if they are meant, too"
    )


def withdrawn_record(source: Source) -> SourceRecord:
    """What the ledger says of a withdrawn source."""
    return SourceRecord(source, State.REJECTED, Reason.WITHDRAWN, DETAIL)
