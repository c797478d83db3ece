"""Writes the files of synthetic sources, their source list, and their expected outcomes in a build."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pebble
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # as numpy.show_runtime reads them
from scipy.signal import butter, sosfilt

from pipeline.errors import OutputError
from pipeline.media import ffmpeg as media
from pipeline.runtime.workers import end_with_parent
from pipeline.schema import stable_hash
from pipeline.synthetic.catalogue import LICENCE, SoundSpec, SyntheticSpec, catalogue, truth
from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import NATURE_KINDS, Sound, nature_sound
from pipeline.synthetic.textures import Image
from pipeline.synthetic.video import write_video
from pipeline.synthetic.voices import music_sound, speech_sound

DEFAULT_BASE_URL = "http://127.0.0.1:8765/"
_MARKER = ".rendered.json"
"""The file that lists the fingerprints of the rendered sources."""
_TRUNCATED_SHARE = 0.55
"""The share of a truncated file's bytes that is kept."""
_REPLACEMENTS = {
    "text": "This is a text file. It was named like a video.\n" * 40,
    "empty": "",
    "html": "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head>\n<body><h1>Not Found</h1>"
    "<p>The video that you asked for is not on this server.</p></body></html>\n",
}
"""For each fault that replaces the video, the text of the file."""

logger = logging.getLogger(__name__)


def spec_frames(spec: SyntheticSpec) -> Iterator[Image]:
    """All frames of a synthetic source, bars included, each (height, width, 3) uint8 RGB."""
    bars = spec.bars
    width, height = spec.width - bars.left - bars.right, spec.height - bars.top - bars.bottom
    for scene, times in zip(spec.scenes, spec.frame_times(), strict=True):
        for picture in scene_frames(
            scene.kind, scene.seed, times, width=width, height=height, seconds=scene.seconds, still=scene.still
        ):
            if not bars:
                yield picture
                continue
            framed = np.zeros((spec.height, spec.width, 3), np.uint8)
            framed[bars.top : bars.top + height, bars.left : bars.left + width] = picture
            yield framed


def spec_sound(spec: SyntheticSpec) -> Sound | None:
    """The sound of a synthetic source, (audio samples, channels) float32; None when it has no audio track."""
    if not spec.all_sounds:
        return None
    stereo = np.concatenate([_section(sound, spec.sample_rate) for sound in spec.all_sounds])
    if spec.channels == 1:
        return np.asarray(stereo.mean(axis=1, keepdims=True) * np.float32(1.4))
    if spec.channels == 6:
        left, right = stereo[:, :1], stereo[:, 1:]
        low = sosfilt(butter(2, 110, fs=spec.sample_rate, output="sos"), (left + right) / 2, axis=0)
        parts = [left, right, (left + right) * 0.35, low, 0.6 * np.roll(left, 911, 0), 0.6 * np.roll(right, 877, 0)]
        return np.concatenate(parts, axis=1).astype(np.float32)
    return stereo


def _section(sound: SoundSpec, rate: int) -> Sound:
    """A section of the sound track, (samples, 2)."""
    if sound.kind == "silence":
        return np.zeros((round(sound.seconds * rate), 2), np.float32)
    if sound.kind in NATURE_KINDS:
        samples = nature_sound(sound.kind, sound.seed, sound.seconds, rate)
    else:
        samples = {"speech": speech_sound, "music": music_sound}[sound.kind](sound.seed, sound.seconds, rate)
    return samples if sound.gain == 1.0 else np.clip(samples * np.float32(sound.gain), -1.0, 1.0)


def render(spec: SyntheticSpec, path: Path, *, scale: float = 1.0) -> None:
    """Writes the file of a synthetic source to ``path`` atomically. ``scale`` multiplies the size of its picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        if spec.fault in _REPLACEMENTS:
            partial.write_text(_REPLACEMENTS[spec.fault])
        else:
            _encode(spec if scale == 1.0 else spec.scaled(scale), partial)
        if spec.fault == "truncated":
            os.truncate(partial, round(partial.stat().st_size * _TRUNCATED_SHARE))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode(spec: SyntheticSpec, path: Path) -> None:
    starts = (0.0, *spec.cuts_seconds)
    times = [start + t for start, scene in zip(starts, spec.frame_times(), strict=False) for t in scene]
    write_video(
        path,
        spec_frames(spec) if spec.scenes else None,
        spec_sound(spec),
        fps=spec.fps,
        frame_times_seconds=times if spec.variable_frame_rate else None,
        sample_rate=spec.sample_rate,
        **asdict(spec.encoding),
    )


@functools.cache
def _versions() -> str:
    """A hash of this package's code and of the versions of the libraries on which the rendered bytes depend."""
    sources = [file.read_bytes().hex() for file in sorted(Path(__file__).parent.glob("*.py"))]
    return stable_hash(np.__version__, cv2.__version__, media.ffmpeg_path(), *sources)


def _fingerprint(spec: SyntheticSpec, scale: float) -> str:
    """A hash of everything that the file of a source depends on."""
    return stable_hash(_versions(), scale, repr(spec))


def _render_alone(spec: SyntheticSpec, path: Path, scale: float) -> None:
    """Renders a source in a worker process, on one thread: there is a process for each core."""
    cv2.setNumThreads(1)
    cv2.ipp.setUseIPP(False)  # results of Intel's library depend on the processor
    render(spec, path, scale=scale)


@contextlib.contextmanager
def numpy_of_all_processors() -> Iterator[None]:
    """Processes that are started inside the block use only NumPy's baseline instructions, which every x86-64 processor has.

    Otherwise NumPy selects its sine and exponential by the processor, and the last digits of their results differ.
    """
    name = "NPY_DISABLE_CPU_FEATURES"
    previous = os.environ.get(name)
    os.environ[name] = " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature))
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous


@contextlib.contextmanager
def sources_locked(folder: Path) -> Iterator[None]:
    """Makes the folder, locks it against other commands that render into it, and removes partial files of killed ones.

    Raises OutputError where the folder cannot be made or another command holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}: the synthetic sources cannot be rendered there"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{folder}: another command uses these synthetic sources; wait until it ends") from error
        for partial in (*folder.glob(".part-*"), *folder.glob(".writing-*")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        yield


@contextlib.contextmanager
def _processes(number: int) -> Iterator[pebble.ProcessPool]:
    """A pool of processes; when an error or Ctrl-C ends the block, the processes are ended at once."""
    context = multiprocessing.get_context("spawn")
    pool = pebble.ProcessPool(max_workers=number, context=context, initializer=_initialise_process)
    try:
        yield pool
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _initialise_process() -> None:
    """The process ignores Ctrl-C, which its parent handles, and ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, name="end-with-parent", daemon=True).start()


def render_catalogue(
    folder: Path,
    *,
    specs: Sequence[SyntheticSpec] | None = None,
    base_url: str = DEFAULT_BASE_URL,
    workers: int | None = None,
    scale: float = 1.0,
) -> list[Path]:
    """Writes synthetic sources, ``sources.csv`` and ``truth.json`` to ``folder``, and returns the paths of the sources.

    ``specs``: None for the whole catalogue. ``workers``: number of processes, None for one per core. ``scale``
    multiplies the size of the pictures. Files that the same version of the generator has written before are kept. The
    bytes are the same on every x86-64 processor with FMA; without it, the C library's functions may differ in the last
    digit.
    """
    chosen = catalogue() if specs is None else tuple(specs)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _MARKER
    rendered: dict[str, str] = json.loads(marker.read_text()) if marker.exists() else {}
    fingerprints = {spec.file_name: _fingerprint(spec, scale) for spec in chosen}
    missing = [
        spec
        for spec in chosen
        if rendered.get(spec.file_name) != fingerprints[spec.file_name] or not (folder / spec.file_name).exists()
    ]
    # the slowest first, so that no process works alone at the end
    missing.sort(key=lambda spec: -spec.picture_seconds * spec.fps * (spec.width * spec.height + 400_000))
    if missing:
        logger.info("rendering %d of %d synthetic sources to %s", len(missing), len(chosen), folder)
        with numpy_of_all_processors(), _processes(min(workers or os.cpu_count() or 1, len(missing))) as pool:
            running: dict[Future[None], SyntheticSpec] = {
                pool.schedule(_render_alone, (spec, folder / spec.file_name, scale)): spec for spec in missing
            }
            for future in as_completed(running):
                future.result()
                spec = running[future]
                rendered[spec.file_name] = fingerprints[spec.file_name]
                _write(marker, json.dumps(rendered, indent=1, sort_keys=True))
                logger.info("rendered %s", spec.file_name)
    write_lists(folder, chosen, base_url=base_url)
    return [folder / spec.file_name for spec in chosen]


def write_lists(folder: Path, specs: Sequence[SyntheticSpec], *, base_url: str = DEFAULT_BASE_URL) -> None:
    """Writes ``sources.csv`` (a source list whose links begin with ``base_url``) and ``truth.json`` (expected outcomes)."""
    rows: list[Mapping[str, Any]] = [
        {
            "id": spec.name,
            "url": f"{base_url.rstrip('/')}/{quote(spec.file_name)}",
            "label": spec.label,
            "caption": spec.caption,
            "licence": LICENCE,
            "split": spec.split,
        }
        for spec in specs
    ]
    partial = folder / f".part-{os.getpid()}-sources.csv"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, fieldnames=["id", "url", "label", "caption", "licence", "split"], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / "sources.csv")
    _write(folder / "truth.json", json.dumps({spec.name: truth(spec) for spec in specs}, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
