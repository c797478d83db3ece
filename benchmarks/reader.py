"""Cost of reading a sample: 5 frames at 256 px, and the mel of the same span.

python -m benchmarks.reader                          sample clips, rendered at 1080p
python -m benchmarks.reader --folder FOLDER          clips of the real files there whose short side is 1080 px or more

The reader is held against plain webdataset with PyAV decoding whole clips, and against the least work that could be done: the decode
of just those frames, that sound and its mel, from files that lie open in memory, on the same times. CPU seconds count every process. All
contenders run in turn, so that what else the machine does meets them alike; ratios are within one turn, and their median is told.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import torch
import webdataset

from benchmarks.processes import Cost, cost_of
from pipeline.dataset.manifest import Counts, Manifest, Rendition, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardPlan, member_names, write_shard
from pipeline.encoders.mel import LogMel
from pipeline.judge.rules import ProbeSettings, judge_file
from pipeline.media.cut import CutSettings, cut_clip
from pipeline.media.ffmpeg import probe, versions
from pipeline.runtime.folder import Folder
from pipeline.schema import Bars, Span, clip_key
from trainer.streaming.frames import as_pictures, decode_frames
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm"}
CLIP_MS = 10_000
SHORTEST_MS = 2_000
RENDITIONS = (256, 1080)
SAMPLES_A_TURN = {256: 48, 1080: 12}
"""At least: each turn goes over the clips again until there are so many."""
SOUND_HZ = 44_100
LOG_MEL = LogMel()


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The members of a sample in memory, and the times of the frames to decode."""

    mp4: bytes
    flac: bytes
    start: float
    seconds: float
    wanted: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="real files instead of rendered ones")
    parser.add_argument("--clips", type=int, default=12, help="most clips that are cut")
    parser.add_argument("--window", type=float, default=10.0, metavar="SECONDS", help="span taken of each clip")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hearscape-reader-") as name:
        work = Path(name)
        files = _files(options.folder) if options.folder else _rendered(work)
        count, seconds = _build(files, options.clips, work)
        print(
            f"{count} clips of {seconds / count:.1f} s on average, out of {len(files)} files; window {options.window} s"
        )
        for rendition in RENDITIONS:
            _report(work, rendition, count, options)


def _files(folder: Path) -> list[Path]:
    """Those with sound and a large enough landscape picture."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            facts = probe(path)
            is_fit = judge_file(facts, None, SHORTEST_MS / 1000, ProbeSettings()).kept
            if is_fit and facts.video is not None and min(facts.video.width, facts.video.height) >= max(RENDITIONS):
                found.append(path)
    return found


def _rendered(work: Path) -> list[Path]:
    from pipeline.synthetic.catalogue import catalogue  # noqa: PLC0415
    from pipeline.synthetic.render import render  # noqa: PLC0415

    chosen = [spec for spec in catalogue() if spec.expected == "kept" and spec.height == 360][:3]
    for spec in chosen:
        render(spec, work / f"{spec.name}.mp4", scale=3.0)
    return [work / f"{spec.name}.mp4" for spec in chosen]


def _build(files: Sequence[Path], most: int, work: Path) -> tuple[int, float]:
    """A dataset for each rendition, in its own folder, so that the reader has to take that one. Number and seconds of its clips."""
    contents: dict[int, dict[str, SampleContent]] = {rendition: {} for rendition in RENDITIONS}
    seconds = 0.0
    for number, path in enumerate(files):
        facts = probe(path)
        assert facts.video is not None
        length_ms = int(facts.duration_seconds * 1000) if facts.duration_seconds else CLIP_MS
        for start in range(0, length_ms - SHORTEST_MS, CLIP_MS):
            if len(contents[RENDITIONS[0]]) == most:
                break
            span = Span(start, min(start + CLIP_MS, length_ms))
            cut_clip(path, facts, span, Bars(), CutSettings(), work)
            seconds += span.duration_seconds
            key = clip_key(f"f{number:03d}", span)
            record: dict[str, Any] = {"source_id": f"f{number:03d}", "labels": [], "caption": None}
            for rendition in RENDITIONS:
                mp4, flac = ((work / name).read_bytes() for name in (f"{rendition}.mp4", "sound.flac"))
                contents[rendition][key] = SampleContent(mp4, flac, record)
    if not contents[RENDITIONS[0]]:
        raise SystemExit("no file has sound and a short side of 1080 px or more")
    for rendition in RENDITIONS:
        _write(work / str(rendition), rendition, contents[rendition])
    return len(contents[RENDITIONS[0]]), seconds


def _write(folder: Path, rendition: int, contents: dict[str, SampleContent]) -> None:
    target = Folder(str(folder))
    keys = list(contents)
    groups = [keys[start : start + 4] for start in range(0, len(keys), 4)]
    plans = [
        ShardPlan("train", n, tuple(Sample(key, "train", 1, key) for key in group)) for n, group in enumerate(groups)
    ]
    counts = Counts(states={"kept": len(keys)}, splits={"train": len(keys)})
    write_manifest(
        Manifest(
            name=str(rendition), recipe={}, versions=versions(), members=member_names(has_embeddings=False),
            renditions=(Rendition(name=str(rendition), short_side_px=rendition, video_codec="h264", sound_codec="aac"),),
            splits=("train",), shards=tuple(write_shard(plan, str(rendition), target, contents.__getitem__) for plan in plans),
            files=(), sources=counts, clips=counts,
        ),
        target,
    )  # fmt: skip


def _report(work: Path, rendition: int, count: int, options: argparse.Namespace) -> None:
    folder = work / str(rendition)
    passes = -(-SAMPLES_A_TURN[rendition] // count)
    settings = ReaderSettings(num_workers=0, batch_size=4, window_seconds=options.window)
    in_workers = settings.model_copy(update={"num_workers": 2, "start_workers": "fork"})
    tars = [str(path) for path in sorted(folder.rglob("*.tar"))]
    memory_samples = [_memory_sample(sample, settings) for sample in _plain(tars)]
    contenders: dict[str, Callable[[], Any]] = {
        "reader": lambda: _drained(folder, settings, passes),
        "reader, 2 workers": lambda: _drained(folder, in_workers, passes),
        "bare: just those frames": lambda: _each(_bare, memory_samples * passes, settings),
        "bare: PyAV's seek for each": lambda: _each(_sought, memory_samples * passes, settings),
        "webdataset, whole clips": lambda: _each(_whole, _plain(tars * passes), settings),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for repeat in range(options.repeats + 1):
        for name, work_once in contenders.items():
            cost = cost_of(work_once)
            if repeat:  # the first turn warms up
                costs[name].append(cost)
    samples = count * passes
    print(
        f"\nfrom {rendition} px: {sum(len(one.mp4) for one in memory_samples) / count / 1e6:.2f} MB a clip; {samples} samples a turn"
    )
    print(f"{'':<30}{'samples/s':>11}{'CPU ms a sample':>17}   CPU against the reader's, each turn")
    for name, spent in costs.items():
        rate = statistics.median(samples / cost.wall_seconds for cost in spent)
        cpu = statistics.median(cost.cpu_seconds for cost in spent) / samples
        ratios = [cost.cpu_seconds / mine.cpu_seconds for cost, mine in zip(spent, costs["reader"], strict=True)]
        text = f"{statistics.median(ratios):.2f}   ({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})"
        print(f"{name:<30}{rate:>11.1f}{cpu * 1000:>17.1f}   {text}")
    within, whole = (
        statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in zip(costs["reader"], costs[other], strict=True))
        for other in ("bare: just those frames", "webdataset, whole clips")
    )
    print(
        f"CPU: the reader takes {1 / within:.2f} times the bare decode's, whole clips take {whole:.1f} times the reader's"
    )


def _each(work: Callable[[Any, ReaderSettings], None], samples: Iterable[Any], settings: ReaderSettings) -> None:
    for sample in samples:
        work(sample, settings)


def _drained(folder: Path, settings: ReaderSettings, passes: int) -> None:
    reader = Reader([DatasetMix(location=str(folder))], settings, split="train", seed=0, shuffle=False)
    for _ in range(passes):
        for batch in reader:
            assert batch.mels_BMT is not None
    reader.close()
    if reader.bad:
        raise SystemExit(f"a sample could not be read: {reader.bad[0][0]}")


def _plain(tars: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield from webdataset.WebDataset(list(tars), shardshuffle=False)


def _memory_sample(sample: dict[str, Any], settings: ReaderSettings) -> MemorySample:
    """The middle of the clip, and the middles of its equal segments."""
    facts = soundfile.info(io.BytesIO(sample["flac"]))
    seconds = min(settings.window_seconds, facts.duration)
    start = round((facts.duration - seconds) / 2 * facts.samplerate) / facts.samplerate
    wanted = tuple(start + (i + 0.5) * seconds / settings.num_frames for i in range(settings.num_frames))
    return MemorySample(sample["mp4"], sample["flac"], start, seconds, wanted)


def _bare(one: MemorySample, settings: ReaderSettings) -> None:
    """The reader's own decode, without the reader."""
    as_pictures(decode_frames(one.mp4, one.wanted), settings.picture_px, 0.5, upscale=False)
    _mel(one, settings)


def _sought(one: MemorySample, settings: ReaderSettings) -> None:
    """What one would write by hand with PyAV."""
    frames = []
    with av.open(io.BytesIO(one.mp4), mode="r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        for second in one.wanted:
            container.seek(int(second / stream.time_base), stream=stream)
            last = None
            for frame in container.decode(stream):
                if last is not None and (frame.time or 0.0) > second:
                    break
                last = frame
            assert last is not None
            frames.append(last)
        as_pictures(frames, settings.picture_px, 0.5, upscale=False)
    _mel(one, settings)


def _mel(one: MemorySample, settings: ReaderSettings) -> torch.Tensor:
    with soundfile.SoundFile(io.BytesIO(one.flac)) as file:
        file.seek(round(one.start * file.samplerate))
        sound = file.read(round(one.seconds * file.samplerate), dtype="float32", always_2d=True)
    return _mel_of(sound, settings)


def _mel_of(sound: npt.NDArray[np.float32], settings: ReaderSettings) -> torch.Tensor:
    mono = np.zeros(round(settings.window_seconds * SOUND_HZ), np.float32)
    mono[: len(sound)] = sound.mean(axis=1)[: len(mono)]
    mel: torch.Tensor = LOG_MEL(torch.from_numpy(mono)[None])
    return mel


def _whole(sample: dict[str, Any], settings: ReaderSettings) -> None:
    """Every frame is decoded; only the wanted ones are scaled."""
    one = _memory_sample(sample, settings)
    with av.open(io.BytesIO(one.mp4), mode="r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = list(container.decode(video=0))
    times = np.array([frame.time for frame in frames])
    chosen = [frames[max(int(np.searchsorted(times, second, "right")) - 1, 0)] for second in one.wanted]
    as_pictures(chosen, settings.picture_px, 0.5, upscale=False)
    sound, rate_hz = soundfile.read(io.BytesIO(one.flac), dtype="float32", always_2d=True)
    first = round(one.start * rate_hz)
    _mel_of(sound[first : first + round(one.seconds * rate_hz)], settings)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    main()
    print(f"took {time.monotonic() - started:.0f} s on {len(os.sched_getaffinity(0))} cores")
