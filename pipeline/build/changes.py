"""Finds the sources whose file was replaced since an earlier run processed it."""

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
"""How many sources a note names."""


@dataclass(frozen=True, slots=True)
class Changes:
    """``replaced``: ids of sources whose file was replaced. ``unasked``: ids of sources whose server gave no answer."""

    replaced: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Notes for the build's summary."""
        notes = []
        if self.replaced:
            notes.append(
                f"{len(self.replaced)} source(s) were replaced since an earlier run and are processed again: {_named(self.replaced)}"
            )
        if self.unasked:
            notes.append(
                f"{len(self.unasked)} source(s) could not be checked for changes, and their earlier results are kept: "
                f"{_named(self.unasked)}"
            )
        return notes


def _named(source_ids: Sequence[str]) -> str:
    more = f" and {len(source_ids) - MAX_NAMED} more" if len(source_ids) > MAX_NAMED else ""
    return ", ".join(source_ids[:MAX_NAMED]) + more


class ChangeFinder:
    """Finds replaced files among listed sources. ``num_threads`` threads read files or ask servers."""

    def __init__(self, store: DownloadStore, settings: DownloadSettings, stop: Stop, num_threads: int) -> None:
        self._store, self._settings, self._stop = store, settings, stop
        self._num_threads = num_threads

    def find(self, listed: Sequence[Source], finished: Mapping[str, str], records: DoneRecords) -> Changes:
        """``finished``: names of the files with the records of finished sources, by source id, as :meth:`DoneRecords.read` takes it."""
        replaced = sorted(self._replaced_here(listed, finished, records))
        unasked: list[str] = []
        if self._settings.check_for_changes:
            elsewhere, unasked = self._replaced_elsewhere(listed)
            replaced = sorted([*replaced, *elsewhere])
        return Changes(tuple(replaced), tuple(sorted(unasked)))

    def forget(self, listed: Sequence[Source], changes: Changes, records: DoneRecords) -> None:
        """Removes the records of the replaced sources, and their entries in the download store."""
        replaced = set(changes.replaced)
        if replaced:
            records.forget(replaced)
        for source in listed:
            if source.source_id in replaced and scheme_of(source.url) not in LOCAL:
                self._store.forget(fetch_key(source, self._settings))

    def _replaced_here(
        self, listed: Sequence[Source], finished: Mapping[str, str], records: DoneRecords
    ) -> Iterator[str]:
        """Ids of sources whose local file was replaced. A file with the same size, times and inode is the same; otherwise its content is
        compared. A file that does not exist any more does not count as replaced."""
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
            LOG.info("reading %d files whose size, time or inode changed or is not recorded", len(to_hash))
        for (source, _), is_other in self._each(lambda pair: self._is_other(*pair), to_hash):
            if is_other:
                yield source.source_id

    def _each(self, look: Callable[[T], R], things: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Each of ``things`` with the result of ``look``, in their order. Ctrl-C does not wait for those that have not started."""
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
            return True  # processing the source reports the error
        self._store.release(fetched.content_sha256)
        return fetched.content_sha256 != sha256

    def _replaced_elsewhere(self, listed: Sequence[Source]) -> tuple[list[str], list[str]]:
        """Of plain files that were fetched from servers: ids of the replaced ones, and of those whose server gave no answer."""
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
                LOG.warning("%s could not be checked for changes: %s", mask_secrets(source.url), error)
                return None

        answers = dict(self._each(has_changed, list(known)))
        return (
            [source.source_id for source, changed in answers.items() if changed],
            [source.source_id for source, changed in answers.items() if changed is None],
        )
