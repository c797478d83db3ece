"""The end of a build: the rules that look at the whole dataset, the shards, the tables, the manifest."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pipeline.build.one_source import summed_up
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
from pipeline.dataset.source_records import ClipRecord, DoneRecords, SourceRecord
from pipeline.dataset.split import SplitItem, assign_splits
from pipeline.dataset.tables import ClipRow, EmbeddingRow, write_embeddings, write_samples
from pipeline.dataset.withdrawn import JOURNAL_NAME, read_withdrawn, same_files_note, withdrawn_record
from pipeline.errors import DamagedStateError, ManifestError, NothingKeptError
from pipeline.events import Listener, Stage, StageEvent
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.measure.video import measure_versions
from pipeline.media.cut import CutClip, CutSettings
from pipeline.media.ffmpeg import versions
from pipeline.runtime.damage import read_json_whole, tell_of
from pipeline.runtime.folder import Folder
from pipeline.runtime.installed import installed_version
from pipeline.runtime.masking import mask_secrets, masked_values
from pipeline.schema import Source, State, Verdict, stable_hash
from pipeline.sources.lists import SourceList

LOG = logging.getLogger(__name__)

PACKING_NAME = "packing.json"
"""In the state, there while shards are written: which."""
VIDEO_CODECS = {"x264": "h264", "svt_av1": "av1", "nvenc": "h264"}


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a finished build has to say."""

    name: str
    manifest_path: str
    funnel: tuple[str, ...]
    rows: tuple[Mapping[str, str | int], ...]
    shards: tuple[str, ...]
    notes: tuple[str, ...] = ()
    report_path: str | None = None
    """The page that shows the dataset. None: none was made."""

    def to_markdown(self) -> str:
        listed = "\n".join(f"- `{path}`" for path in self.shards[:50])
        more = f"\n- and {len(self.shards) - 50} more" if len(self.shards) > 50 else ""
        notes = "".join(f"\n> {note}\n" for note in self.notes)
        funnel = "\n".join(self.funnel)
        return f"# {self.name}\n\n```\n{funnel}\n```\n{notes}\nManifest: `{self.manifest_path}`\n\n{listed}{more}\n"


@dataclass(slots=True)
class _Kept:
    """What the rules across the dataset need of a clip that its own measures keep."""

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
    """What was decided of clips on top of their own verdicts."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    shard_of: dict[str, str] = field(default_factory=dict)


class Finish:
    """Reads the records of all sources a few times, a batch at a time, and keeps of each clip only what the rules need."""

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
        """``rule`` is what was asked of the clips' agreement as they were judged; ``scratch`` a folder for temporary files."""
        self.recipe, self.output, self.state, self.records, self.listed = recipe, output, state, records, listed
        self.encoder_id, self.workers, self._scratch = encoder_id, workers, scratch
        known = records.index(listed.sources)
        self._withdrawn = read_withdrawn(output)
        self._repeats: list[str] = []
        self._same_files: list[str] = []  # ids of those that are the same file as a withdrawn one
        gone = frozenset(self._withdrawn.sources)
        listed_by_id = sorted(listed.sources, key=_by_id)
        self._gone = [source for source in listed_by_id if source.source_id in gone]
        self._files = {
            s.source_id: known[s.source_id].name
            for s in listed_by_id
            if s.source_id in known and s.source_id not in gone
        }
        self._decisions = _Decisions()
        self._agreement = AgreementResult(rule)

    def run(self, listener: Listener) -> BuildSummary:
        """Raises NothingKeptError; the ledger and the table of clips are written even then. Raises CalibrationError as
        :func:`settle_agreement`.

        Raises DamagedStateError where kept files are missing or damaged: they and the records of their sources are gone then, so that
        these sources can be done again.
        """
        try:
            return self._run(listener)
        except DamagedStateError as error:
            damage = self._all_damage(error)
            tell_of(self.state, damage.files)
            for name in damage.files:
                if not name.startswith("done/"):
                    self.state.remove(name)
            self.records.forget(damage.source_ids)
            raise damage from error

    def _all_damage(self, first: DamagedStateError) -> DamagedStateError:
        """What else is damaged among the records and the embeddings: nobody wants to begin again for each."""
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
            found = find_duplicates((_fingerprint(clip) for clip in kept), self.recipe.dedup)
            self._decisions.verdicts.update(found.verdicts)
        with _timed(listener, "split"):
            staying = [clip for clip in kept if clip.key not in found.verdicts]
            self._decisions.verdicts.update(balance((_balance_item(clip) for clip in staying), self.recipe.balance))
            staying = [clip for clip in staying if clip.key not in self._decisions.verdicts]
            self._repeats = repeat_notes([clip.stretch for clip in staying], self.recipe.dedup)
            splits = assign_splits((_split_item(clip) for clip in kept), found.groups, self.recipe.split)
            self._decisions.split_of = {clip.key: splits.of[clip.key] for clip in staying}
            for conflict in splits.conflicts:
                LOG.warning(
                    "sources %s were listed in other splits, but share material with %s",
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
                    f"no clip was kept: {funnel.most_rejecting()}. {LEDGER_NAME} in {self.output} tells of each source"
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
        """What a withdrawal that was killed had still to do."""
        if self.output.exists(JOURNAL_NAME):
            remove_state_files(self.output, self._withdrawn.sources)
            self.output.remove(JOURNAL_NAME)

    def _all(self, only: Collection[str] | None = None) -> Iterator[SourceRecord]:
        """The records of all sources, or of those whose ids are in ``only``, by id."""
        read = self.records.read({name: file for name, file in self._files.items() if only is None or name in only})
        withdrawn = (withdrawn_record(source) for source in self._gone if only is None or source.source_id in only)
        return heapq.merge(read, withdrawn, key=_id_of_record)

    def _kept(self) -> Iterator[_Kept]:
        for record in self._all():
            for clip in record.clips:
                if clip.state is State.KEPT:
                    assert clip.sound is not None and record.content_sha256 is not None and record.facts is not None
                    short_side = record.facts.video.short_side if record.facts.video else 0
                    yield _Kept(
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
        """The record with what was decided across the dataset."""
        clips = tuple(self._final_clip(record.key_of(clip), clip) for clip in record.clips)
        if not clips:
            return record
        state, reason, detail = summed_up([(clip.state, clip.reason) for clip in clips])
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
        """Paths of all tars that a build of ours wrote or is about to write: noted before, as a tar that was just written has no
        index for a moment, by which it could be known."""
        try:
            before = [shard.path for shard in read_manifest(self.output.url).shards]
        except ManifestError:
            before = []
        noted = read_json_whole(self.state, PACKING_NAME, lambda values: [str(path) for path in values["shards"]])
        planned = [plan.path(rendition.name) for rendition in self.recipe.cut.renditions for plan in plans]
        paths = sorted({*before, *(noted or ()), *planned})
        self.state.write_json(PACKING_NAME, {"shards": paths})
        return paths

    def _write_shards(self, plans: Sequence[ShardPlan], listener: Listener) -> list[ShardRecord]:
        wanted = [(plan, rendition.name) for rendition in self.recipe.cut.renditions for plan in plans]
        pool = ThreadPoolExecutor(self.workers)
        try:
            written = list(pool.map(lambda job: self._write_shard(job[0], job[1], listener), wanted))
        finally:
            pool.shutdown(cancel_futures=True)  # a full disk or Ctrl-C does not wait for shards that are not begun
        if damage := [one for one in written if isinstance(one, DamagedStateError)]:
            raise _together(damage)
        records = [one for one in written if isinstance(one, ShardRecord)]
        return sorted(records, key=lambda record: (record.rendition, record.path))

    def _write_shard(self, plan: ShardPlan, rendition: str, listener: Listener) -> ShardRecord | DamagedStateError:
        """The record of the shard, or all that is wrong with the cuts that belong into it."""
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
        funnel.add_pending(len(self.listed.sources) - len(self._files) - len(self._gone))
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
        failed = f"{clip.failure.code}: {clip.failure.message}" if clip.failure else clip.detail
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
            detail=failed,
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
    """Tells the listener how long the block took."""

    def __init__(self, listener: Listener, stage: Stage, subject: str = "dataset") -> None:
        self._listener, self._stage, self._subject = listener, stage, subject

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._listener(StageEvent(self._stage, self._subject, time.monotonic() - self._started))


def manifest_recipe(recipe: BuildRecipe) -> dict[str, Any]:
    """The resolved recipe without what does not change the outcome, and without secrets."""
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
    source_ids = {source_id for error in errors for source_id in error.source_ids}
    return DamagedStateError(source_ids, {name: told for error in errors for name, told in error.files.items()})


def _id_of_record(record: SourceRecord) -> str:
    return record.source.source_id


def _by_id(source: Source) -> str:
    return source.source_id


def _fingerprint(clip: _Kept) -> Fingerprint:
    return Fingerprint(
        *(clip.key, clip.source.source_id, clip.picture_hash, clip.sound_hash),
        *(clip.duration_ms, clip.quality, clip.cut_key),
    )


def _stretch(record: SourceRecord, clip: ClipRecord) -> Stretch:
    start_ms, end_ms = clip.span.start_ms - record.offset_ms, clip.span.end_ms - record.offset_ms
    return Stretch(str(record.content_sha256), start_ms, end_ms, record.source.source_id)


def _balance_item(clip: _Kept) -> BalanceItem:
    return BalanceItem(clip.key, clip.source.source_id, clip.source.labels, clip.quality)


def _split_item(clip: _Kept) -> SplitItem:
    return SplitItem(clip.key, clip.source.source_id, clip.content_sha256, clip.source.split)


def _num_bytes(cut: CutClip) -> int:
    return cut.flac_bytes + max(rendition.num_bytes for rendition in cut.renditions)


def _rendition(name: str, short_side_px: int, cut: CutSettings) -> Rendition:
    return Rendition(name=name, short_side_px=short_side_px, video_codec=VIDEO_CODECS[cut.codec], sound_codec="aac")
