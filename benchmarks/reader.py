"""Measures the cost of reading a sample: 5 frames at 256 px, and the mel of the same span.

python -m benchmarks.reader                          sample clips, rendered at 1080p
python -m benchmarks.reader --folder FOLDER          clips of its real files with a short side of 1080 px or more

The reader is compared with plain webdataset, where PyAV decodes whole clips, and with the least possible work: decoding only the frames
and the sound of a sample, and its mel, from files in memory. CPU seconds count every process. The methods run in turns, so that other
work of the machine affects all of them; a ratio compares costs of the same turn, and the median of the ratios is printed.
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

from benchmarks.build import media_files, render_samples
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

CLIP_MS = 10_000
MIN_MS = 2_000
"""Shortest clip that is cut."""
RENDITIONS = (256, 1080)
SAMPLES_PER_TURN = {256: 48, 1080: 12}
"""Rendition -> least number of samples in a turn. All clips are read repeatedly until it is reached."""
SOUND_HZ = 44_100
LOG_MEL = LogMel()


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The members of a sample in memory, and the span and the frames to decode."""

    mp4: bytes
    flac: bytes
    start_seconds: float
    length_seconds: float
    frame_seconds: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="real files instead of rendered ones")
    parser.add_argument("--clips", type=int, default=12, help="largest number of clips")
    parser.add_argument("--window", type=float, default=10.0, metavar="SECONDS", help="length of the span that is read")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hearscape-reader-") as name:
        work = Path(name)
        files = _usable_files(options.folder) if options.folder else render_samples(work, 3)
        count, seconds = _build(files, options.clips, work)
        print(
            f"{count} clips of {seconds / count:.1f} s on average, out of {len(files)} files; window {options.window} s"
        )
        for rendition in RENDITIONS:
            _report(work, rendition, count, options)


def _usable_files(folder: Path) -> list[Path]:
    """The files with sound and a short side of at least the largest rendition."""
    usable = []
    for path in media_files(folder):
        facts = probe(path)
        is_kept = judge_file(facts, None, MIN_MS / 1000, ProbeSettings()).kept
        if is_kept and facts.video is not None and min(facts.video.width, facts.video.height) >= max(RENDITIONS):
            usable.append(path)
    return usable


def _build(files: Sequence[Path], max_clips: int, work: Path) -> tuple[int, float]:
    """Writes a dataset for each rendition, so that the reader can take no other. Returns the number of clips and their total seconds."""
    contents: dict[int, dict[str, SampleContent]] = {rendition: {} for rendition in RENDITIONS}
    seconds = 0.0
    for number, path in enumerate(files):
        facts = probe(path)
        assert facts.video is not None
        length_ms = int(facts.duration_seconds * 1000) if facts.duration_seconds else CLIP_MS
        for start in range(0, length_ms - MIN_MS, CLIP_MS):
            if len(contents[RENDITIONS[0]]) == max_clips:
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
    num_passes = -(-SAMPLES_PER_TURN[rendition] // count)
    settings = ReaderSettings(num_workers=0, batch_size=4, window_seconds=options.window)
    with_workers = settings.model_copy(update={"num_workers": 2, "start_workers": "fork"})
    tars = [str(path) for path in sorted(folder.rglob("*.tar"))]
    memory_samples = [_memory_sample(sample, settings) for sample in _plain(tars)]
    methods: dict[str, Callable[[], Any]] = {
        "reader": lambda: _read_all(folder, settings, num_passes),
        "reader, 2 workers": lambda: _read_all(folder, with_workers, num_passes),
        "bare: only those frames": lambda: _process(_decode_bare, memory_samples * num_passes, settings),
        "bare: PyAV, a seek per frame": lambda: _process(_decode_by_seeking, memory_samples * num_passes, settings),
        "webdataset, whole clips": lambda: _process(_decode_whole, _plain(tars * num_passes), settings),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in methods}
    for turn in range(options.repeats + 1):
        for name, method in methods.items():
            cost = cost_of(method)
            if turn:  # the first turn warms up
                costs[name].append(cost)
    num_samples = count * num_passes
    megabytes = sum(len(sample.mp4) for sample in memory_samples) / count / 1e6
    print(f"\nfrom {rendition} px: {megabytes:.2f} MB a clip; {num_samples} samples a turn")
    print(f"{'':<30}{'samples/s':>11}{'CPU ms a sample':>17}   CPU / the reader's CPU, each turn")
    for name, method_costs in costs.items():
        rate = statistics.median(num_samples / cost.wall_seconds for cost in method_costs)
        cpu = statistics.median(cost.cpu_seconds for cost in method_costs) / num_samples
        ratios = _cpu_ratios(method_costs, costs["reader"])
        text = f"{statistics.median(ratios):.2f}   ({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})"
        print(f"{name:<30}{rate:>11.1f}{cpu * 1000:>17.1f}   {text}")
    bare, whole = (
        statistics.median(_cpu_ratios(costs[name], costs["reader"]))
        for name in ("bare: only those frames", "webdataset, whole clips")
    )
    print(
        f"CPU: the reader takes {1 / bare:.2f} times the bare decode's, whole clips take {whole:.1f} times the reader's"
    )


def _cpu_ratios(costs: Sequence[Cost], reference: Sequence[Cost]) -> list[float]:
    """CPU seconds of each turn, divided by those of the reference."""
    return [cost.cpu_seconds / base.cpu_seconds for cost, base in zip(costs, reference, strict=True)]


def _process(work: Callable[[Any, ReaderSettings], None], samples: Iterable[Any], settings: ReaderSettings) -> None:
    for sample in samples:
        work(sample, settings)


def _read_all(folder: Path, settings: ReaderSettings, num_passes: int) -> None:
    """Reads the dataset ``num_passes`` times. Raises SystemExit if a sample cannot be read."""
    reader = Reader([DatasetMix(location=str(folder))], settings, split="train", seed=0, shuffle=False)
    for _ in range(num_passes):
        for batch in reader:
            assert batch.mels_BMT is not None
    reader.close()
    if reader.bad:
        raise SystemExit(f"a sample could not be read: {reader.bad[0][0]}")


def _plain(tars: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield from webdataset.WebDataset(list(tars), shardshuffle=False)


def _memory_sample(sample: dict[str, Any], settings: ReaderSettings) -> MemorySample:
    """A span in the middle of the clip, and the middle of each of its equal segments as the times of the frames."""
    facts = soundfile.info(io.BytesIO(sample["flac"]))
    length = min(settings.window_seconds, facts.duration)
    start = round((facts.duration - length) / 2 * facts.samplerate) / facts.samplerate
    frame_seconds = tuple(start + (i + 0.5) * length / settings.num_frames for i in range(settings.num_frames))
    return MemorySample(sample["mp4"], sample["flac"], start, length, frame_seconds)


def _decode_bare(sample: MemorySample, settings: ReaderSettings) -> None:
    """Decodes with the reader's function for frames, without the reader."""
    as_pictures(decode_frames(sample.mp4, sample.frame_seconds), settings.picture_px, 0.5, upscale=False)
    _mel(sample, settings)


def _decode_by_seeking(sample: MemorySample, settings: ReaderSettings) -> None:
    """Decodes with PyAV alone: seeks to the key frame before each frame, and decodes from there."""
    frames = []
    with av.open(io.BytesIO(sample.mp4), mode="r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        for second in sample.frame_seconds:
            container.seek(int(second / stream.time_base), stream=stream)
            last = None
            for frame in container.decode(stream):
                if last is not None and (frame.time or 0.0) > second:
                    break
                last = frame
            assert last is not None
            frames.append(last)
        as_pictures(frames, settings.picture_px, 0.5, upscale=False)
    _mel(sample, settings)


def _mel(sample: MemorySample, settings: ReaderSettings) -> torch.Tensor:
    with soundfile.SoundFile(io.BytesIO(sample.flac)) as file:
        file.seek(round(sample.start_seconds * file.samplerate))
        sound = file.read(round(sample.length_seconds * file.samplerate), dtype="float32", always_2d=True)
    return _mel_of(sound, settings)


def _mel_of(sound: npt.NDArray[np.float32], settings: ReaderSettings) -> torch.Tensor:
    mono = np.zeros(round(settings.window_seconds * SOUND_HZ), np.float32)
    mono[: len(sound)] = sound.mean(axis=1)[: len(mono)]
    mel: torch.Tensor = LOG_MEL(torch.from_numpy(mono)[None])
    return mel


def _decode_whole(members: dict[str, Any], settings: ReaderSettings) -> None:
    """Decodes every frame and all sound; scales only the frames of the sample."""
    sample = _memory_sample(members, settings)
    with av.open(io.BytesIO(sample.mp4), mode="r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = list(container.decode(video=0))
    times = np.array([frame.time for frame in frames])
    chosen = [frames[max(int(np.searchsorted(times, second, "right")) - 1, 0)] for second in sample.frame_seconds]
    as_pictures(chosen, settings.picture_px, 0.5, upscale=False)
    sound, rate_hz = soundfile.read(io.BytesIO(sample.flac), dtype="float32", always_2d=True)
    first = round(sample.start_seconds * rate_hz)
    _mel_of(sound[first : first + round(sample.length_seconds * rate_hz)], settings)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    main()
    print(f"took {time.monotonic() - started:.0f} s on {len(os.sched_getaffinity(0))} cores")
