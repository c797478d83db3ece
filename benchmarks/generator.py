"""Measures images a second and peak memory of the generators, in every form in which they can run.

    python -m benchmarks.generator                            StyleGAN2, StyleGAN3-T and -R: 256 pixels on a GPU, 64 without
    python -m benchmarks.generator --official FOLDER          compared with NVIDIA's code, whose source is in FOLDER
    python -m benchmarks.generator --forms default            only the default form of ``build_generator``
    python -m benchmarks.generator --resolution 256 --channel-max 512 --batch 1 --repeats 1 --case-seconds 300
                                                              the published widths without a GPU: hours

Every case runs in a process of its own. Peak memory is that of the GPU; without one, the growth of the process's peak resident size.
Times are the median of ``--repeats`` runs after a warm-up; compiling is not counted. On a machine that does other work too, compare
images in a CPU second.
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
"""The default form of ``build_generator``: ``form``, ``channels_last``, ``fir`` and ``recompute`` of a case."""


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
    """Folder of NVIDIA's source. None: this project's network."""


def case_config(case: Case) -> GeneratorConfig:
    """The configuration with the published widths, limited to ``channel_max``. StyleGAN3-R has twice the widths, as published."""
    base = 32768 if case.resolution > 256 else 16384
    if case.network == "stylegan2":
        values: dict[str, Any] = {"kind": "stylegan2", "channel_base": base, "channel_max": case.channel_max}
    else:
        is_r = case.network.endswith("r")
        values = {
            "kind": "stylegan3",
            "channel_base": base * (2 if is_r else 1),
            "channel_max": case.channel_max * (2 if is_r else 1),
            "conv_kernel": 1 if is_r else 3,
            "radial_filters": is_r,
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
    """NVIDIA's synthesis network of the same size, from its own source. Its CUDA extensions are built when it first runs."""
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
    """The figures of a case: ``images_s``, ``images_cpu_s``, ``peak_mb`` and ``first_seconds``, the time of the first step."""
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

    resident_before_mb = _peak_resident_mb()
    started = time.perf_counter()
    step()
    _finish(case.device)
    first_seconds = time.perf_counter() - started
    if case.compiled or case.device == "cuda":
        step()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wall_seconds, cpu_seconds = [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        step()
        _finish(case.device)
        wall_seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - started_cpu)
    growth_mb = _peak_resident_mb() - resident_before_mb
    return {
        "images_s": case.batch / statistics.median(wall_seconds),
        "images_cpu_s": case.batch / statistics.median(cpu_seconds),
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if case.device == "cuda" else growth_mb,
        "first_seconds": first_seconds,
    }


def _peak_resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _finish(device: str) -> None:
    """Waits until the GPU has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """The cases of every chosen form, and of NVIDIA's code for each of its networks."""
    for network, backward, precision in itertools.product(options.networks, (False, True), options.precisions):
        shared: dict[str, Any] = {
            "network": network,
            "resolution": options.resolution,
            "channel_max": options.channel_max,
            "batch": options.batch,
            "device": options.device,
            "backward": backward,
            "mixed": precision == "mixed",
        }
        firs: tuple[FirForm, ...] = ("convolution", "matrix") if network == "stylegan3-t" else ("convolution",)
        for form, channels_last, fir, recompute, mode in itertools.product(
            ("scaled", "grouped"),
            (False, True),
            firs,
            (False, True) if backward and network != "stylegan2" else (False,),
            options.compile,
        ):
            if fir == "matrix" and channels_last:
                continue  # the matrix form needs rows and columns as the last dimensions
            if options.forms == "default" and (form, channels_last, fir, recompute) != DEFAULT_FORM:
                continue
            yield Case(
                **shared,
                form=form,
                channels_last=channels_last,
                fir=fir,
                recompute=recompute,
                compiled=mode == "compile",
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
    """Prints the table. Returns 1 if a case failed."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--resolution", type=int, default=256 if on_gpu else 64)
    parser.add_argument("--channel-max", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--batch", type=int, default=16 if on_gpu else 4)
    parser.add_argument("--repeats", type=int, default=10 if on_gpu else 5)
    parser.add_argument("--case-seconds", type=float, default=CASE_SECONDS, help="a case that takes longer is stopped")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "mixed"], choices=["fp32", "mixed"])
    parser.add_argument("--compile", nargs="+", default=["eager", "compile"], choices=["eager", "compile"])
    parser.add_argument(
        "--forms", default="all", choices=["all", "default"], help="the forms of the networks to measure"
    )
    parser.add_argument("--official", type=Path, help="folder of NVIDIA's source of stylegan3, on a GPU")
    parser.add_argument("--json", type=Path, help="also append every case with its figures to this file, one a line")
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
    """Measures a case in a process of its own. Returns its figures, or None and the reason why there are none."""
    command = [sys.executable, "-m", "benchmarks.generator", "--repeats", str(repeats), "--case"]
    try:
        result = subprocess.run(
            [*command, json.dumps(asdict(case))], capture_output=True, text=True, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"more than {limit_seconds:g} s"
    if result.returncode:
        return None, (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1][:120]
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures, ""


if __name__ == "__main__":
    sys.exit(main())
