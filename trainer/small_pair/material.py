"""Reads the training material of the packaged pair: real pictures and sounds of a folder with an index, and painted scenes.

A folder holds ``index.csv`` with the columns path, kind (photo, landscape or sound), class, audio_kind (natural: the sound was recorded
with the picture), license, and optionally repo. It may hold ``pairs.csv`` (video, sound, class, sound_class, match).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.encoders.mel import resampled
from pipeline.errors import UserError
from pipeline.schema import unit_interval
from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import NATURE_KINDS, nature_sound

RATE_HZ = 44_100
SHORT_SIDE_PX = 256
JPEG_QUALITY = 92
CLIP_SECONDS = 10.0
MIN_SECONDS = 2.5
"""Shortest sound of a video's clip. Clips with less sound are neither trained on nor scored."""
TEST_SHARE = 0.15
"""Share of the photographs in the test part, beside those that are there for another reason."""

SAME_SOURCE = (
    ("ocean__rubanwd__beach", "frame__ocean__Mat955__beach"),
    ("rain__rubanwd__rain", "frame__rain__Mat955__rain"),
    ("fire__hatamjafarov__bonfire", "fire__sinano1107__campfire"),
    ("ocean__remvze__waves", "ocean__lucaslister__ocean"),
)
"""Names of files with equal content: the first of a pair gets the second as its source, so that both are on one side of the split."""


class MaterialError(UserError):
    """The training material cannot be used."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the index."""

    path: Path
    kind: str
    """photo, landscape (a video) or sound."""
    label: str
    source: str
    """The same for all files of one place or recording. A split keeps a source together."""
    licence: str
    natural: bool
    """Whether the sound of a video was recorded with its picture, or a sound is a recording of its class."""
    held_out: bool = False
    """Whether it is in the test part. No weight and no setting is chosen with it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A video and a recording that do or do not belong together."""

    video: Item
    sound: Item
    match: bool
    note: str


@dataclass(frozen=True, slots=True)
class Material:
    items: tuple[Item, ...]
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledSpan:
    """Pictures and sound of one span, in the form in which a build embeds them. Either may be empty."""

    label: str
    source: str
    frames: tuple[NDArray[np.uint8], ...] = ()
    """(H, W, 3) RGB each."""
    sound: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Mono, at ``RATE_HZ``."""


def read_material(folder: Path) -> Material:
    """The index of ``folder``, split into a training part and a test part, which is held out.

    Held out are every video, the recordings of pairs.csv, photographs of the origins of videos that have their own sound,
    and a fixed share of the other photographs. Raises MaterialError for a folder without an index, or with a wrong one.
    """
    rows = _rows(folder / "index.csv", ("path", "kind", "class", "audio_kind", "license"))
    usable_rows = [row for row in rows if row["kind"] in ("photo", "landscape", "sound")]
    if not usable_rows:
        raise MaterialError(
            f"{folder / 'index.csv'} names no photo, landscape or sound; see the kinds in its column 'kind'"
        )
    video_places = {_place(row) for row in usable_rows if row["kind"] == "landscape"}
    items = {row["path"]: _item(folder, row, video_places) for row in usable_rows}
    if missing := [name for name, item in items.items() if not item.path.is_file()]:
        raise MaterialError(f"{folder / 'index.csv'} names {len(missing)} files that are not there: {missing[:3]}")
    pair_rows = _rows(folder / "pairs.csv", ("video", "sound", "match")) if (folder / "pairs.csv").is_file() else []
    for row in pair_rows:
        for name in (row["video"], row["sound"]):
            if name not in items:
                raise MaterialError(f"{folder / 'pairs.csv'} names {name!r}, which index.csv does not have")
    paired_sources = {items[row["sound"]].source for row in pair_rows}
    video_sources = {item.source for item in items.values() if item.kind == "landscape"}
    natural_videos = [row for row in usable_rows if row["kind"] == "landscape" and row.get("audio_kind") == "natural"]
    video_origins = {row["repo"] for row in natural_videos}
    for row in usable_rows:
        item = items[row["path"]]
        held_out = item.source in video_sources | paired_sources
        if item.kind == "photo":
            held_out |= row.get("repo", "") in video_origins or unit_interval("test", item.source) < TEST_SHARE
        items[row["path"]] = replace(item, held_out=held_out)
    pairs = tuple(
        Pair(items[row["video"]], items[row["sound"]], row["match"] == "1", row.get("note", "")) for row in pair_rows
    )
    return Material(tuple(items.values()), pairs)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise MaterialError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(columns)}")
            return list(reader)
    except OSError as error:
        raise MaterialError(f"cannot read {path}: {error}; --material names a folder with an index.csv") from error


def _place(row: dict[str, str]) -> str:
    """Identifies the place of a video or photograph. Files of one class and origin (``repo``) are assumed to show one place."""
    return f"{row.get('repo') or Path(row['path']).stem} {row['class']}"


def _item(folder: Path, row: dict[str, str], video_places: set[str]) -> Item:
    stem = Path(row["path"]).stem
    source = re.sub(r"_\d$", "", stem) if stem.startswith("frame__") else stem
    renamed = dict(SAME_SOURCE)
    if source in renamed:
        source = renamed[source]
    elif row["kind"] != "sound" and _place(row) in video_places and source not in renamed.values():
        source = _place(row)
    return Item(
        path=folder / row["path"],
        kind=row["kind"],
        label=row["class"],
        source=source,
        licence=row["license"],
        natural=row["audio_kind"] == "natural",
    )


# reading


def read_photo(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, prepared like a build's previews. Raises MaterialError."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise MaterialError(f"{path} is no picture that OpenCV can read")
    return _like_a_preview(np.asarray(image, np.uint8)[:, :, ::-1])


def _like_a_preview(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame as the encoder of a build gets it: scaled to a short side of 256 px at most, compressed as JPEG, and decoded."""
    scale = SHORT_SIDE_PX / min(frame.shape[:2])
    if scale < 1:
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, jpeg = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[:, :, ::-1], np.uint8)


def read_sound(path: Path) -> NDArray[np.float32]:
    """Mono float32 at 44.1 kHz. Raises MaterialError."""
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise MaterialError(f"{path} is no sound that libsndfile can read: {error}") from error
    return resampled(samples.mean(axis=1), rate, RATE_HZ)


def read_video_clips(item: Item) -> list[LabelledSpan]:
    """A video as clips of 10 s: one frame a second, and the sound of the same span. A video below 20 s is one clip; a rest is left out.

    The sound is empty if it was not recorded with the picture. Raises MaterialError.
    """
    try:
        frames, sound = _decode(item.path)
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise MaterialError(f"{item.path} is no video that can be read: {error}") from error
    if not item.natural:
        sound = np.zeros(0, np.float32)
    num_clips = max(1, int(len(frames) // CLIP_SECONDS))
    clips = []
    for index in range(num_clips):
        first, last = round(index * CLIP_SECONDS), round((index + 1) * CLIP_SECONDS)
        clip_sound = sound[first * RATE_HZ : last * RATE_HZ]
        clips.append(LabelledSpan(item.label, item.source, tuple(frames[first:last]), clip_sound))
    return clips


def _decode(path: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """One frame a second, and the mono sound at ``RATE_HZ``."""
    frames: list[NDArray[np.uint8]] = []
    sound_blocks: list[NDArray[np.float32]] = []
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        audio = container.streams.audio[0] if container.streams.audio else None
        resampler = av.AudioResampler("flt", "stereo", RATE_HZ)
        next_seconds = 0.0
        for frame in container.decode(*(stream for stream in (video, audio) if stream is not None)):
            if isinstance(frame, av.AudioFrame):
                sound_blocks += [block.to_ndarray().reshape(-1, 2).mean(axis=1) for block in resampler.resample(frame)]
            elif isinstance(frame, av.VideoFrame) and (frame.time or 0.0) >= next_seconds - 0.001:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4)
                frames.append(_like_a_preview(np.ascontiguousarray(upright)))
                next_seconds = (frame.time or 0.0) + 1.0
    sound = np.concatenate(sound_blocks) if sound_blocks else np.zeros(0)
    return frames, sound.astype(np.float32)


def painted_clips(seeds: Sequence[int], seconds: float = 10.0, num_frames: int = 8) -> Iterator[LabelledSpan]:
    """The project's own painted scenes with their sounds, for every class and seed, in different sizes."""
    for seed in seeds:
        for kind in NATURE_KINDS:
            times = [seconds * (index + 0.5) / num_frames for index in range(num_frames)]
            width = (640, 480, 640, 360)[seed % 4]
            frames = scene_frames(kind, seed, times, width=width, height=360, seconds=seconds)
            sound = nature_sound(kind, seed, seconds, RATE_HZ).mean(axis=1)
            yield LabelledSpan(kind, f"painted-{kind}-{seed}", tuple(map(_like_a_preview, frames)), sound)
