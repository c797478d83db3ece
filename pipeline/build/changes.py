"""Which sources are another file now than the one that an earlier run has worked on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pipeline.dataset.source_records import DoneRecords
from pipeline.errors import ClipError
from pipeline.fetch.download import LOCAL, ask, fetch_key
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.passthrough import key_of_link, use_local
from pipeline.fetch.settings import DownloadSettings
from pipeline.fetch.validators import differ
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.stop import Stop
from pipeline.schema import Source
from pipeline.sources.links import scheme_of

LOG = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

MAX_NAMED = 10
"""Sources that are named one by one where it is said which have changed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """``replaced``: the ids of sources that are another file now. ``unasked``: of those whose server gave no answer."""

    replaced: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """For people."""
        notes = []
        if self.replaced:
            notes.append(
                f"{len(self.replaced)} source(s) were replaced since an earlier run, and are done again: {_named(self.replaced)}"
            )
        if self.unasked:
            notes.append(
                f"{len(self.unasked)} source(s) could not be asked whether they have changed, and stay as they are: "
                f"{_named(self.unasked)}"
            )
        return notes


def _named(source_ids: Sequence[str]) -> str:
    more = f" and {len(source_ids) - MAX_NAMED} more" if len(source_ids) > MAX_NAMED else ""
    return ", ".join(source_ids[:MAX_NAMED]) + more


class Looker:
    """Looks at the sources of a list. ``num_threads`` read files or ask servers at once."""

    def __init__(self, store: DownloadStore, settings: DownloadSettings, stop: Stop, num_threads: int) -> None:
        self._store, self._settings, self._stop = store, settings, stop
        self._num_threads = num_threads

    def look(self, listed: Sequence[Source], finished: Mapping[str, str], records: DoneRecords) -> Changes:
        """``finished``: where the records of those lie that have come to an end, by id."""
        replaced = sorted(self._replaced_here(listed, finished, records))
        unasked: list[str] = []
        if self._settings.check_for_changes:
            elsewhere, unasked = self._replaced_elsewhere(listed)
            replaced = sorted([*replaced, *elsewhere])
        return Changes(tuple(replaced), tuple(sorted(unasked)))

    def forget(self, listed: Sequence[Source], changes: Changes, records: DoneRecords) -> None:
        """Lets what is known of the replaced sources be found out anew."""
        replaced = set(changes.replaced)
        if replaced:
            records.forget(replaced)
        for source in listed:
            if source.source_id in replaced and scheme_of(source.url) not in LOCAL:
                self._store.forget(fetch_key(source, self._settings))

    def _replaced_here(
        self, listed: Sequence[Source], finished: Mapping[str, str], records: DoneRecords
    ) -> Iterator[str]:
        """Of files on this machine, by size, times and inode, and where these are others by what is in them. One that is gone by now
        changes nothing."""
        local = {s.source_id: s for s in listed if s.source_id in finished and scheme_of(s.url) in LOCAL}
        to_hash: list[tuple[Source, str]] = []
        for source_id, sha256, looked_at in records.contents({name: finished[name] for name in sorted(local)}):
            self._stop.check()
            key = key_of_link(local[source_id].url)
            if sha256 is None:
                if looked_at is not None and looked_at != key:
                    yield source_id
            elif key:
                known = self._store.known(key)
                if known is None:
                    to_hash.append((local[source_id], sha256))
                elif known.sha256 != sha256:
                    yield source_id
        if to_hash:
            LOG.info("reading %d files that have changed, or that nobody knows any more", len(to_hash))
        for (source, _), is_other in self._each(lambda pair: self._is_other(*pair), to_hash):
            if is_other:
                yield source.source_id

    def _each(self, look: Callable[[T], R], things: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Each with what is found of it, in their order. Ctrl-C does not wait for those that are not begun."""
        pool = ThreadPoolExecutor(self._num_threads)
        try:
            yield from zip(things, pool.map(look, things), strict=True)
        except KeyboardInterrupt:
            self._stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _is_other(self, source: Source, sha256: str) -> bool:
        self._stop.check()
        try:
            fetched = use_local(source.url, self._store)
        except ClipError:
            return True  # what is wrong with it is found out when it is carried
        self._store.release(fetched.content_sha256)
        return fetched.content_sha256 != sha256

    def _replaced_elsewhere(self, listed: Sequence[Source]) -> tuple[list[str], list[str]]:
        """Of plain files that were fetched from servers: those that are others now, and those whose server gave no answer."""
        known = {
            source: record.validators
            for source in listed
            if scheme_of(source.url) not in LOCAL
            and (record := self._store.known(fetch_key(source, self._settings))) is not None
            and record.validators
        }
        if known:
            LOG.info("asking servers whether %d files have changed", len(known))
        hosts = self._settings.host_gate()

        def has_changed(source: Source) -> bool | None:
            try:
                return differ(known[source], ask(source, self._settings, hosts, self._stop))
            except ClipError as error:
                LOG.warning("%s could not be asked whether it has changed: %s", mask_secrets(source.url), error)
                return None

        answers = dict(self._each(has_changed, list(known)))
        return (
            [source.source_id for source, changed in answers.items() if changed],
            [source.source_id for source, changed in answers.items() if changed is None],
        )
