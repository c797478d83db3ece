"""Measures the cost of a build, compared with a lower limit: one bare ffmpeg for each source that writes the same clips.

python -m benchmarks.build                          synthetic sources, rendered at 1080p
python -m benchmarks.build --folder FOLDER          real files
python -m benchmarks.build --memory 20 200          peak memory with 20 and with 200 sources of different content

A file that one side cannot process is named and left out. CPU seconds count every process. Download and embedding are listed
separately: the build has local sources and no encoders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.processes import Cost, Peak, adopt_orphans, cost_of
from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair
from pipeline.errors import ClipError
from pipeline.events import ignore
from pipeline.fetch.download import fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.settings import DownloadSettings
from pipeline.judge.rules import judge_clip, judge_file
from pipeline.measure.previews import read_frames, read_sounds
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.measure.video import MeasuredVideo, measure_video
from pipeline.media.cut import cut_clip, picture_size
from pipeline.media.facts import MediaFacts
from pipeline.media.ffmpeg import ffmpeg_path, probe
from pipeline.schema import Source
from pipeline.synthetic.serve import serve_folder

RECIPE = Path(__file__).with_name("build.toml")
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="real files instead of rendered ones")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--embed", default="ViT-B-32", metavar="MODEL", help="open_clip model for the embedding row, or none"
    )
    parser.add_argument("--memory", type=int, nargs="+", metavar="N", help="numbers of sources")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _build(load_recipe(options.child, options.set))
        return
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="hearscape-bench-") as name:
        work = Path(name)
        files = media_files(options.folder) if options.folder else render_samples(work / "rendered")
        if options.memory:
            for count in options.memory:
                _report_memory(count, files, work, options)
            return
        _report_cost(files, work, options)


def media_files(folder: Path) -> list[Path]:
    """The media files in a folder, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def render_samples(folder: Path, num_sources: int = 6) -> list[Path]:
    """Renders so many of the project's synthetic sources at 1080p."""
    from pipeline.synthetic.catalogue import catalogue  # noqa: PLC0415
    from pipeline.synthetic.render import render  # noqa: PLC0415

    paths = []
    for spec in [spec for spec in catalogue() if spec.expected == "kept" and spec.height == 360][:num_sources]:
        path = folder / f"{spec.name}.mp4"
        folder.mkdir(exist_ok=True)
        render(spec, path, scale=3.0)
        paths.append(path)
    return paths


def recipe_for(files: Sequence[Path], output: Path, options: argparse.Namespace) -> BuildRecipe:
    """The recipe of the options with these files as its sources. Writes their list beside ``output``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    source_list = output.parent / f"{output.name}.jsonl"
    source_list.write_text(
        "".join(json.dumps({"id": f"s{i:05d}", "path": str(file.absolute())}) + "\n" for i, file in enumerate(files))
    )
    return load_recipe(options.recipe, [f'sources=["{source_list}"]', f'output="{output}"', *options.set])


def _build(recipe: BuildRecipe) -> None:
    build = Build(recipe)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, ignore)
        started = time.process_time()
        build.finish(ignore)
        print(json.dumps({"finish_cpu_seconds": time.process_time() - started}))
    finally:
        build.close()


def _start_build(recipe: BuildRecipe, work: Path) -> subprocess.Popen[bytes]:
    """Starts the build in a separate process, so that the benchmark itself is not counted."""
    path = work / "child.toml"
    path.write_text(_as_toml(recipe))
    return subprocess.Popen([sys.executable, "-m", "benchmarks.build", "--child", str(path)], stdout=subprocess.PIPE)


def _run_build(recipe: BuildRecipe, work: Path, finishes: list[Cost]) -> None:
    """Runs a whole build, and appends the cost of its last part (dedup, split, shards, tables) to ``finishes``."""
    process = _start_build(recipe, work)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the build ended with {process.returncode}")
    finishes.append(Cost(json.loads(output)["finish_cpu_seconds"], 0.0))


def _as_toml(recipe: BuildRecipe) -> str:
    values = json.loads(recipe.model_dump_json(exclude_none=True))
    return "".join(f"{name} = {_inline(value)}\n" for name, value in values.items())


def _inline(value: Any) -> str:
    """A JSON value as a TOML value on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_inline(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(inner) for inner in value) + "]"
    return json.dumps(value)


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A source file with its measured clips."""

    path: Path
    facts: MediaFacts
    video: MeasuredVideo
    kept: tuple[int, ...]
    """Indices of the clips that the rules keep."""


def _report_cost(files: Sequence[Path], work: Path, options: argparse.Namespace) -> None:
    recipe = recipe_for(files, work / "unused", options)
    files = comparable_files(files, recipe, work)
    stages: dict[str, list[Cost]] = {}
    totals, limits, busy_cores = [], [], []
    seconds = 0.0
    for repeat in range(options.repeats):
        sources: list[MeasuredFile] = []
        stages.setdefault("measure", []).append(cost_of(lambda: sources.extend(measure_files(files, recipe, work))))  # noqa: B023
        stages.setdefault("cut", []).append(cost_of(lambda: cut_clips(sources, recipe, work)))  # noqa: B023
        limits.append(cost_of(lambda: _limit(sources, recipe, work)))  # noqa: B023
        output = work / f"built-{repeat}"
        finishes = stages.setdefault("finish", [])
        total = cost_of(lambda: _run_build(recipe_for(files, output, options), work, finishes))  # noqa: B023
        totals.append(total)
        busy_cores.append(total.cpu_seconds / total.wall_seconds)
        seconds = sum(source.video.decoded_seconds for source in sources)
        num_kept = sum(len(source.kept) for source in sources)
        shutil.rmtree(output, ignore_errors=True)
    sizes = sorted(
        {f"{s.video.facts.video.width}x{s.video.facts.video.height}" for s in sources if s.video.facts.video}
    )
    print(
        f"{len(files)} files, {len(sources)} measured, {seconds:.1f} source seconds ({', '.join(sizes)}), {num_kept} clips kept"
    )
    print(
        f"renditions {', '.join(r.name for r in recipe.cut.renditions)}, {recipe.cut.codec} {recipe.cut.preset} {recipe.cut.quality}"
    )
    print(f"{'':<34}{'CPU s':>9}{'CPU s per source s':>21}{'source s per CPU s':>20}{'of the limit':>14}")
    limit_cpu_seconds = statistics.median(cost.cpu_seconds for cost in limits)
    rows = [
        ("limit: bare ffmpeg", limits),
        *((f"stage {name}", costs) for name, costs in stages.items()),
        ("whole build", totals),
    ]
    for name, costs in rows:
        cpu = statistics.median(cost.cpu_seconds for cost in costs)
        print(f"{name:<34}{cpu:>9.2f}{cpu / seconds:>21.3f}{seconds / cpu:>20.1f}{cpu / limit_cpu_seconds:>14.2f}")
    ratios = sorted(total.cpu_seconds / limit.cpu_seconds for total, limit in zip(totals, limits, strict=True))
    print(
        f"whole build / limit, each repeat: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {statistics.median(ratios):.2f}"
    )
    _report_separately(files, sources, seconds, work, options)
    print(f"cores busy in the whole build: {statistics.median(busy_cores):.2f} of {len(os.sched_getaffinity(0))}")


def _report_separately(
    files: Sequence[Path], sources: Sequence[MeasuredFile], seconds: float, work: Path, options: argparse.Namespace
) -> None:
    """Prints the costs of download and embedding, which are not part of the comparison."""
    store, hosts = DownloadStore(work / "store"), DownloadSettings().host_gate()
    with serve_folder(files[0].parent) as url:
        links = [Source(f"s{number}", url + quote(file.name)) for number, file in enumerate(files)]
        download = cost_of(lambda: [fetch(link, store, DownloadSettings(), hosts) for link in links])
    store.close()
    print(f"{'download, with its server':<34}{download.cpu_seconds:>9.2f}{download.cpu_seconds / seconds:>21.3f}")
    if options.embed == "none":
        return
    pair = _random_pair(options.embed, work)
    embedded = [source for source in sources if source.video.clips][:4]
    embedding = cost_of(lambda: _embed(embedded, pair, work))
    per_second = embedding.cpu_seconds / sum(source.video.decoded_seconds for source in embedded)
    row = f"{'embedding, ' + options.embed:<34}{per_second * seconds:>9.2f}{per_second:>21.3f}"
    print(f"{row}   (random weights, from {len(embedded)} files)")


def _random_pair(model: str, work: Path) -> EncoderPair:
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align  # noqa: PLC0415

    torch.manual_seed(0)
    picture = open_clip.create_model(model)
    width = int(picture.text_projection.shape[1])
    save_file(
        {name: tensor.contiguous() for name, tensor in picture.state_dict().items()}, work / "picture.safetensors"
    )
    save_align(work / "align.safetensors", SoundNetwork(width, "resnet18"), AlignConfig(width=width))
    weights = {"picture_weights": str(work / "picture.safetensors"), "sound_weights": str(work / "align.safetensors")}
    return load_pair(EncoderPairSettings(picture_model=model, sound_kind="align", **weights))


def _embed(sources: Sequence[MeasuredFile], pair: EncoderPair, work: Path) -> None:
    for source in sources:
        spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in source.video.clips]
        frames_path, sound_path = work / f"{source.path.name}.npz", work / f"{source.path.name}.flac"
        with frames_path.open("rb") as frames, sound_path.open("rb") as sound:
            pair.embed_clips(read_frames(frames, spans, 8), read_sounds(sound, spans), SAMPLE_RATE_HZ)


def comparable_files(files: Sequence[Path], recipe: BuildRecipe, work: Path) -> list[Path]:
    """The files that can be compared. Runs both sides once without counting, and prints each file that one side cannot process.

    Files that a build rejects, or fails on, stay: they cost it time as well. Raises SystemExit where nothing can be compared.
    """
    left_out: dict[Path, str] = {}
    sources = measure_files(files, recipe, work)
    for source in sources:
        try:
            cut_clips([source], recipe, work)
            _limit([source], recipe, work)
        except ClipError as error:
            left_out[source.path] = f"a clip cannot be cut: {error.code}: {error}"
        except subprocess.CalledProcessError as error:
            left_out[source.path] = f"the bare ffmpeg ended with {error.returncode}: {_last_line(error.stderr)}"
    for path, reason in left_out.items():
        print(f"left out: {path.name}: {reason}")
    if not any(source.path not in left_out for source in sources):
        raise SystemExit("none of the files can be measured and cut: there is nothing to compare")
    return [path for path in files if path not in left_out]


def _last_line(text: str | None) -> str:
    return ((text or "").strip().splitlines() or ["no message"])[-1]


def measure_files(files: Sequence[Path], recipe: BuildRecipe, work: Path) -> list[MeasuredFile]:
    """Measures the files. Leaves out those that a build would reject or fail on before it has measured them completely."""
    measured = []
    for path in files:
        try:
            facts = probe(path)
            if not judge_file(facts, None, recipe.clips.min_seconds, recipe.probe).kept:
                continue
            video = measure_video(
                path, facts, section_ms=(0, None), scenes=recipe.scenes, clips=recipe.clips, settings=recipe.measure,
                frames_out=work / f"{path.name}.npz", sound_out=work / f"{path.name}.flac",
            )  # fmt: skip
        except ClipError:
            continue  # a build records the failure, and goes on
        size = (facts.video.width, facts.video.height) if facts.video else (0, 0)
        verdicts = [judge_clip(clip.picture, clip.sound, None, size, recipe.judge) for clip in video.clips]
        measured.append(
            MeasuredFile(path, facts, video, tuple(i for i, verdict in enumerate(verdicts) if verdict.kept))
        )
    return measured


def cut_clips(sources: Sequence[MeasuredFile], recipe: BuildRecipe, work: Path) -> None:
    folder = work / "cut"
    folder.mkdir(exist_ok=True)
    for source in sources:
        for index in source.kept:
            clip = source.video.clips[index]
            frames = clip.picture.num_frames
            cut_clip(source.path, source.facts, clip.span, clip.picture.bars, recipe.cut, folder, num_frames=frames)


def _limit(sources: Sequence[MeasuredFile], recipe: BuildRecipe, work: Path) -> None:
    """Runs one ffmpeg for each source: one decode, the kept clips as outputs, with a build's sizes and encoder settings."""
    folder = work / "limit"
    folder.mkdir(exist_ok=True)
    cut = recipe.cut
    for source in sources:
        video, sound = source.facts.video, source.facts.sound
        assert video is not None and sound is not None
        picture_track, sound_track = f"0:{video.track}", f"0:{sound.track}"
        gop = max(round(cut.gop_seconds * (video.fps or 25.0)), 1)
        x264 = f"threads={cut.encoder_threads}:lookahead-threads=1:scenecut=0:open-gop=0:keyint={gop}:min-keyint={gop}"
        command = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-threads", "1", "-i", str(source.path)]
        for index in source.kept:
            clip = source.video.clips[index]
            span = ["-ss", str(clip.span.start_seconds), "-t", str(clip.span.duration_seconds)]
            for rendition in cut.renditions:
                width, height = picture_size(video, clip.picture.bars, rendition)
                command += [
                    *span,
                    "-map",
                    picture_track,
                    "-map",
                    sound_track,
                    "-vf",
                    f"scale={width}:{height}",
                    "-pix_fmt",
                    "yuv420p",
                ]
                command += ["-c:v", "libx264", "-preset", cut.preset, "-crf", str(cut.quality), "-x264-params", x264]
                command += ["-c:a", "aac", "-b:a", str(cut.aac_bits_per_second), "-ar", str(cut.sample_rate_hz)]
                command += [str(folder / f"{index}-{rendition.name}.mp4")]
            begin, end, seconds = clip.span.start_seconds, clip.span.end_seconds, clip.span.duration_seconds
            # as in a build: silence where the sound ends before the picture, and blocks of one size (FLAC's minimum is 16 samples)
            sound_filter = (
                f"atrim=start={begin}:end={end},asetpts=PTS-STARTPTS,apad=whole_dur={seconds},asetnsamples=n=4096:p=0"
            )
            command += ["-map", sound_track, "-af", sound_filter, "-c:a", "flac", "-ar", str(cut.sample_rate_hz)]
            command += [str(folder / f"{index}.flac")]
        if not source.kept:
            command += ["-map", picture_track, "-f", "null", "-"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def _report_memory(count: int, files: Sequence[Path], work: Path, options: argparse.Namespace) -> None:
    folder = work / f"copies-{count}"
    folder.mkdir()
    copies = []
    for number in range(count):
        copy = folder / f"{number:05d}{files[number % len(files)].suffix}"
        # an MP4 box at the end changes the file's bytes, but not the video
        copy.write_bytes(
            files[number % len(files)].read_bytes() + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
        )
        copies.append(copy)
    peak = Peak(_start_build(recipe_for(copies, work / f"memory-{count}", options), work))
    peak.watch()
    print(
        f"{count:>6} sources: peak of all processes together {peak.together_mb:.0f} MB, of the largest process {peak.largest_mb:.0f} MB"
    )
    shutil.rmtree(folder)
    shutil.rmtree(work / f"memory-{count}", ignore_errors=True)


if __name__ == "__main__":
    main()
