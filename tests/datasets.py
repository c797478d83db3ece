"""Small built datasets whose truth is known: every frame shows its number, and every sample's sound is noise of its own.

Clips are cut by the pipeline and packed by its shard writer; several samples share one clip's picture.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from pipeline.dataset.manifest import Counts, Manifest, Rendition, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardPlan, member_names, write_shard
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.ffmpeg import probe
from pipeline.runtime.folder import Folder
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise

WIDTH, HEIGHT = 160, 96
NUM_BITS, BIT_PX = 10, 8
SOUND_HZ = 44_100
CLIP_SECONDS = 2.0
NUM_CLIPS = 3
LABELS = ("rain", "fire", "ocean")


def frames_in_rows(numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """(96, 160, 3): a number in bars as wide as the picture, so that any square cut out of it shows them; below them a ramp that
    says from where the square is.
    """
    frames = []
    for number in numbers:
        frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        for bit in range(NUM_BITS):
            frame[bit * BIT_PX : (bit + 1) * BIT_PX] = 235 if number >> bit & 1 else 16
        frame[NUM_BITS * BIT_PX :] = (40 + np.arange(WIDTH))[None, :, None]
        frames.append(frame)
    return frames


def number_shown(picture_CHW: npt.NDArray[np.uint8]) -> int:
    """The number in a picture, or in a square out of it, at any size."""
    rows = picture_CHW.mean(axis=(0, 2))
    scale = len(rows) / HEIGHT
    return sum(1 << bit for bit in range(NUM_BITS) if rows[round((bit + 0.5) * BIT_PX * scale)] > 128)


def middle_shown(picture_CHW: npt.NDArray[np.uint8]) -> float:
    """Where the middle of the square lies in the whole picture, in pixels of a picture 160 wide."""
    ramp = picture_CHW[:, round(picture_CHW.shape[1] * 0.92)].mean()
    return float(ramp) - 40


@dataclass(frozen=True, slots=True)
class Clip:
    """A cut clip: its first frame shows ``first_number``, the next ones count on."""

    first_number: int
    pictures: dict[str, bytes]


def cut_clips(folder: Path) -> list[Clip]:
    """NUM_CLIPS clips of CLIP_SECONDS, in the renditions ``96`` and ``48``."""
    path = folder / "numbered.mp4"
    per_clip = round(CLIP_SECONDS * FPS)
    write_video(path, frames_in_rows(range(NUM_CLIPS * per_clip)), noise(NUM_CLIPS * CLIP_SECONDS), fps=FPS, gop=60)
    renditions = tuple(RenditionSettings(name=str(px), short_side_px=px) for px in (96, 48))
    settings = CutSettings(renditions=renditions, preset="veryfast", gop_seconds=0.5)
    clips = []
    for index in range(NUM_CLIPS):
        start_ms = round(index * CLIP_SECONDS * 1000)
        span = Span(start_ms, start_ms + round(CLIP_SECONDS * 1000))
        cut = cut_clip(path, probe(path), span, Bars(), settings, folder)
        clips.append(Clip(index * per_clip, {r.name: (folder / f"{r.name}.mp4").read_bytes() for r in cut.renditions}))
    return clips


def key_of(index: int) -> str:
    return f"s{index:03d}_00000000_{round(CLIP_SECONDS * 1000):08d}"


def index_of(key: str) -> int:
    return int(key[1:4])


def sound_of(index: int, seconds: float = CLIP_SECONDS) -> npt.NDArray[np.float32]:
    """(samples, 2): what lies in a sample's FLAC; its two channels differ."""
    rng = np.random.default_rng(index)
    whole = rng.integers(-8000, 8000, (round(seconds * SOUND_HZ), 2), np.int16)
    return (whole / 32768).astype(np.float32)


def as_flac(sound: npt.NDArray[np.float32], rate_hz: int = SOUND_HZ) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def content_of(index: int, clips: Sequence[Clip], rendition: str) -> SampleContent:
    return SampleContent(
        mp4=clips[index % len(clips)].pictures[rendition],
        flac=as_flac(sound_of(index)),
        record={
            "source_id": f"s{index:03d}",
            "labels": [LABELS[index % len(LABELS)]],
            "caption": f"caption {index}" if index % 2 else None,
        },
        picture=np.ones(4),
        sound=np.ones(4),
    )


def build_dataset(
    url: str | Path,
    clips: Sequence[Clip],
    shard_sizes: Sequence[int],
    *,
    name: str = "numbered",
    first: int = 0,
    contents: dict[int, SampleContent] | None = None,
) -> Manifest:
    """A dataset with shards of the given sizes in the split ``train``, samples ``first``, ``first + 1``, ...

    ``contents`` replaces those of some samples.
    """
    folder = Folder(str(url))
    numbers = itertools.count(first)
    plans = [
        ShardPlan("train", place, tuple(Sample(key_of(next(numbers)), "train", 1, "x") for _ in range(size)))
        for place, size in enumerate(shard_sizes)
    ]
    records = []
    for rendition in ("48", "96"):

        def load(key: str, rendition: str = rendition) -> SampleContent:
            return (contents or {}).get(index_of(key)) or content_of(index_of(key), clips, rendition)

        records += [write_shard(plan, rendition, folder, load) for plan in plans]
    counts = Counts(states={"kept": sum(shard_sizes)}, splits={"train": sum(shard_sizes)})
    manifest = Manifest(
        name=name,
        recipe={},
        versions={"hearscape": "test"},
        encoder_id="none",
        members=member_names(has_embeddings=True),
        renditions=tuple(
            Rendition(name=n, short_side_px=int(n), video_codec="h264", sound_codec="aac") for n in ("96", "48")
        ),
        splits=("train",),
        shards=tuple(records),
        files=(),
        sources=counts,
        clips=counts,
    )
    write_manifest(manifest, folder)
    return manifest
