"""Carries one source from its link to cut clips. What an earlier run did is looked up by its key, and not done again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.agreement import agreement
from pipeline.cut import CutClip, cut_clip, cut_key
from pipeline.download import fetch, fetch_key, fetched_before
from pipeline.embedder import Embedder, read_embeddings
from pipeline.errors import ClipError, MediaError, PreviewError
from pipeline.facts import FACTS_VERSION, MediaFacts
from pipeline.fetch_failures import FetchFailures, failure_of
from pipeline.hosts import HostGate
from pipeline.judge import Judge, judge_file
from pipeline.measure import MeasuredClip, MeasuredVideo, measure_key, measure_video
from pipeline.media import probe
from pipeline.preview_files import PreviewFiles
from pipeline.progress import Listener, SourceEvent, Stage, StageEvent
from pipeline.recipe import BuildRecipe
from pipeline.records import ClipRecord, SourceRecord
from pipeline.schema import AgreementMeasures, Fetched, Reason, Source, Span, State, flat, stable_hash
from pipeline.stop import Stop
from pipeline.storage import Folder
from pipeline.store import Store
from pipeline.workers import Workers

PROBE_TIMEOUT_SECONDS = 60.0
PROBE_BYTES_PER_SECOND = 20e6
"""Transport streams are read to their end: how fast at the least."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the sources of one process share."""

    recipe: BuildRecipe
    judge: Judge
    state: Folder
    store: Store
    hosts: HostGate
    workers: Workers
    embedder: Embedder | None
    previews: PreviewFiles
    scratch: Path
    stop: Stop


@dataclass(slots=True)
class _Run:
    """One source on its way."""

    tools: Tools
    source: Source
    listener: Listener
    fetched: Fetched | None = None
    expected_sha256: str | None = None
    """What is in the file, as an earlier run or this one found."""
    timings: dict[str, float] = field(default_factory=dict)
    stage: str = "fetch"

    @contextlib.contextmanager
    def timed(self, stage: Stage, media_seconds: float = 0.0, *, reused: bool = False) -> Iterator[None]:
        self.stage = stage
        started = time.monotonic()
        yield
        elapsed = time.monotonic() - started
        if not reused:
            self.timings[stage] = round(self.timings.get(stage, 0.0) + elapsed, 3)
        self.listener(StageEvent(stage, self.source.source_id, elapsed, media_seconds, reused))


class _ContentChangedError(Exception):
    """The file was freed, fetched again, and is another one now: what is stored of the old one does not hold."""


def run_source(source: Source, tools: Tools, listener: Listener) -> SourceRecord:
    """What becomes of one source. Every way in which a source or clip can fail ends in the record.

    Raises StoppedError; anything else that is raised is a bug.
    """
    run = _Run(tools, source, listener)
    try:
        try:
            record = _run(run)
        except _ContentChangedError:
            record = _run(run)
    except ClipError as error:
        record = SourceRecord(
            source,
            State.FAILED,
            failure=failure_of(run.stage, error),
            content_sha256=run.expected_sha256,
            timings=run.timings,
        )
    finally:
        if run.fetched is not None:
            tools.store.release(run.fetched.content_sha256)
    detail = f"{record.failure.code}: {record.failure.message}" if record.failure else str(record.reason or "")
    listener(
        SourceEvent(
            source.source_id, record.state, detail, Counter(str(clip.reason or clip.state) for clip in record.clips)
        )
    )
    return record


def _run(run: _Run) -> SourceRecord:
    source, recipe = run.source, run.tools.recipe
    fetched = run.fetched or fetched_before(source, run.tools.store, recipe.download) or _fetch(run)
    run.expected_sha256 = fetched.content_sha256
    record = SourceRecord(
        source,
        State.REJECTED,
        content_sha256=fetched.content_sha256,
        offset_ms=fetched.offset_ms,
        provenance=fetched.provenance,
        timings=run.timings,
    )
    facts = _facts(run, fetched.content_sha256)
    record = replace(record, facts=facts)
    verdict = judge_file(facts, _section_seconds(source), recipe.clips.min_seconds, recipe.probe)
    if not verdict.kept:
        return replace(record, reason=verdict.reason, detail=verdict.detail)
    section = _section_in_file(source, fetched)
    key = measure_key(fetched.content_sha256, section, recipe.scenes, recipe.clips, recipe.measure)
    with run.tools.previews.in_use(key):
        return _from_clips(run, record, key, section)


def _from_clips(run: _Run, record: SourceRecord, key: str, section: tuple[int, int | None]) -> SourceRecord:
    """What becomes of a source whose header promises clips."""
    recipe = run.tools.recipe
    assert record.facts is not None and record.content_sha256 is not None
    measured = _measured(run, key, record.facts, section)
    record = replace(
        record, num_scenes=len(measured.scenes), decoded_seconds=measured.decoded_seconds, measured_key=key
    )
    if not measured.clips:
        fits = f"{len(measured.scenes)} scenes in {measured.decoded_seconds:.1f} s, none holds a clip of {recipe.clips.min_seconds:g} s"
        return replace(record, reason=Reason.NO_CLIP_FITS, detail=fits)
    embedded_key, agreements = _agreements(run, key, measured, section)
    clips = tuple(_clip(run, measured, index, agreements[index], record) for index in range(len(measured.clips)))
    state, reason, detail = summed_up([(clip.state, clip.reason) for clip in clips])
    return replace(record, state=state, reason=reason, detail=detail, embedded_key=embedded_key, clips=clips)


def summed_up(clips: list[tuple[State, Reason | None]]) -> tuple[State, Reason | None, str]:
    """A source's state from its clips': kept if any is kept, failed if any failed, else rejected."""
    if any(state is State.KEPT for state, _ in clips):
        return State.KEPT, None, ""
    counted = Counter(str(reason or state) for state, reason in clips)
    detail = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    if any(state is State.FAILED for state, _ in clips):
        return State.FAILED, None, detail
    return State.REJECTED, Reason.NO_CLIP_KEPT, detail


def _fetch(run: _Run) -> Fetched:
    """The source's file, on this machine, pinned until the source is done."""
    if run.fetched is None:
        with run.timed("fetch"):
            tools = run.tools
            failures = FetchFailures(tools.state, try_again=tools.recipe.execution.try_failed_again)
            run.fetched = fetch(run.source, tools.store, tools.recipe.download, tools.hosts, tools.stop, failures)
        if run.expected_sha256 not in (None, run.fetched.content_sha256):
            raise _ContentChangedError
    return run.fetched


def _section_seconds(source: Source) -> float | None:
    return (source.end_ms - source.start_ms) / 1000 if source.end_ms is not None else None


def _section_in_file(source: Source, fetched: Fetched) -> tuple[int, int | None]:
    """The wanted section in the time of the file."""
    end = None if source.end_ms is None else source.end_ms - fetched.offset_ms
    return max(source.start_ms - fetched.offset_ms, 0), end


def _facts(run: _Run, content_sha256: str) -> MediaFacts:
    name = f"probed/{content_sha256[:2]}/{content_sha256}-{FACTS_VERSION}.json"

    def look() -> dict[str, Any]:
        path = Path(_fetch(run).path)
        run.stage = "probe"
        seconds = PROBE_TIMEOUT_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND
        return run.tools.workers.run(probe, seconds, path).to_json()

    return MediaFacts.from_json(_remembered(run, name, look)[0])


def _measured(run: _Run, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> MeasuredVideo:
    name = f"measured/{key[:2]}/{key}.json"
    values, reused = _remembered(run, name, lambda: _measure(run, key, facts, section).to_json())
    measured = MeasuredVideo.from_json(values)
    if reused:
        with run.timed("measure", measured.decoded_seconds, reused=True):
            pass
    return measured


def _remembered(run: _Run, name: str, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """What ``work`` gave in this run or an earlier one, and whether it was an earlier one. A file that failed for good is
    not looked at again either, unless the user wants that: its error is raised anew."""
    state = run.tools.state
    if state.exists(name):
        values = state.read_json(name)
        if "failed" not in values:
            return values, True
        if not run.tools.recipe.execution.try_failed_again:
            run.stage = values["failed"]["stage"]
            raise MediaError(values["failed"]["code"], values["failed"]["message"])
        if run.fetched is None:  # it may have been put right where it comes from
            run.tools.store.forget(fetch_key(run.source, run.tools.recipe.download))
    try:
        values = work()
    except ClipError as error:
        run.tools.stop.check()  # what fails while all is being ended says nothing of the source
        failure = failure_of(run.stage, error)
        if not failure.transient and run.stage != "fetch":  # fetches keep their own
            state.write_json(name, {"failed": flat(failure)})
        raise
    state.write_json(name, values)
    return values, False


def _measure(run: _Run, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> MeasuredVideo:
    recipe = run.tools.recipe
    path = Path(_fetch(run).path)
    assert facts.video is not None
    seconds = facts.video.duration_seconds or facts.duration_seconds or 0.0
    with run.timed("measure", seconds), _scratch(run) as folder:
        measured = run.tools.workers.run(
            measure_video,
            max(recipe.measure.timeout_seconds, min(10 * seconds, recipe.measure.timeout_max_seconds)),
            path,
            facts,
            section_ms=section,
            scenes=recipe.scenes,
            clips=recipe.clips,
            settings=recipe.measure,
            frames_out=folder / "frames.npz",
            sound_out=folder / "sound.flac",
        )
        run.tools.previews.add(key, folder / "frames.npz", folder / "sound.flac")
    return measured


def _agreements(
    run: _Run, key: str, measured: MeasuredVideo, section: tuple[int, int | None]
) -> tuple[str | None, list[AgreementMeasures | None]]:
    embedder, state = run.tools.embedder, run.tools.state
    if embedder is None:
        return None, [None] * len(measured.clips)
    embedded_key = stable_hash(key, embedder.encoder_id, length=32)
    name = f"embedded/{embedded_key[:2]}/{embedded_key}.npz"
    if state.exists(name):
        with run.timed("embed", measured.decoded_seconds, reused=True):
            content = state.read_bytes(name)
    else:
        _make_sure_of_previews(run, key, measured.facts, section)
        with run.timed("embed", measured.decoded_seconds), _scratch(run) as folder:
            spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in measured.clips]
            content = embedder.embed(*run.tools.previews.copy_to(key, folder), spans)
            state.write_bytes(name, content)
    prompts = embedder.prompts(run.tools.recipe.agreement, state)
    frames, _, sounds = read_embeddings(content)
    return embedded_key, [
        agreement(rows, sound, embedder.encoder_id, prompts, run.source.labels)
        for rows, sound in zip(frames, sounds, strict=True)
    ]


def _make_sure_of_previews(run: _Run, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> None:
    """Another decode for what was deleted since the first, if the user wants that."""
    if run.tools.previews.have(key):
        return
    run.stage = "embed"
    if not run.tools.recipe.execution.decode_again:
        raise PreviewError(
            "previews_gone",
            "the small frames and the sound that the encoders take in were deleted: set execution.decode_again=true to fetch and "
            "decode the source once more (and execution.keep_previews=true or a larger previews_budget_bytes to keep them)",
        )
    _measure(run, key, facts, section)


def _clip(
    run: _Run, measured: MeasuredVideo, index: int, agrees: AgreementMeasures | None, source: SourceRecord
) -> ClipRecord:
    recipe, clip = run.tools.recipe, measured.clips[index]
    video = measured.facts.video
    assert video is not None and source.content_sha256 is not None
    size = (video.width, video.height)
    verdict = run.tools.judge.clip(clip.picture, clip.sound, agrees, size, run.source.labels)
    span = Span(clip.span.start_ms + source.offset_ms, clip.span.end_ms + source.offset_ms)
    record = ClipRecord(
        clip.scene_index,
        span,
        State.REJECTED,
        clip.picture,
        clip.sound,
        agrees,
        verdict.reason,
        verdict.detail,
        in_time=clip.in_time,
    )
    if not verdict.kept:
        return record
    key = cut_key(source.content_sha256, clip.span, clip.picture.bars, recipe.cut)
    try:
        cut = _cut(run, key, measured, index)
    except ClipError as error:
        return replace(record, state=State.FAILED, failure=failure_of("cut", error))
    return replace(record, state=State.KEPT, cut_key=key, cut=cut)


def cut_folder(key: str) -> str:
    """Where the files of a cut lie in the state."""
    return f"cuts/{key[:2]}/{key}"


def _cut(run: _Run, key: str, measured: MeasuredVideo, index: int) -> CutClip:
    clip = measured.clips[index]
    values, reused = _remembered(
        run, f"{cut_folder(key)}/cut.json", lambda: _new_cut(run, key, measured.facts, clip).to_json()
    )
    if reused:
        with run.timed("cut", clip.span.duration_seconds, reused=True):
            pass
    return CutClip.from_json(values)


def _new_cut(run: _Run, key: str, facts: MediaFacts, clip: MeasuredClip) -> CutClip:
    recipe = run.tools.recipe
    path = Path(_fetch(run).path)
    with run.timed("cut", clip.span.duration_seconds), _scratch(run) as folder:
        with run.tools.workers.slots:
            cut = cut_clip(
                path,
                facts,
                clip.span,
                clip.picture.bars,
                recipe.cut,
                folder,
                run.tools.stop,
                run.tools.workers.memory_bytes,
                clip.picture.num_frames,
            )
        for file in sorted(folder.iterdir()):
            run.tools.state.move_in(file, f"{cut_folder(key)}/{file.name}")
    return cut


@contextlib.contextmanager
def _scratch(run: _Run) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=run.tools.scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
