"""Images a second and peak memory of the generators, in every form that they can run in.

    python -m benchmarks.generator                            StyleGAN2, StyleGAN3-T and -R: 256 pixels on a GPU, 64 without
    python -m benchmarks.generator --official FOLDER          beside NVIDIA's code, where its source lies in FOLDER
    python -m benchmarks.generator --forms default            only the form that ``build_generator`` makes unasked
    python -m benchmarks.generator --resolution 256 --channel-max 512 --batch 1 --repeats 1 --case-seconds 300
                                                              the published widths without a GPU: hours

Every case runs in a process of its own: peak memory is the device's on a GPU, and without one the growth of the
process's largest resident size. Times are the median of ``--repeats`` runs after a warm-up; compiling is not counted.
Images in a CPU second are what to compare on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.generator import GeneratorConfig, build_generator
from trainer.model.stylegan3 import FirForm

NETWORKS = ("stylegan2", "stylegan3-t", "stylegan3-r")
CASE_SECONDS = 900.0
DEFAULT_FORM = ("scaled", True, "convolution", False)
"""Convolution, channels last, FIR and recomputation of ``build_generator``."""


@dataclass(frozen=True, slots=True)
class Case:
    """One network in one form."""

    network: str
    resolution: int
    channel_max: int
    batch: int
    device: str
    backward: bool
    form: str
    """scaled or grouped: the modulated convolution. official: NVIDIA's code."""
    channels_last: bool
    fir: FirForm
    recompute: bool
    compiled: bool
    mixed: bool
    official: str | None = None
    """Folder of NVIDIA's source."""


def case_config(case: Case) -> GeneratorConfig:
    """The published widths, at most ``channel_max``; R has twice as many, as published."""
    base = 32768 if case.resolution > 256 else 16384
    if case.network == "stylegan2":
        values: dict[str, Any] = {"kind": "stylegan2", "channel_base": base, "channel_max": case.channel_max}
    else:
        rotation = case.network.endswith("r")
        values = {
            "kind": "stylegan3",
            "channel_base": base * (2 if rotation else 1),
            "channel_max": case.channel_max * (2 if rotation else 1),
            "conv_kernel": 1 if rotation else 3,
            "radial_filters": rotation,
            "mapping_layers": 2,
        }
    return GeneratorConfig(resolution=case.resolution, num_half=4 if case.mixed else 0, conv_clamp=256, **values)


def network_of(case: Case) -> nn.Module:
    """The synthesis network of a case, on its device."""
    config = case_config(case)
    if case.official:
        return _official(case, config).to(case.device)
    generator = build_generator(
        config,
        grouped=case.form == "grouped",
        channels_last=case.channels_last,
        fir=case.fir,
        recompute=case.recompute,
    )
    if case.mixed:
        generator.use_half(torch.float16 if case.device == "cuda" else torch.bfloat16)
    if case.channels_last:
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator.synthesis.to(case.device)


def _official(case: Case, config: GeneratorConfig) -> nn.Module:
    """NVIDIA's network of the same size, from its own source; its CUDA extensions are built when it first runs."""
    sys.path.insert(0, str(case.official))
    shared = {
        "w_dim": config.w_dim,
        "img_resolution": config.resolution,
        "img_channels": config.num_colours,
        "channel_base": config.channel_base,
        "channel_max": config.channel_max,
        "num_fp16_res": config.num_half,
    }
    import importlib  # noqa: PLC0415

    module = importlib.import_module(f"training.networks_{config.kind}")
    if config.kind == "stylegan3":
        shared |= {"conv_kernel": config.conv_kernel, "use_radial_filters": config.radial_filters}
    network: nn.Module = module.SynthesisNetwork(**shared)
    return network


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Images a second and peak memory in MB."""
    torch.manual_seed(0)
    network = network_of(case)
    num_ws = network.num_ws
    assert isinstance(num_ws, int)
    ws = torch.randn(case.batch, num_ws, 512, device=case.device)
    run: Callable[..., Tensor] = torch.compile(network) if case.compiled else network

    def step() -> None:
        if not case.backward:
            with torch.no_grad():
                run(ws)
            return
        torch.autograd.backward(run(ws).square().mean())
        network.zero_grad(set_to_none=True)

    before = _resident_mb()
    started = time.perf_counter()
    step()
    _finish(case.device)
    first_seconds = time.perf_counter() - started
    if case.compiled or case.device == "cuda":
        step()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    walls, cpus = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        step()
        _finish(case.device)
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - used)
    peak = torch.cuda.max_memory_allocated() / 2**20 if case.device == "cuda" else _resident_mb() - before
    return {
        "images_s": case.batch / statistics.median(walls),
        "images_cpu_s": case.batch / statistics.median(cpus),
        "peak_mb": peak,
        "first_seconds": first_seconds,
    }


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """Every form that was asked for, and official code beside each of its kinds."""
    for network, backward, mixed in itertools.product(options.networks, (False, True), options.precisions):
        shared: dict[str, Any] = {
            "network": network,
            "resolution": options.resolution,
            "channel_max": options.channel_max,
            "batch": options.batch,
            "device": options.device,
            "backward": backward,
            "mixed": mixed == "mixed",
        }
        firs: tuple[FirForm, ...] = ("convolution", "matrix") if network == "stylegan3-t" else ("convolution",)
        for form, last, fir, recompute, compiled in itertools.product(
            ("scaled", "grouped"),
            (False, True),
            firs,
            (False, True) if backward and network != "stylegan2" else (False,),
            options.compile,
        ):
            if fir == "matrix" and last:
                continue  # the matrices want rows and columns last
            if options.forms == "default" and (form, last, fir, recompute) != DEFAULT_FORM:
                continue
            yield Case(
                **shared,
                form=form,
                channels_last=last,
                fir=fir,
                recompute=recompute,
                compiled=compiled == "compile",
            )
        if options.official:
            yield Case(
                **shared,
                form="official",
                channels_last=False,
                fir="convolution",
                recompute=False,
                compiled=False,
                official=str(options.official),
            )


def table_row(case: Case, figures: dict[str, float] | None, problem: str = "") -> str:
    """One row of the table."""
    form = [
        case.form,
        "channels last" if case.channels_last else "channels first",
        "" if case.network != "stylegan3-t" else case.fir,
        "recompute" if case.recompute else "",
        "compiled" if case.compiled else "eager",
    ]
    words = ", ".join(word for word in form if word)
    numbers = "".join(f"{value:12.2f}" for value in figures.values()) if figures else problem
    kind = "forward+backward" if case.backward else "forward"
    return f"{case.network:12} {kind:17} {'mixed' if case.mixed else 'fp32':6} {words:58} {numbers}"


def main() -> int:
    """Prints the table; 1 when a case failed."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--resolution", type=int, default=256 if on_gpu else 64)
    parser.add_argument("--channel-max", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--batch", type=int, default=16 if on_gpu else 4)
    parser.add_argument("--repeats", type=int, default=10 if on_gpu else 5)
    parser.add_argument("--case-seconds", type=float, default=CASE_SECONDS, help="a case that takes longer is given up")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "mixed"], choices=["fp32", "mixed"])
    parser.add_argument("--compile", nargs="+", default=["eager", "compile"], choices=["eager", "compile"])
    parser.add_argument(
        "--forms", default="all", choices=["all", "default"], help="what of the networks' insides is tried"
    )
    parser.add_argument("--official", type=Path, help="folder of NVIDIA's source of stylegan3, on a GPU")
    parser.add_argument("--json", type=Path, help="also write every case with its numbers, one a line")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)), options.repeats)))
        return 0
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}; {options.resolution} pixels, at most {options.channel_max} channels")
    print(f"batch {options.batch}, median of {options.repeats}")
    print(" " * 98 + "".join(f"{head:>12}" for head in ("images/s", "/CPU second", "peak MB", "first s")))
    failed = 0
    for case in cases_of(options):
        figures, problem = in_own_process(case, options.repeats, options.case_seconds)
        failed += figures is None
        print(table_row(case, figures, problem), flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(case), **(figures or {"problem": problem})}) + "\n")
    return 1 if failed else 0


def in_own_process(case: Case, repeats: int, limit_seconds: float) -> tuple[dict[str, float] | None, str]:
    """The numbers of a case, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.generator", "--repeats", str(repeats), "--case"]
    try:
        done = subprocess.run(
            [*command, json.dumps(asdict(case))], capture_output=True, text=True, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"more than {limit_seconds:g} s"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:120]
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers, ""


if __name__ == "__main__":
    sys.exit(main())
