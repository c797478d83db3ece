"""Results for a file: its header, its measures, its embeddings. Results of earlier runs are looked up by their keys in ``state``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pipeline.agreement.measures import agreement
from pipeline.build.embedder import embedded_name, read_embeddings, with_name
from pipeline.build.source_file import fetched_file, of_one_file
from pipeline.build.source_run import SourceRun, scratch_folder
from pipeline.build.timeouts import COUNTED
from pipeline.errors import ClipError, MediaError, PreviewError
from pipeline.fetch.download import fetch_key
from pipeline.fetch.failures import failure_of
from pipeline.measure.preview_files import DAMAGED, GONE, SUFFIXES, Sums
from pipeline.measure.video import MeasuredVideo, measure_video
from pipeline.media.facts import FACTS_VERSION, MediaFacts
from pipeline.media.ffmpeg import probe
from pipeline.runtime.damage import read_named, read_whole, write_named
from pipeline.schema import AgreementMeasures, Failure, flat, from_flat, stable_hash

LOG = logging.getLogger(__name__)

PROBE_TIMEOUT_SECONDS = 60.0
PROBE_BYTES_PER_SECOND = 20e6
"""Slowest reading that is allowed for: transport streams are read to their end."""
SLOW_PROBING = "set execution.try_failed_again=true for another try"
SLOW_MEASURING = "raise measure.timeout_seconds or measure.timeout_max_seconds, or set execution.try_failed_again=true"
SLOW_EMBEDDING = "choose smaller encoders or a faster machine, and set execution.try_failed_again=true"


def facts_of(run: SourceRun, content_sha256: str) -> MediaFacts:
    """What the header of the file says. Raises ClipError."""
    name = f"probed/{content_sha256[:2]}/{content_sha256}-{FACTS_VERSION}.json"

    def probe_file() -> MediaFacts:
        path = Path(fetched_file(run).path)
        run.stage = "probe"
        seconds = PROBE_TIMEOUT_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND
        with run.timeouts.counted(f"probe {content_sha256}", seconds, SLOW_PROBING):
            return run.tools.workers.run(probe, seconds, path)

    return remembered(run, name, MediaFacts, probe_file)[0]


@dataclass(frozen=True, slots=True)
class Measured:
    """Measures of a decoded file, and the SHA-256 of its previews."""

    video: MeasuredVideo
    previews: Sums | None
    """None: stored by an earlier version, without sums."""

    def to_json(self) -> dict[str, Any]:
        return {**self.video.to_json(), "previews": self.previews}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        sums = values.get("previews")
        return cls(MeasuredVideo.from_json(values), sums and {suffix: str(sums[suffix]) for suffix in SUFFIXES})


def measured_of(run: SourceRun, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> Measured:
    """Measures of the section (ms in the file). ``key``: that of the measures. Raises ClipError."""
    measured, reused = remembered(run, _measured_name(key), Measured, lambda: _measure(run, key, facts, section))
    if reused:
        with run.timed("measure", measured.video.decoded_seconds, reused=True):
            pass
    return measured


def _measured_name(key: str) -> str:
    return f"measured/{key[:2]}/{key}.json"


class Result(Protocol):
    """The result of a stage, which is stored as JSON."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self: ...


R = TypeVar("R", bound=Result)


def remembered(
    run: SourceRun, name: str, kind: type[R], work: Callable[[], R], is_whole: Callable[[R], bool] = lambda kept: True
) -> tuple[R, bool]:
    """Result of ``work`` in this run or an earlier one, and whether it was an earlier one. It is stored under ``name``.

    A lasting failure is stored as well: its error is raised again, without ``work``, unless ``execution.try_failed_again``. A stored
    result that is damaged, or for which ``is_whole`` is False, is ignored.
    """
    state = run.tools.state

    def parse(values: Any) -> R | Failure:
        return from_flat(Failure, values["failed"]) if "failed" in values else kind.from_json(values)

    kept = read_named(state, name, parse)
    if isinstance(kept, Failure):
        if not run.tools.recipe.execution.try_failed_again:
            run.stage = kept.stage
            raise MediaError(kept.code, kept.message)
        if run.fetched is None:  # the file may have been corrected at its server
            run.tools.store.forget(fetch_key(run.source, run.tools.recipe.download))
    elif kept is not None and is_whole(kept):
        return kept, True
    try:
        result = of_one_file(run, work)
    except ClipError as error:
        run.tools.stop.check()  # a failure during a stop is no property of the source
        failure = failure_of(run.stage, error)
        # failed fetches, time-outs and lack of memory are stored by FetchFailures and Timeouts
        if not failure.transient and run.stage != "fetch" and failure.code not in COUNTED:
            write_named(state, name, {"failed": flat(failure)})
        raise
    write_named(state, name, result.to_json())
    return result, False


def _measure(run: SourceRun, key: str, facts: MediaFacts, section: tuple[int, int | None]) -> Measured:
    recipe = run.tools.recipe
    path = Path(fetched_file(run).path)
    assert facts.video is not None
    seconds = facts.video.duration_seconds or facts.duration_seconds or 0.0
    limit_seconds = max(recipe.measure.timeout_seconds, min(10 * seconds, recipe.measure.timeout_max_seconds))
    counted = run.timeouts.counted(key, limit_seconds, SLOW_MEASURING)
    with run.timed("measure", seconds), scratch_folder(run) as folder, counted:
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
    return Measured(measured, sums)


def agreements_of(
    run: SourceRun, key: str, measured: Measured, section: tuple[int, int | None]
) -> tuple[str | None, list[AgreementMeasures | None]]:
    """Key of the embeddings, and the agreement of each clip. None without encoders. ``key``: that of the measures. Raises ClipError."""
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


def _embed(run: SourceRun, name: str, key: str, measured: Measured, section: tuple[int, int | None]) -> bytes:
    """Embeds all clips, from the previews. If these are damaged, the file is decoded again."""
    embedder, previews = run.tools.embedder, run.tools.previews
    assert embedder is not None
    if not previews.have(key):
        measured = _decoded_again(run, key, measured, section)
    spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in measured.video.clips]
    for last_try in (False, True):
        try:
            with run.timed("embed", measured.video.decoded_seconds), scratch_folder(run) as folder:
                copies = previews.copy_to(key, folder, measured.previews)
                with run.timeouts.counted(name, embedder.single_clip_seconds, SLOW_EMBEDDING):
                    return embedder.embed(*copies, spans)
        except PreviewError as error:
            if last_try or error.code != DAMAGED:
                raise
            LOG.warning("%s: the file is decoded again for them", error)
        measured = _decoded_again(run, key, measured, section, wanted=True)
    raise AssertionError("the loop returns or raises")


def _decoded_again(
    run: SourceRun, key: str, measured: Measured, section: tuple[int, int | None], *, wanted: bool = False
) -> Measured:
    """Decodes the file again for its previews. Raises PreviewError unless ``execution.decode_again`` or ``wanted``."""
    run.stage = "embed"
    if not wanted and not run.tools.recipe.execution.decode_again:
        raise PreviewError(
            GONE,
            "the previews (small frames and sound for the encoders) were deleted: set execution.decode_again=true to fetch and "
            "decode the source once more (and execution.keep_previews=true or a larger previews_budget_bytes to keep them)",
        )
    again = _measure(run, key, measured.video.facts, section)
    write_named(run.tools.state, _measured_name(key), again.to_json())
    return again
