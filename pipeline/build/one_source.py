"""Processes one source, from its link to cut clips. Results of earlier runs are looked up by their keys and used again."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import replace

from pipeline.build.source_cuts import cut_of
from pipeline.build.source_file import fetched_file
from pipeline.build.source_results import agreements_of, facts_of, measured_of
from pipeline.build.source_run import ContentChangedError, SourceRun, Tools
from pipeline.dataset.bugs import bug_failure, is_bug
from pipeline.dataset.source_records import LOOKED_AT, ClipRecord, SourceRecord, outcome_of_clips
from pipeline.errors import ClipError, TransientDownloadError
from pipeline.events import Listener, SourceEvent
from pipeline.fetch.download import LOCAL, fetched_before
from pipeline.fetch.failures import failure_of
from pipeline.fetch.passthrough import CHANGING
from pipeline.fetch.provenance import with_own_link
from pipeline.judge.rules import judge_file
from pipeline.measure.video import MeasuredVideo, measure_key
from pipeline.media.cut import cut_key
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import (
    AgreementMeasures,
    Failure,
    Fetched,
    Reason,
    Source,
    Span,
    State,
)
from pipeline.sources.links import scheme_of

LOG = logging.getLogger(__name__)


MAX_CHANGES = 3
"""How often a source starts again because its file was replaced."""


def run_source(source: Source, tools: Tools, listener: Listener) -> SourceRecord:
    """Processes one source; returns its record. Failures of the source and of its clips are part of the record.

    Raises StoppedError, UserError, and OSError if a disk or the file system of the state fails. Raises bugs, or records them as
    failures with ``execution.bugs="record"``.
    """
    run = SourceRun(tools, source, listener)
    try:
        record = _run_again(run)
    except ClipError as error:
        record = _failed(run, failure_of(run.stage, error))
    except Exception as error:
        error.add_note(f"in the stage {run.stage} of source {source.source_id} ({mask_secrets(source.url)})")
        if not is_bug(error):
            raise
        if tools.recipe.execution.bugs == "stop":
            error.add_note(
                'a bug of this program: to end such sources as failed and go on, set execution.bugs="record"'
            )
            raise
        tools.stop.check()
        LOG.error("a bug of this program: source %s fails, the build goes on", source.source_id, exc_info=error)
        record = _failed(run, bug_failure(run.stage, error))
    finally:
        if run.fetched is not None:
            tools.store.release(run.fetched.content_sha256)
    detail = f"{record.failure.code}: {record.failure.message}" if record.failure else str(record.reason or "")
    clips = Counter(str(clip.reason or clip.state) for clip in record.clips)
    code = record.failure.code if record.failure else ""
    listener(SourceEvent(source.source_id, record.state, detail, clips, code))
    return record


def _failed(run: SourceRun, failure: Failure) -> SourceRecord:
    is_local = run.expected_sha256 is None and scheme_of(run.source.url) in LOCAL
    provenance = {LOOKED_AT: run.looked_at} if is_local else {}
    return SourceRecord(
        run.source,
        State.FAILED,
        failure=failure,
        content_sha256=run.expected_sha256,
        provenance=provenance,
        timings=run.timings,
    )


def _run_again(run: SourceRun) -> SourceRecord:
    """Runs the source, and starts again if its file was replaced meanwhile."""
    for _ in range(MAX_CHANGES):
        with contextlib.suppress(ContentChangedError):
            return _run(run)
    run.stage = "fetch"
    raise TransientDownloadError(CHANGING, f"the file was replaced {MAX_CHANGES} times while it was processed")


def _run(run: SourceRun) -> SourceRecord:
    source, recipe = run.source, run.tools.recipe
    fetched = run.fetched or fetched_before(source, run.tools.store, recipe.download) or fetched_file(run)
    run.expected_sha256 = fetched.content_sha256
    record = SourceRecord(
        source,
        State.REJECTED,
        content_sha256=fetched.content_sha256,
        offset_ms=fetched.offset_ms,
        provenance=with_own_link(fetched.provenance, source.url),
        timings=run.timings,
    )
    facts = facts_of(run, fetched.content_sha256)
    record = replace(record, facts=facts)
    verdict = judge_file(facts, _section_seconds(source), recipe.clips.min_seconds, recipe.probe)
    if not verdict.kept:
        return replace(record, reason=verdict.reason, detail=verdict.detail)
    section = _section_in_file(source, fetched)
    key = measure_key(fetched.content_sha256, section, recipe.scenes, recipe.clips, recipe.measure)
    with run.tools.previews.in_use(key):
        return _from_clips(run, record, key, section)


def _from_clips(run: SourceRun, record: SourceRecord, key: str, section: tuple[int, int | None]) -> SourceRecord:
    """Measures, embeds, judges and cuts the clips of a source whose header was accepted."""
    recipe = run.tools.recipe
    assert record.facts is not None and record.content_sha256 is not None
    decoded = measured_of(run, key, record.facts, section)
    measured = decoded.video
    record = replace(
        record, num_scenes=len(measured.scenes), decoded_seconds=measured.decoded_seconds, measured_key=key
    )
    if not measured.clips:
        detail = f"{len(measured.scenes)} scenes in {measured.decoded_seconds:.1f} s, none holds a clip of {recipe.clips.min_seconds:g} s"
        return replace(record, reason=Reason.NO_CLIP_FITS, detail=detail)
    embedded_key, agreements = agreements_of(run, key, decoded, section)
    clips = tuple(_clip(run, measured, index, agreements[index], record) for index in range(len(measured.clips)))
    state, reason, detail = outcome_of_clips([(clip.state, clip.reason) for clip in clips])
    return replace(record, state=state, reason=reason, detail=detail, embedded_key=embedded_key, clips=clips)


def _section_seconds(source: Source) -> float | None:
    return (source.end_ms - source.start_ms) / 1000 if source.end_ms is not None else None


def _section_in_file(source: Source, fetched: Fetched) -> tuple[int, int | None]:
    """The wanted section in ms from the start of the file. End None: to the end."""
    end = None if source.end_ms is None else source.end_ms - fetched.offset_ms
    return max(source.start_ms - fetched.offset_ms, 0), end


def _clip(
    run: SourceRun, measured: MeasuredVideo, index: int, agreement: AgreementMeasures | None, source: SourceRecord
) -> ClipRecord:
    recipe, clip = run.tools.recipe, measured.clips[index]
    video = measured.facts.video
    assert video is not None and source.content_sha256 is not None
    size = (video.width, video.height)
    verdict = run.tools.judge.clip(clip.picture, clip.sound, agreement, size, run.source.labels)
    span = Span(clip.span.start_ms + source.offset_ms, clip.span.end_ms + source.offset_ms)
    record = ClipRecord(
        clip.scene_index,
        span,
        State.REJECTED,
        clip.picture,
        clip.sound,
        agreement,
        verdict.reason,
        verdict.detail,
        in_time=clip.in_time,
    )
    if not verdict.kept:
        return record
    key = cut_key(source.content_sha256, clip.span, clip.picture.bars, recipe.cut)
    try:
        cut = cut_of(run, key, measured, index)
    except ClipError as error:
        return replace(record, state=State.FAILED, failure=failure_of("cut", error))
    return replace(record, state=State.KEPT, cut_key=key, cut=cut)
