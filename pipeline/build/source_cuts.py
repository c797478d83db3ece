"""Cuts the clips of a source, and looks up cuts of earlier runs in ``state``."""

from __future__ import annotations

from pathlib import Path

from pipeline.build.source_file import fetched_file
from pipeline.build.source_results import remembered
from pipeline.build.source_run import SourceRun, scratch_folder
from pipeline.measure.video import MeasuredClip, MeasuredVideo
from pipeline.media.cut import CutClip, cut_clip
from pipeline.media.facts import MediaFacts
from pipeline.runtime.damage import log_damage
from pipeline.runtime.folder import Folder
from pipeline.runtime.waiting import counted_lock

SLOW_CUTTING = "raise cut.timeout_seconds, choose a faster cut.preset, or set execution.try_failed_again=true"


def cut_folder(key: str) -> str:
    """Path in ``state`` of the folder with the files of a cut."""
    return f"cuts/{key[:2]}/{key}"


def cut_of(run: SourceRun, key: str, measured: MeasuredVideo, index: int) -> CutClip:
    """The cut of a clip, by this run or an earlier one. ``key``: that of the cut. Raises ClipError."""
    clip = measured.clips[index]
    cut, reused = remembered(
        run,
        f"{cut_folder(key)}/cut.json",
        CutClip,
        lambda: _new_cut(run, key, measured.facts, clip),
        lambda kept: _has_files(run.tools.state, key, kept),
    )
    if reused:
        with run.timed("cut", clip.span.duration_seconds, reused=True):
            pass
    return cut


def _has_files(state: Folder, key: str, cut: CutClip) -> bool:
    """Whether the files of a cut exist and have their sizes. Their content is checked when they are packed."""
    sizes = {name.rpartition("/")[2]: num_bytes for name, num_bytes, _ in state.files(cut_folder(key))}
    problems = {
        f"{cut_folder(key)}/{name}": f"has {sizes[name]} bytes, not {num_bytes}" if name in sizes else "is missing"
        for name, (num_bytes, _) in cut.files.items()
        if sizes.get(name) != num_bytes
    }
    log_damage(state, problems)
    return not problems


def _new_cut(run: SourceRun, key: str, facts: MediaFacts, clip: MeasuredClip) -> CutClip:
    recipe = run.tools.recipe
    path = Path(fetched_file(run).path)
    counted = run.timeouts.counted(key, recipe.cut.timeout_seconds, SLOW_CUTTING)
    with run.timed("cut", clip.span.duration_seconds), scratch_folder(run) as folder:
        with counted, counted_lock(run.tools.workers.slots):
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
