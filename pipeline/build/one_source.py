"""Carries one source from its link to cut clips. What an earlier run did is looked up by its key, and not done again."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pipeline.agreement.measures import agreement
from pipeline.build.embedder import Embedder, embedded_name, read_embeddings, with_name
from pipeline.build.recipe import BuildRecipe
from pipeline.build.timeouts import TIMED_OUT, Timeouts
from pipeline.dataset.bugs import bug_failure, is_bug
from pipeline.dataset.records import LOOKED_AT, WAITED, ClipRecord, SourceRecord
from pipeline.errors import ClipError, MediaError, PreviewError, TransientDownloadError
from pipeline.events import Listener, SourceEvent, Stage, StageEvent
from pipeline.fetch.download import LOCAL, fetch, fetch_key, fetched_before
from pipeline.fetch.failures import FetchFailures, failure_of
from pipeline.fetch.hosts import HostGate
from pipeline.fetch.passthrough import CHANGING, key_of_link, use_local
from pipeline.fetch.provenance import asked_by
from pipeline.fetch.store import Store
from pipeline.judge.rules import Judge, judge_file
from pipeline.measure.preview_files import DAMAGED, GONE, SUFFIXES, PreviewFiles, Sums
from pipeline.measure.video import MeasuredClip, MeasuredVideo, measure_key, measure_video
from pipeline.media.cut import CutClip, cut_clip, cut_key
from pipeline.media.facts import FACTS_VERSION, MediaFacts
from pipeline.media.ffmpeg import probe
from pipeline.runtime.damage import read_named, read_whole, tell_of, write_named
from pipeline.runtime.hashing import sha256_of
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.stop import Stop
from pipeline.runtime.storage import Folder
from pipeline.runtime.waiting import counting, held
from pipeline.runtime.workers import Workers
from pipeline.schema import (
    AgreementMeasures,
    Failure,
    Fetched,
    Reason,
    Source,
    Span,
    State,
    flat,
    from_flat,
    stable_hash,
)
from pipeline.sources.links import scheme_of

LOG = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_TIMEOUT_SECONDS = 60.0
PROBE_BYTES_PER_SECOND = 20e6
"""Transport streams are read to their end: how fast at the least."""
MAX_CHANGES = 3
LEAST_WAIT_SECONDS = 0.001
SLOW_FETCHING = "raise download.timeout_seconds, lower download.height, or set execution.try_failed_again=true"
SLOW_PROBING = "set execution.try_failed_again=true for another try"
SLOW_MEASURING = "raise measure.timeout_seconds or measure.timeout_max_seconds, or set execution.try_failed_again=true"
SLOW_CUTTING = "raise cut.timeout_seconds, choose a faster cut.preset, or set execution.try_failed_again=true"
SLOW_EMBEDDING = "choose smaller encoders or a faster machine, and set execution.try_failed_again=true"


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
    looked_at: str = ""
    """What lay at a path of this machine before it was used."""
    timings: dict[str, float] = field(default_factory=dict)
    stage: str = "fetch"

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(self.tools.state, try_again=self.tools.recipe.execution.try_failed_again)

    @contextlib.contextmanager
    def timed(self, stage: Stage, media_seconds: float = 0.0, *, reused: bool = False) -> Iterator[None]:
        """Around the work of a stage. What it waits for others is counted apart, and work that fails as well."""
        self.stage = stage
        started = time.monotonic()
        worked_seconds = 0.0
        with counting() as waited:
            try:
                yield
            finally:
                worked_seconds = max(time.monotonic() - started - waited.seconds, 0.0)
                if not reused:
                    self._add(stage, worked_seconds)
                    self._add(WAITED, waited.seconds)
        self.listener(StageEvent(stage, self.source.source_id, worked_seconds, media_seconds, reused))

    def _add(self, name: str, seconds: float) -> None:
        if name != WAITED or seconds >= LEAST_WAIT_SECONDS:
            self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 3)


class _ContentChangedError(Exception):
    """The file is another one now, since it was fetched again or replaced: what is stored of the old one does not hold."""


def run_source(source: Source, tools: Tools, listener: Listener) -> SourceRecord:
    """What becomes of one source. Every way in which a source or clip can fail ends in the record.

    Raises StoppedError, UserError, OSError where a disk or the state's file system fails, and bugs, unless ``execution.bugs`` says
    that they end in the record as well.
    """
    run = _Run(tools, source, listener)
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


def _failed(run: _Run, failure: Failure) -> SourceRecord:
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


def _run_again(run: _Run) -> SourceRecord:
    """From the beginning, as often as the file is another one in the end."""
    for _ in range(MAX_CHANGES):
        with contextlib.suppress(_ContentChangedError):
            return _run(run)
    run.stage = "fetch"
    raise TransientDownloadError(CHANGING, f"the file was replaced {MAX_CHANGES} times while it was worked on")


def _run(run: _Run) -> SourceRecord:
    source, recipe = run.source, run.tools.recipe
    fetched = run.fetched or fetched_before(source, run.tools.store, recipe.download) or _fetch(run)
    run.expected_sha256 = fetched.content_sha256
    record = SourceRecord(
        source,
        State.REJECTED,
        content_sha256=fetched.content_sha256,
        offset_ms=fetched.offset_ms,
        provenance=asked_by(fetched.provenance, source.url),
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
    kept = _measured(run, key, record.facts, section)
    measured = kept.video
    record = replace(
        record, num_scenes=len(measured.scenes), decoded_seconds=measured.decoded_seconds, measured_key=key
    )
    if not measured.clips:
        fits = f"{len(measured.scenes)} scenes in {measured.decoded_seconds:.1f} s, none holds a clip of {recipe.clips.min_seconds:g} s"
        return replace(record, reason=Reason.NO_CLIP_FITS, detail=fits)
    embedded_key, agreements = _agreements(run, key, kept, section)
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
        if scheme_of(run.source.url) in LOCAL:
            run.looked_at = key_of_link(run.source.url)
        with run.timed("fetch"):
            settings = run.tools.recipe.download
            limit_seconds = settings.timeout_seconds or math.inf
            with run.timeouts.counted(fetch_key(run.source, settings), limit_seconds, SLOW_FETCHING):
                run.fetched = _fetched_whole(run)
        if run.expected_sha256 not in (None, run.fetched.content_sha256):
            raise _ContentChangedError
    return run.fetched


def _fetched_whole(run: _Run) -> Fetched:
    """A file of the store that is no longer what was fetched is dropped, and fetched once more."""
    tools = run.tools
    failures = FetchFailures(tools.state, try_again=tools.recipe.execution.try_failed_again)
    for _ in range(2):
        fetched = fetch(run.source, tools.store, tools.recipe.download, tools.hosts, tools.stop, failures)
        path = Path(fetched.path)
        if not path.is_relative_to(tools.store.root) or _has_sum(path, fetched.content_sha256):
            return fetched
        LOG.warning("%s is not what was fetched: fetched again", path)
        tools.store.release(fetched.content_sha256)
        path.unlink(missing_ok=True)
    raise TransientDownloadError("damaged", f"{path} is damaged as soon as it is written: check the disk")


def _has_sum(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except FileNotFoundError:  # another source found the damage, too
        return False


def _check_file(run: _Run) -> None:
    """What was made of a file of this machine holds only if the file is still the one that was hashed.

    Raises _ContentChangedError where it is another one, TransientDownloadError where it is gone.
    """
    tools, fetched, url = run.tools, run.fetched, run.source.url
    if fetched is None or scheme_of(url) not in LOCAL:
        return
    known = tools.store.known(key_of_link(url))
    if known is not None and known.sha256 == fetched.content_sha256:
        return
    tools.store.release(fetched.content_sha256)
    run.fetched = None
    try:
        run.fetched = use_local(url, tools.store)  # it may only have been touched
    except ClipError as error:
        run.stage = "fetch"
        raise TransientDownloadError(CHANGING, f"the file changed while it was worked on: {error}") from error
    if run.fetched.content_sha256 != fetched.content_sha256:
        raise _ContentChangedError


def _section_seconds(source: Source) -> float | None:
    return (source.end_ms - source.start_ms) / 1000 if source.end_ms is not None else None


def _section_in_file(source: Source, fetched: Fetched) -> tuple[int, int | None]:
    """The wanted section in the time of the file."""
    end = None if source.end_ms is None else source.end_ms - fetched.offset_ms
    return max(source.start_ms - fetched.offset_ms, 0), end


def _facts(run: _Run, content_sha256: str) -> MediaFacts:
    name = f"probed/{content_sha256[:2]}/{content_sha256}-{FACTS_VERSION}.json"

    def look() -> MediaFacts:
        path = Path(_fetch(run).path)
        run.stage = "probe"
        seconds = PROBE_TIMEOUT_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND
        with run.timeouts.counted(f"probe {content_sha256}", seconds, SLOW_PROBING):
            return run.tools.workers.run(probe, seconds, path)

    return _remembered(run, name, MediaFacts, look)[0]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the decode of a file gave, and the sums of the previews that were kept of it."""

    video: MeasuredVideo
    previews: Sums | None
    """None: of an earlier version, which kept no sums."""

    def to_json(self) -> dict[str, Any]:
        return {**self.video.to_json(), "previews": self.previews}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        sums = values.get("previews")
        return cls(MeasuredVideo.from_json(values), sums and {suffix: str(sums[suffix]) for suffix in SUFFIXES})


def _measured(run: _Run, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> _Measured:
    measured, reused = _remembered(run, _measured_name(key), _Measured, lambda: _measure(run, key, facts, section))
    if reused:
        with run.timed("measure", measured.video.decoded_seconds, reused=True):
            pass
    return measured


def _measured_name(key: str) -> str:
    return f"measured/{key[:2]}/{key}.json"


class _Result(Protocol):
    """What a stage gives, and how it is kept."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self: ...


R = TypeVar("R", bound=_Result)


def _remembered(
    run: _Run, name: str, kind: type[R], work: Callable[[], R], is_whole: Callable[[R], bool] = lambda kept: True
) -> tuple[R, bool]:
    """What ``work`` gave in this run or an earlier one, and whether it was an earlier one. A file that failed for good is
    not looked at again either, unless the user wants that: its error is raised anew. What cannot be read, or is not whole, is not there.
    """
    state = run.tools.state

    def parse(values: Any) -> R | Failure:
        return from_flat(Failure, values["failed"]) if "failed" in values else kind.from_json(values)

    kept = read_named(state, name, parse)
    if isinstance(kept, Failure):
        if not run.tools.recipe.execution.try_failed_again:
            run.stage = kept.stage
            raise MediaError(kept.code, kept.message)
        if run.fetched is None:  # it may have been put right where it comes from
            run.tools.store.forget(fetch_key(run.source, run.tools.recipe.download))
    elif kept is not None and is_whole(kept):
        return kept, True
    try:
        made = _of_one_file(run, work)
    except ClipError as error:
        run.tools.stop.check()  # what fails while all is being ended says nothing of the source
        failure = failure_of(run.stage, error)
        if not failure.transient and run.stage != "fetch" and failure.code != TIMED_OUT:  # those keep their own
            write_named(state, name, {"failed": flat(failure)})
        raise
    write_named(state, name, made.to_json())
    return made, False


def _of_one_file(run: _Run, work: Callable[[], T]) -> T:
    """What ``work`` gives or raises, unless the file was replaced or removed meanwhile: then that is raised."""
    try:
        done = work()
    except (ClipError, OSError):
        run.tools.stop.check()
        _check_file(run)
        raise
    _check_file(run)
    return done


def _measure(run: _Run, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> _Measured:
    recipe = run.tools.recipe
    path = Path(_fetch(run).path)
    assert facts.video is not None
    seconds = facts.video.duration_seconds or facts.duration_seconds or 0.0
    limit_seconds = max(recipe.measure.timeout_seconds, min(10 * seconds, recipe.measure.timeout_max_seconds))
    counted = run.timeouts.counted(key, limit_seconds, SLOW_MEASURING)
    with run.timed("measure", seconds), _scratch(run) as folder, counted:
        measured = run.tools.workers.run(
            measure_video,
            limit_seconds,
            path,
            facts,
            section_ms=section,
            scenes=recipe.scenes,
            clips=recipe.clips,
            settings=recipe.measure,
            frames_out=folder / "frames.npz",
            sound_out=folder / "sound.flac",
        )
        sums = run.tools.previews.add(key, folder / "frames.npz", folder / "sound.flac")
    return _Measured(measured, sums)


def _agreements(
    run: _Run, key: str, measured: _Measured, section: tuple[int, int | None]
) -> tuple[str | None, list[AgreementMeasures | None]]:
    embedder, state, video = run.tools.embedder, run.tools.state, measured.video
    if embedder is None:
        return None, [None] * len(video.clips)
    embedded_key = stable_hash(key, embedder.encoder_id, length=32)
    name = embedded_name(embedded_key)
    kept = read_whole(state, name, lambda content: read_embeddings(content, len(video.clips), name))
    if kept is not None:
        with run.timed("embed", video.decoded_seconds, reused=True):
            pass
    else:
        content = with_name(_embed(run, name, key, measured, section), name)
        state.write_bytes(name, content)
        kept = read_embeddings(content, len(video.clips))
    prompts = embedder.prompts(run.tools.recipe.agreement, state)
    frames, _, sounds = kept
    return embedded_key, [
        agreement(rows, sound, embedder.encoder_id, prompts, run.source.labels)
        for rows, sound in zip(frames, sounds, strict=True)
    ]


def _embed(run: _Run, name: str, key: str, measured: _Measured, section: tuple[int, int | None]) -> bytes:
    """The embeddings of all clips, from the previews. Damaged ones are made again, by another decode."""
    embedder, previews = run.tools.embedder, run.tools.previews
    assert embedder is not None
    if not previews.have(key):
        measured = _decoded_again(run, key, measured, section)
    spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in measured.video.clips]
    for last_try in (False, True):
        try:
            with run.timed("embed", measured.video.decoded_seconds), _scratch(run) as folder:
                copies = previews.copy_to(key, folder, measured.previews)
                with run.timeouts.counted(name, embedder.single_clip_seconds, SLOW_EMBEDDING):
                    return embedder.embed(*copies, spans)
        except PreviewError as error:
            if last_try or error.code != DAMAGED:
                raise
            LOG.warning("%s: made again", error)
        measured = _decoded_again(run, key, measured, section, wanted=True)
    raise AssertionError("the loop returns or raises")


def _decoded_again(
    run: _Run, key: str, measured: _Measured, section: tuple[int, int | None], *, wanted: bool = False
) -> _Measured:
    """Another decode for the previews. For those that were deleted since the first only if the user wants that, or it is ``wanted``."""
    run.stage = "embed"
    if not wanted and not run.tools.recipe.execution.decode_again:
        raise PreviewError(
            GONE,
            "the small frames and the sound that the encoders take in were deleted: set execution.decode_again=true to fetch and "
            "decode the source once more (and execution.keep_previews=true or a larger previews_budget_bytes to keep them)",
        )
    again = _measure(run, key, measured.video.facts, section)
    write_named(run.tools.state, _measured_name(key), again.to_json())
    return again


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
    cut, reused = _remembered(
        run,
        f"{cut_folder(key)}/cut.json",
        CutClip,
        lambda: _new_cut(run, key, measured.facts, clip),
        lambda kept: _is_there(run.tools.state, key, kept),
    )
    if reused:
        with run.timed("cut", clip.span.duration_seconds, reused=True):
            pass
    return cut


def _is_there(state: Folder, key: str, cut: CutClip) -> bool:
    """Whether the files of a cut have their sizes. What is in them is looked at when they are packed."""
    sizes = {name.rpartition("/")[2]: num_bytes for name, num_bytes, _ in state.files(cut_folder(key))}
    problems = {
        f"{cut_folder(key)}/{name}": f"has {sizes[name]} bytes, not {num_bytes}" if name in sizes else "is missing"
        for name, (num_bytes, _) in cut.files.items()
        if sizes.get(name) != num_bytes
    }
    tell_of(state, problems)
    return not problems


def _new_cut(run: _Run, key: str, facts: MediaFacts, clip: MeasuredClip) -> CutClip:
    recipe = run.tools.recipe
    path = Path(_fetch(run).path)
    counted = run.timeouts.counted(key, recipe.cut.timeout_seconds, SLOW_CUTTING)
    with run.timed("cut", clip.span.duration_seconds), _scratch(run) as folder:
        with counted, held(run.tools.workers.slots):
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
        run.tools.state.move_in({f"{cut_folder(key)}/{file.name}": file for file in sorted(folder.iterdir())})
    return cut


@contextlib.contextmanager
def _scratch(run: _Run) -> Iterator[Path]:
    """A folder for files in the making. Raises FileNotFoundError where it is gone: what failed then did not fail by itself."""
    folder = Path(tempfile.mkdtemp(dir=run.tools.scratch))
    try:
        yield folder
    except ClipError as error:
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
