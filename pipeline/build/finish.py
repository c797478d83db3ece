"""Finishes a build: the rules over the whole dataset, the shards, the tables, the manifest."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pipeline.build.own_threshold import AgreementResult, settle_agreement
from pipeline.build.recipe import BuildRecipe
from pipeline.build.shard_contents import ShardContents, embeddings_of, sample_json
from pipeline.build.state_cleanup import remove_state_files
from pipeline.dataset.balance import BalanceItem, balance
from pipeline.dataset.dedup import Fingerprint, find_duplicates
from pipeline.dataset.funnel import Funnel
from pipeline.dataset.ledger import LEDGER_NAME, write_ledger
from pipeline.dataset.manifest import (
    FileRecord,
    Manifest,
    Rendition,
    ShardRecord,
    canonical_json,
    read_manifest,
    write_manifest,
)
from pipeline.dataset.repeats import Stretch, repeat_notes
from pipeline.dataset.shards import Sample, ShardPlan, member_names, plan_shards, remove_other_shards, write_shard
from pipeline.dataset.source_records import ClipRecord, DoneRecords, SourceRecord, outcome_of_clips
from pipeline.dataset.split import SplitItem, assign_splits
from pipeline.dataset.tables import ClipRow, EmbeddingRow, write_embeddings, write_samples
from pipeline.dataset.withdrawn import JOURNAL_NAME, read_withdrawn, same_files_note, withdrawn_record
from pipeline.errors import DamagedStateError, ManifestError, NothingKeptError
from pipeline.events import Listener, Stage, StageEvent
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.measure.video import measure_versions
from pipeline.media.cut import CutClip, CutSettings
from pipeline.media.ffmpeg import versions
from pipeline.runtime.damage import log_damage, read_json_whole
from pipeline.runtime.folder import Folder
from pipeline.runtime.installed import installed_version
from pipeline.runtime.masking import mask_secrets, masked_values
from pipeline.schema import Source, State, Verdict, stable_hash
from pipeline.sources.lists import SourceList

LOG = logging.getLogger(__name__)

PACKING_NAME = "packing.json"
"""A file in ``state`` that exists while shards are written: it lists their paths."""
VIDEO_CODECS = {"x264": "h264", "svt_av1": "av1", "nvenc": "h264"}


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """Result of a finished build."""

    name: str
    manifest_path: str
    funnel: tuple[str, ...]
    rows: tuple[Mapping[str, str | int], ...]
    shards: tuple[str, ...]
    notes: tuple[str, ...] = ()
    report_path: str | None = None
    """Path of the report. None: none was made."""

    def to_markdown(self) -> str:
        listed = "\n".join(f"- `{path}`" for path in self.shards[:50])
        more = f"\n- and {len(self.shards) - 50} more" if len(self.shards) > 50 else ""
        notes = "".join(f"\n> {note}\n" for note in self.notes)
        funnel = "\n".join(self.funnel)
        return f"# {self.name}\n\n```\n{funnel}\n```\n{notes}\nManifest: `{self.manifest_path}`\n\n{listed}{more}\n"


@dataclass(slots=True)
class _KeptClip:
    """A clip that its own measures keep, as the rules over the whole dataset need it."""

    key: str
    source: Source
    content_sha256: str
    picture_hash: str
    sound_hash: str
    duration_ms: int
    quality: tuple[float, ...]
    cut_key: str
    stretch: Stretch


@dataclass(slots=True)
class _Decisions:
    """Decisions of the rules over the whole dataset, by key of the clip."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    shard_of: dict[str, str] = field(default_factory=dict)


class Finish:
    """Finishes one build. It reads the records of all sources several times, a batch at a time, so that only what the rules need of each
    clip is in memory."""

    def __init__(
        self,
        recipe: BuildRecipe,
        output: Folder,
        state: Folder,
        records: DoneRecords,
        listed: SourceList,
        encoder_id: str | None,
        rule: AgreementRule,
        workers: int,
        scratch: Path,
    ) -> None:
        """``rule``: the rule of agreement that the clips were judged by. ``scratch``: a folder for temporary files."""
        self.recipe, self.output, self.state, self.records, self.listed = recipe, output, state, records, listed
        self.encoder_id, self.workers, self._scratch = encoder_id, workers, scratch
        known = records.index(listed.sources)
        self._withdrawn = read_withdrawn(output)
        self._repeats: list[str] = []
        self._same_files: list[str] = []  # ids of sources whose file is that of a withdrawn source
        withdrawn_ids = frozenset(self._withdrawn.sources)
        listed_by_id = sorted(listed.sources, key=_source_id)
        self._withdrawn_sources = [source for source in listed_by_id if source.source_id in withdrawn_ids]
        self._files = {  # name of the file with its record, by source id
            s.source_id: known[s.source_id].name
            for s in listed_by_id
            if s.source_id in known and s.source_id not in withdrawn_ids
        }
        self._decisions = _Decisions()
        self._agreement = AgreementResult(rule)

    def run(self, listener: Listener) -> BuildSummary:
        """Writes the dataset.

        Raises NothingKeptError, after writing the ledger and the table of clips, and CalibrationError as :func:`settle_agreement`.
        Raises DamagedStateError if state files are missing or damaged, after removing them and the records of their sources, so that
        these sources can be processed again.
        """
        try:
            return self._run(listener)
        except DamagedStateError as error:
            damage = self._all_damage(error)
            log_damage(self.state, damage.files)
            for name in damage.files:
                if not name.startswith("done/"):
                    self.state.remove(name)
            self.records.forget(damage.source_ids)
            raise damage from error

    def _all_damage(self, first: DamagedStateError) -> DamagedStateError:
        """All damage among the records and the embeddings, so that finishing need not start again for each damaged file."""
        self.records.repair()
        known = self.records.index()
        lost = [source_id for source_id in self._files if source_id not in known]
        errors = [first, DamagedStateError(lost, {})]
        for record in self.records.read(
            {source_id: known[source_id].name for source_id in self._files if source_id in known}
        ):
            try:
                for _ in embeddings_of(record, self.state):
                    pass
            except DamagedStateError as error:
                errors.append(error)
        return _together(errors)

    def _run(self, listener: Listener) -> BuildSummary:
        with _timed(listener, "dedup"):
            self._agreement = settle_agreement(
                self.recipe, self._agreement.rule, self.encoder_id, self._all, self.state
            )
            self._decisions.verdicts.update(self._agreement.verdicts)
            kept = [clip for clip in self._kept() if clip.key not in self._agreement.verdicts]
            duplicates = find_duplicates((_fingerprint(clip) for clip in kept), self.recipe.dedup)
            self._decisions.verdicts.update(duplicates.verdicts)
        with _timed(listener, "split"):
            staying = [clip for clip in kept if clip.key not in duplicates.verdicts]
            self._decisions.verdicts.update(balance((_balance_item(clip) for clip in staying), self.recipe.balance))
            staying = [clip for clip in staying if clip.key not in self._decisions.verdicts]
            self._repeats = repeat_notes([clip.stretch for clip in staying], self.recipe.dedup)
            splits = assign_splits((_split_item(clip) for clip in kept), duplicates.groups, self.recipe.split)
            self._decisions.split_of = {clip.key: splits.of[clip.key] for clip in staying}
            for conflict in splits.conflicts:
                LOG.warning(
                    "sources %s were listed in other splits, but are related to sources of the split %s and are moved there",
                    ", ".join(conflict.moved),
                    conflict.split,
                )
        del kept, staying
        plans = plan_shards(self._samples(), self.recipe.shards, self._withdrawn.samples)
        for plan in plans:
            self._decisions.shard_of.update((sample.key, plan.file_name) for sample in plan.samples)
        earlier = self._note_packing(plans)
        shards = self._write_shards(plans, listener)
        with _timed(listener, "manifest"):
            funnel, files = self._write_tables()
            if not shards:
                self.output.remove("manifest.json")
                raise NothingKeptError(
                    f"no clip was kept: {funnel.most_rejecting()}. {LEDGER_NAME} in {self.output} has the reason for each source"
                )
            path = write_manifest(self._manifest(funnel, shards, files), self.output)
            remove_other_shards(self.output, shards, earlier)
            self.state.remove(PACKING_NAME)
            self._end_withdrawal()
            if not self.recipe.execution.keep_cuts:
                self.state.remove("cuts")
        listed = tuple(str(shard.path) for shard in shards)
        notes = (
            *self._agreement.notes,
            *self._repeats,
            *([same_files_note(self._same_files)] if self._same_files else []),
        )
        return BuildSummary(self.recipe.name, path, tuple(funnel.lines()), tuple(funnel.rows()), listed, notes)

    def _end_withdrawal(self) -> None:
        """Does the last steps of a withdrawal that was interrupted."""
        if self.output.exists(JOURNAL_NAME):
            remove_state_files(self.output, self._withdrawn.sources)
            self.output.remove(JOURNAL_NAME)

    def _all(self, only: Collection[str] | None = None) -> Iterator[SourceRecord]:
        """The records of all sources, or of those whose ids are in ``only``, sorted by id."""
        read = self.records.read({name: file for name, file in self._files.items() if only is None or name in only})
        withdrawn = (
            withdrawn_record(source) for source in self._withdrawn_sources if only is None or source.source_id in only
        )
        return heapq.merge(read, withdrawn, key=_source_id_of_record)

    def _kept(self) -> Iterator[_KeptClip]:
        for record in self._all():
            for clip in record.clips:
                if clip.state is State.KEPT:
                    assert clip.sound is not None and record.content_sha256 is not None and record.facts is not None
                    short_side = record.facts.video.short_side if record.facts.video else 0
                    yield _KeptClip(
                        record.key_of(clip),
                        record.source,
                        record.content_sha256,
                        clip.picture.picture_hash,
                        clip.sound.sound_hash,
                        clip.span.duration_ms,
                        (
                            float(short_side),
                            clip.agreement.agreement if clip.agreement else 0.0,
                            clip.picture.sharpness,
                        ),
                        clip.cut_key or "",
                        _stretch(record, clip),
                    )

    def _final(self, record: SourceRecord) -> SourceRecord:
        """The record after the rules over the whole dataset."""
        clips = tuple(self._final_clip(record.key_of(clip), clip) for clip in record.clips)
        if not clips:
            return record
        state, reason, detail = outcome_of_clips([(clip.state, clip.reason) for clip in clips])
        return replace(record, clips=clips, state=state, reason=reason, detail=detail)

    def _final_clip(self, key: str, clip: ClipRecord) -> ClipRecord:
        verdict = self._decisions.verdicts.get(key)
        return (
            clip
            if verdict is None
            else replace(clip, state=State.REJECTED, reason=verdict.reason, detail=verdict.detail)
        )

    def _samples(self) -> Iterator[Sample]:
        for record in self._all():
            for clip in record.clips:
                split = self._decisions.split_of.get(record.key_of(clip))
                if split is not None and clip.cut is not None:
                    content = stable_hash(
                        canonical_json(sample_json(record, clip, split)),
                        clip.cut_key,
                        record.embedded_key,
                        length=32,
                    )
                    yield Sample(record.key_of(clip), split, _num_bytes(clip.cut), content)

    def _note_packing(self, plans: Sequence[ShardPlan]) -> list[str]:
        """Stores and returns the paths of all tars that this or an earlier build wrote or will write. They are stored before the first
        is written: a new tar has no index for a moment, without which it would not be recognised as a build's."""
        try:
            before = [shard.path for shard in read_manifest(self.output.url).shards]
        except ManifestError:
            before = []
        stored = read_json_whole(self.state, PACKING_NAME, lambda values: [str(path) for path in values["shards"]])
        planned = [plan.path(rendition.name) for rendition in self.recipe.cut.renditions for plan in plans]
        paths = sorted({*before, *(stored or ()), *planned})
        self.state.write_json(PACKING_NAME, {"shards": paths})
        return paths

    def _write_shards(self, plans: Sequence[ShardPlan], listener: Listener) -> list[ShardRecord]:
        wanted = [(plan, rendition.name) for rendition in self.recipe.cut.renditions for plan in plans]
        pool = ThreadPoolExecutor(self.workers)
        try:
            written = list(pool.map(lambda job: self._write_shard(job[0], job[1], listener), wanted))
        finally:
            pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for shards that have not started
        if damage := [one for one in written if isinstance(one, DamagedStateError)]:
            raise _together(damage)
        records = [one for one in written if isinstance(one, ShardRecord)]
        return sorted(records, key=lambda record: (record.rendition, record.path))

    def _write_shard(self, plan: ShardPlan, rendition: str, listener: Listener) -> ShardRecord | DamagedStateError:
        """The record of the shard, or the damage of all cuts of its samples."""
        sources = {sample.key.rsplit("_", 2)[0] for sample in plan.samples}
        files = {source_id: self._files[source_id] for source_id in sorted(sources)}
        with _timed(listener, "shard", plan.path(rendition)):
            contents = ShardContents(plan, rendition, self.records.read(files), self.state)
            try:
                return write_shard(plan, rendition, self.output, contents.load)
            except DamagedStateError as error:
                return _together([error, *contents.damage()])

    def _write_tables(self) -> tuple[Funnel, list[FileRecord]]:
        funnel = Funnel(self.listed.num_rows, self.listed.merged)
        samples = write_samples(self._rows(funnel), self.output, self._scratch)
        embeddings = write_embeddings(self._embeddings(), self.output, self._scratch)
        write_ledger(self.output, self.listed, map(self._final, self._all()))
        funnel.add_bad_rows(len(self.listed.problems))
        funnel.add_pending(len(self.listed.sources) - len(self._files) - len(self._withdrawn_sources))
        funnel.check()
        return funnel, [samples, *([embeddings] if embeddings else [])]

    def _rows(self, funnel: Funnel) -> Iterator[ClipRow]:
        for record in map(self._final, self._all()):
            funnel.add_source(record)
            if record.content_sha256 in self._withdrawn.contents:
                self._same_files.append(record.source.source_id)
            for clip in record.clips:
                key = record.key_of(clip)
                funnel.add_clip(clip, record.source.labels, self._decisions.split_of.get(key))
                yield self._row(key, record, clip)

    def _row(self, key: str, record: SourceRecord, clip: ClipRecord) -> ClipRow:
        source, video = record.source, record.facts.video if record.facts else None
        detail = f"{clip.failure.code}: {clip.failure.message}" if clip.failure else clip.detail
        return ClipRow(
            key=key,
            source_id=source.source_id,
            url=mask_secrets(source.url),
            labels=source.labels,
            caption=source.caption,
            licence=source.licence,
            split=self._decisions.split_of.get(key),
            state=clip.state,
            reason=clip.reason,
            detail=detail,
            video_sha256=record.content_sha256,
            scene_index=clip.scene_index,
            start_ms=clip.span.start_ms,
            end_ms=clip.span.end_ms,
            shard=self._decisions.shard_of.get(key),
            source_width_px=video.width if video else None,
            source_height_px=video.height if video else None,
            source_fps=video.fps if video else None,
            picture=clip.picture,
            sound=clip.sound,
            in_time=clip.in_time,
            agreement=clip.agreement,
        )

    def _embeddings(self) -> Iterator[EmbeddingRow]:
        for record in self._all():
            for key, picture, sound in embeddings_of(record, self.state):
                yield EmbeddingRow(key, str(self.encoder_id), picture, sound)

    def _manifest(self, funnel: Funnel, shards: Sequence[ShardRecord], files: Sequence[FileRecord]) -> Manifest:
        cut = self.recipe.cut
        return Manifest(
            name=self.recipe.name,
            recipe=manifest_recipe(self.recipe),
            versions={
                "hearscape": installed_version("hearscape"),
                **measure_versions(self.recipe.scenes),
                **versions(),
            },
            encoder_id=self.encoder_id,
            agreement_rule=self._agreement.rule if self._agreement.rule.enforced else None,
            calibration=self._agreement.calibration,
            members=member_names(self.encoder_id is not None),
            renditions=tuple(_rendition(r.name, r.short_side_px, cut) for r in cut.renditions),
            splits=tuple(sorted({shard.split for shard in shards})),
            shards=tuple(shards),
            files=tuple(files),
            sources=funnel.sources.to_counts(),
            clips=funnel.clips.to_counts(),
        )


class _timed:  # noqa: N801 - used like a function
    """Sends the listener the duration of the block."""

    def __init__(self, listener: Listener, stage: Stage, subject: str = "dataset") -> None:
        self._listener, self._stage, self._subject = listener, stage, subject

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._listener(StageEvent(self._stage, self._subject, time.monotonic() - self._started))


def manifest_recipe(recipe: BuildRecipe) -> dict[str, Any]:
    """The resolved recipe for the manifest: without secrets and without settings that do not change the dataset."""
    values = recipe.model_dump(
        mode="json",
        exclude={
            "execution": True,
            "output": True,
            "download": {"proxy", "cookies_file", "cookies_browser", "check_for_changes"},
        },
    )
    return cast("dict[str, Any]", masked_values(values))


def _together(errors: Sequence[DamagedStateError]) -> DamagedStateError:
    """One error with the sources and files of all."""
    source_ids = {source_id for error in errors for source_id in error.source_ids}
    problems = {name: problem for error in errors for name, problem in error.files.items()}
    return DamagedStateError(source_ids, problems)


def _source_id_of_record(record: SourceRecord) -> str:
    return record.source.source_id


def _source_id(source: Source) -> str:
    return source.source_id


def _fingerprint(clip: _KeptClip) -> Fingerprint:
    return Fingerprint(
        *(clip.key, clip.source.source_id, clip.picture_hash, clip.sound_hash),
        *(clip.duration_ms, clip.quality, clip.cut_key),
    )


def _stretch(record: SourceRecord, clip: ClipRecord) -> Stretch:
    start_ms, end_ms = clip.span.start_ms - record.offset_ms, clip.span.end_ms - record.offset_ms
    return Stretch(str(record.content_sha256), start_ms, end_ms, record.source.source_id)


def _balance_item(clip: _KeptClip) -> BalanceItem:
    return BalanceItem(clip.key, clip.source.source_id, clip.source.labels, clip.quality)


def _split_item(clip: _KeptClip) -> SplitItem:
    return SplitItem(clip.key, clip.source.source_id, clip.content_sha256, clip.source.split)


def _num_bytes(cut: CutClip) -> int:
    """Size of the sound and the picture in the largest rendition."""
    return cut.flac_bytes + max(rendition.num_bytes for rendition in cut.renditions)


def _rendition(name: str, short_side_px: int, cut: CutSettings) -> Rendition:
    return Rendition(name=name, short_side_px=short_side_px, video_codec=VIDEO_CODECS[cut.codec], sound_codec="aac")
