"""Measures the cost of embedding for each encoder pair and way of running it, and its share of a build.

python -m benchmarks.embed                          synthetic sources, rendered at 1080p
python -m benchmarks.embed --folder FOLDER          real files

ViT-B/32 with ResNet-18 has random weights, which cost as much as trained ones. Every way of running uses processes of its own. The ways
take turns, so that the ratios compare costs of the same repeat. Reading the preview frames and the sound is counted, loading the weights
is not. A GPU, if there is one, embeds batches of clips, as in a build; all other ways run on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.build import RECIPE, MeasuredFile, cut_clips, measure_files, media_files, recipe_for, render_samples
from benchmarks.processes import Cost, cost_of
from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair
from pipeline.measure.previews import read_frames, read_sounds
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.media.decoding import Decoding

PACKAGED = "packaged pair"
VIT = "ViT-B-32 + ResNet-18"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a pair."""

    name: str
    pair: dict[str, Any]
    num_processes: int = 1
    num_threads: int = 2
    plain: bool = False
    """Whether the layers stay as PyTorch builds them, without the optimizations for inference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="real files instead of rendered ones")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=12, help="number of clips that each way embeds")
    parser.add_argument("--files", type=int, default=6, help="largest number of files")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _embed(json.loads(options.child.read_text()))
        return
    with tempfile.TemporaryDirectory(prefix="hearscape-bench-") as name:
        work = Path(name)
        files = media_files(options.folder) if options.folder else render_samples(work / "rendered")
        _report(files[: options.files], work, options)


def _ways(work: Path) -> list[Way]:
    import torch  # noqa: PLC0415

    vit = _random_weights(work) | {"device": "cpu"}
    on_gpu = [
        Way(f"{VIT}, GPU, {precision}", {**vit, "device": "cuda", "precision": precision})
        for precision in ("fp32", "bf16", "fp16")
        if torch.cuda.is_available()
    ]
    return [
        *on_gpu,
        Way(f"{PACKAGED}, 2 threads", {}),
        Way(f"{PACKAGED}, 2 processes of 1", {}, 2, 1),
        Way(f"{VIT}, not optimized", vit, plain=True),
        Way(f"{VIT}, fp32", vit),
        Way(f"{VIT}, fp32, 2 processes of 1", vit, 2, 1),
        Way(f"{VIT}, bf16", {**vit, "precision": "bf16"}),
        Way(f"{VIT}, bf16, 2 processes of 1", {**vit, "precision": "bf16"}, 2, 1),
    ]


def _random_weights(work: Path) -> dict[str, Any]:
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align  # noqa: PLC0415

    torch.manual_seed(0)
    state = open_clip.create_model("ViT-B-32").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, work / "picture.safetensors")
    save_align(work / "sound.safetensors", SoundNetwork(), AlignConfig())
    return {
        "picture_model": "ViT-B-32",
        "picture_weights": str(work / "picture.safetensors"),
        "sound_kind": "align",
        "sound_weights": str(work / "sound.safetensors"),
    }


def _report(files: Sequence[Path], work: Path, options: argparse.Namespace) -> None:
    recipe = recipe_for(files, work / "unused", options)
    sources: list[MeasuredFile] = []
    stages: dict[str, list[Cost]] = {"bare decode": [], "measure": [], "cut": []}
    ways = _ways(work)
    embedded: dict[str, list[Cost]] = {way.name: [] for way in ways}
    jobs: list[dict[str, Any]] = []
    for _ in range(options.repeats):
        sources.clear()
        stages["measure"].append(cost_of(lambda: sources.extend(measure_files(files, recipe, work))))
        stages["bare decode"].append(cost_of(lambda: _decode(sources)))
        stages["cut"].append(cost_of(lambda: cut_clips(sources, recipe, work)))
        jobs = _jobs(sources, work, options.clips)
        for way in ways:
            cost = _cost(way, jobs, work)
            embedded[way.name].append(cost)
            print(f"{way.name}: {cost.cpu_seconds:.2f} CPU s, {cost.wall_seconds:.2f} s", file=sys.stderr, flush=True)
    seconds = sum(source.video.decoded_seconds for source in sources)
    print(
        f"{len(sources)} files, {seconds:.1f} source seconds measured; {len(jobs)} clips, {_seconds(jobs):.1f} s, embedded"
    )
    print(f"cores: {len(os.sched_getaffinity(0))}; medians of {options.repeats}")
    per_second = {name: [cost.cpu_seconds / seconds for cost in costs] for name, costs in stages.items()} | {
        name: [cost.cpu_seconds / _seconds(jobs) for cost in costs] for name, costs in embedded.items()
    }
    print(f"{'':<46}{'clips/s':>9}{'CPU s per clip':>16}{'CPU s per source s':>20}{'share of the build':>20}")
    for name in stages:
        print(f"{name:<46}{'':>9}{'':>16}{statistics.median(per_second[name]):>20.4f}")
    for name, costs in embedded.items():
        speed = statistics.median(len(jobs) / cost.wall_seconds for cost in costs)
        cpu = statistics.median(cost.cpu_seconds for cost in costs) / len(jobs)
        shares = [
            embed / (embed + measure + cut)
            for embed, measure, cut in zip(per_second[name], per_second["measure"], per_second["cut"], strict=True)
        ]
        print(
            f"{name:<46}{speed:>9.2f}{cpu:>16.3f}{statistics.median(per_second[name]):>20.4f}{statistics.median(shares):>20.1%}"
        )
    for name in (way.name for way in ways if way.name.startswith(PACKAGED)):
        ratios = [embed / decode for embed, decode in zip(per_second[name], per_second["bare decode"], strict=True)]
        ratio_texts = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(
            f"{name} / bare decode, each repeat: {ratio_texts}; median {statistics.median(ratios):.3f} (limit: below 0.333)"
        )


def _decode(sources: Sequence[MeasuredFile]) -> None:
    """Decodes every picture and all sound as a build does, and does nothing with them."""
    for source in sources:
        for _ in Decoding(source.path, sample_rate_hz=SAMPLE_RATE_HZ):
            pass


def _jobs(sources: Sequence[MeasuredFile], work: Path, num_clips: int) -> list[dict[str, Any]]:
    """The first ``num_clips`` clips: the first clip of every source, then the second of every source, and so on."""
    jobs = [
        (index, {
            "frames": str(work / f"{source.path.name}.npz"),
            "sound": str(work / f"{source.path.name}.flac"),
            "span": (clip.span.start_seconds, clip.span.end_seconds),
        })
        for source in sources
        for index, clip in enumerate(source.video.clips)
    ]  # fmt: skip
    return [job for _, job in sorted(jobs, key=lambda indexed: indexed[0])][:num_clips]


def _seconds(jobs: Sequence[dict[str, Any]]) -> float:
    return float(sum(job["span"][1] - job["span"][0] for job in jobs))


def _cost(way: Way, jobs: Sequence[dict[str, Any]], work: Path) -> Cost:
    """The cost of embedding all jobs. All processes load first, then start together."""
    children = []
    for number in range(way.num_processes):
        path = work / f"job-{number}.json"
        share = jobs[number :: way.num_processes]
        path.write_text(
            json.dumps({"pair": {**way.pair, "num_threads": way.num_threads}, "plain": way.plain, "jobs": share})
        )
        command = [sys.executable, "-m", "benchmarks.embed", "--child", str(path)]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as in a build
        children.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"{way.name}: the process ended with {child.wait()}")
    started = time.monotonic()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate()[0] for child in children]
    walls = [json.loads(text)["wall_seconds"] for text in outputs]
    assert time.monotonic() - started >= max(walls) - 0.1
    return Cost(sum(json.loads(text)["cpu_seconds"] for text in outputs), max(walls))


def _embed(job: dict[str, Any]) -> None:
    """The work of a child process: loads, embeds one clip, prints ``ready``, waits for a line, embeds all, and prints the cost."""
    settings = EncoderPairSettings.model_validate(job["pair"])
    pair = load_pair(settings)
    if job["plain"]:
        _make_plain(pair, settings)
    _embed_clips(pair, settings, job["jobs"][:1])
    print("ready", flush=True)
    sys.stdin.readline()
    cost = cost_of(lambda: _embed_clips(pair, settings, job["jobs"]))
    print(json.dumps({"cpu_seconds": cost.cpu_seconds, "wall_seconds": cost.wall_seconds}))


def _embed_clips(pair: EncoderPair, settings: EncoderPairSettings, jobs: Sequence[dict[str, Any]]) -> None:
    size = settings.batch_size if settings.device == "cuda" else 1
    for start in range(0, len(jobs), size):
        frames, sounds = [], []
        for job in jobs[start : start + size]:
            with Path(job["frames"]).open("rb") as file:
                frames += read_frames(file, [job["span"]], settings.frames_per_clip)
            with Path(job["sound"]).open("rb") as file:
                sounds += read_sounds(file, [job["span"]])
        pair.embed_clips(frames, sounds, SAMPLE_RATE_HZ)


def _make_plain(pair: EncoderPair, settings: EncoderPairSettings) -> None:
    import torch  # noqa: PLC0415

    from pipeline.encoders.device import ComputeOptions  # noqa: PLC0415
    from pipeline.encoders.picture import PictureEncoder  # noqa: PLC0415

    path = Path(str(settings.picture_weights))
    pair.picture = PictureEncoder(
        settings.picture_model, str(path), path, "", running=ComputeOptions(torch.device("cpu"), settings.batch_size)
    )
    pair.sound.network.to(memory_format=torch.contiguous_format)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
