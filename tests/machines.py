"""Runs the tests that compute under the conditions of other machines, and prints a table.

python -m tests.machines                         every setting below, on the tests that compute
python -m tests.machines --only SSE41 "one core" --tests tests/pipeline
python -m tests.machines --together              several settings in each row, as machines have them: half the time
python -m tests.machines --all-rows              also settings that this machine runs exactly like an earlier one
python -m tests.machines --everything            the whole suite under each setting: hours
python -m tests.machines --python .venv-3.12/bin/python      also with another interpreter, which has the project installed

A setting restricts instruction sets, threads or cores, changes the order of the tests, or keeps all cores busy. It cannot add
instructions that this processor lacks; the table names those. The tests share the cores by files (``-n``), except where a setting
is about threads or cores. The exit code is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
COMPUTING = (
    "tests/pipeline/agreement/test_agreement.py",
    "tests/pipeline/agreement/test_calibration.py",
    "tests/pipeline/agreement/test_roc.py",
    "tests/pipeline/build/test_embedder.py",
    "tests/pipeline/build/test_packaged_filter.py",
    "tests/pipeline/dataset/test_dedup.py",
    "tests/pipeline/encoders/test_mel.py",
    "tests/pipeline/encoders/test_pairs.py",
    "tests/pipeline/encoders/test_picture_encoder.py",
    "tests/pipeline/encoders/test_picture_network.py",
    "tests/pipeline/encoders/test_small_pair.py",
    "tests/pipeline/encoders/test_sound_networks.py",
    "tests/pipeline/measure/test_measure.py",
    "tests/pipeline/measure/test_picture.py",
    "tests/pipeline/measure/test_previews.py",
    "tests/pipeline/measure/test_rhythm_match.py",
    "tests/pipeline/measure/test_scenes.py",
    "tests/pipeline/measure/test_sound.py",
    "tests/pipeline/measure/test_speech.py",
    "tests/trainer/adversarial",
    "tests/trainer/align",
    "tests/trainer/engine/test_checkpoint.py",
    "tests/trainer/engine/test_ema.py",
    "tests/trainer/engine/test_optimizing.py",
    "tests/trainer/engine/test_phases.py",
    "tests/trainer/engine/test_run.py",
    "tests/trainer/engine/test_undo.py",
    "tests/trainer/invert",
    "tests/trainer/model/test_filters.py",
    "tests/trainer/model/test_generator.py",
    "tests/trainer/model/test_half_precision_convolution.py",
    "tests/trainer/model/test_layers.py",
    "tests/trainer/model/test_load.py",
    "tests/trainer/model/test_recurrent_block.py",
    "tests/trainer/model/test_sound_video.py",
    "tests/trainer/model/test_video_discriminator.py",
    "tests/trainer/prior",
    "tests/trainer/proof",
    "tests/trainer/small_pair",
    "tests/trainer/streaming/test_frames.py",
    "tests/trainer/streaming/test_order.py",
    "tests/trainer/streaming/test_samples.py",
    "tests/trainer/streaming/test_torchcodec.py",
    "tests/trainer/test_evaluate.py",
    "tests/trainer/test_generate.py",
    "tests/trainer/test_paper_recipe.py",
    "tests/trainer/video",
)
"""Files and folders of tests that compare numbers: measures, encoders, agreement, the reader, networks, losses and stages. Left out are
tests of commands, servers, processes and damaged files, and fits from one end to the other."""
SEEDS = (1, 2, 3)
"""Seeds of random orders of the tests."""
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
ISA, ATEN, THREADS = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "SSE41": (),
    "AVX2": ("avx2",),
    "AVX512_CORE": ("avx_vnni", "avx512bw"),
    "AVX512_CORE_BF16": ("avx512_vnni", "avx512_bf16"),
    "AVX512_CORE_AMX": ("avx512_fp16", "amx_bf16"),
}
"""Limits of oneDNN's instruction set, rising: the flags in /proc/cpuinfo whose instructions each allows beyond the one before."""
ATEN_FLAGS = {"default": (), "avx2": ("avx2",), "avx512": ("avx512bw",)}
"""Instruction sets that ATen can be told to use, and the flags of /proc/cpuinfo that they need."""
UNLIMITED = "AVX512_CORE_AMX"
"""The limit where none is set: that of :mod:`pipeline.runtime.processor`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run the tests."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    cores: int | None = None
    """Number of cores that the tests may use. None: all."""
    num_busy: int = 0
    """Number of processes that keep a core busy beside the tests."""
    in_one_process: bool = False
    """Whether the tests run one after the other: those that share the cores by files have one thread each."""
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has, and so which settings differ here."""

    flags: frozenset[str]
    """Of /proc/cpuinfo."""
    aten: str
    """The instruction set that ATen chooses by itself."""
    num_cores: int
    max_workers: int
    """Largest number of files that are tested side by side."""

    def num_workers(self, setting: Setting) -> int:
        """Number of files that are tested side by side under the setting."""
        return 1 if setting.in_one_process else min(self.max_workers, setting.cores or self.num_cores)

    def conditions(self, setting: Setting) -> tuple[object, ...]:
        """Equal for settings that are the same here."""
        limit = list(ISA_FLAGS).index(setting.environment.get(ISA, UNLIMITED))
        allowed = {flag for flags in list(ISA_FLAGS.values())[: limit + 1] for flag in flags}
        cores = min(self.num_cores, setting.cores or self.num_cores)
        threads = setting.environment.get(THREADS) or str(max(1, cores // self.num_workers(setting)))
        rest = {name: value for name, value in setting.environment.items() if name not in (ISA, ATEN, THREADS)}
        return (
            frozenset(allowed & self.flags), setting.environment.get(ATEN, self.aten), threads, cores, self.num_workers(setting),
            tuple(sorted(rest.items())), setting.arguments, setting.num_busy, setting.python,
        )  # fmt: skip

    def missing(self, setting: Setting) -> str:
        """The flags up to which the setting allows oneDNN to go and that this processor lacks, with commas between."""
        return ", ".join(flag for flag in ISA_FLAGS[setting.environment.get(ISA, "SSE41")] if flag not in self.flags)

    def missing_for_aten(self, setting: Setting) -> str:
        """The flags that ATen would take at the setting's word and that this processor lacks: it would be killed."""
        return ", ".join(
            flag for flag in ATEN_FLAGS[setting.environment.get(ATEN, "default")] if flag not in self.flags
        )

    def same_because(self, setting: Setting, earlier: Setting) -> str:
        """Why the two settings, whose conditions are equal, are the same here."""
        first, last = sorted(list(ISA_FLAGS).index(each.environment.get(ISA, UNLIMITED)) for each in (setting, earlier))
        between = [flag for flags in list(ISA_FLAGS.values())[first + 1 : last + 1] for flag in flags]
        reasons = {
            f"this processor has no {', '.join(between)}": bool(between),
            "it is the limit where none is set": ISA in setting.environment and not between,
            f"ATen takes {self.aten} by itself": ATEN in setting.environment,
            f"each process has {setting.environment.get(THREADS)} thread there too": THREADS in setting.environment,
            f"this machine has {self.num_cores} cores": setting.cores is not None,
        }
        return ", ".join(reason for reason, applies in reasons.items() if applies)


def this_machine(max_workers: int | None = None) -> Machine:
    """With as many files side by side as there are cores, if ``max_workers`` is None."""
    words = frozenset(Path("/proc/cpuinfo").read_text().split())
    num_cores = len(os.sched_getaffinity(0))
    return Machine(words, torch.backends.cpu.get_cpu_capability().lower(), num_cores, max_workers or num_cores)


def settings(num_cores: int, pythons: Sequence[str] = ()) -> list[Setting]:
    return [
        Setting("unchanged"),
        *(Setting(limit, {ISA: limit}) for limit in ISA_FLAGS),
        *(Setting(f"ATen {name}", {ATEN: name}) for name in ATEN_FLAGS),
        Setting("MKL_CBWR", {"MKL_CBWR": "COMPATIBLE"}),
        Setting("OMP 1", {THREADS: "1"}),
        Setting("OMP 2", {THREADS: "2"}, in_one_process=True),
        Setting("one core", cores=1),
        Setting("two cores", cores=2),
        Setting("busy neighbours", num_busy=num_cores),
        *(
            Setting(f"order {seed}", arguments=("--random-order-bucket=module", f"--random-order-seed={seed}"))
            for seed in SEEDS
        ),
        *(Setting(f"python {path}", python=path) for path in pythons),
    ]


def settings_together(num_cores: int, pythons: Sequence[str] = ()) -> list[Setting]:
    """What :func:`settings` sets, several settings to a row. A row that fails is divided with ``--only``."""
    oldest, avx2, avx512, bf16, amx = ISA_FLAGS
    orders = [each.arguments for each in settings(num_cores) if each.arguments]
    return [
        Setting("SSE41, ATen default, order 1", {ISA: oldest, ATEN: "default"}, orders[0]),
        Setting("AVX2, ATen avx2, order 2", {ISA: avx2, ATEN: "avx2"}, orders[1]),
        Setting("AVX512_CORE, ATen avx512, order 3", {ISA: avx512, ATEN: "avx512"}, orders[2]),
        Setting("AVX512_CORE_BF16, MKL_CBWR, two cores", {ISA: bf16, "MKL_CBWR": "COMPATIBLE"}, cores=2),
        Setting("AVX512_CORE_AMX, OMP 2", {ISA: amx, THREADS: "2"}, in_one_process=True),
        Setting("one core, busy neighbour", cores=1, num_busy=1),
        Setting("OMP 1, busy neighbours", {THREADS: "1"}, num_busy=num_cores),
        *(Setting(f"python {path}", python=path) for path in pythons),
    ]


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Runs processes that each keep a core busy, until the block or this process ends."""
    code = "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(setting: Setting, tests: Sequence[str], num_workers: int, log: Path) -> tuple[int, str, float]:
    """Runs the tests under a setting. Returns the exit code, pytest's counts as text, and minutes."""
    # files are handed out in the order in which they come, not by their numbers of tests, so that a random order stays one
    parallel = ["-n", str(num_workers), "--dist", "loadfile", "--no-loadscope-reorder"] if num_workers > 1 else []
    command = [setting.python, "-m", "pytest", "-q", *parallel, *setting.arguments, *tests]
    cores = sorted(os.sched_getaffinity(0))[: setting.cores]
    started = time.monotonic()
    with busy(setting.num_busy), log.open("w") as output:
        code = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **setting.environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        ).returncode
    counts = COUNT.findall(log.read_text().splitlines()[-1] if log.stat().st_size else "")
    return code, ", ".join(" ".join(count) for count in counts), (time.monotonic() - started) / 60


def table(chosen: Sequence[Setting], machine: Machine, tests: Sequence[str], logs: Path, *, all_rows: bool) -> bool:
    """Prints a line for each setting, and runs those that differ from the ones before. Returns whether all tests passed."""
    print(f"pytest's output is in {logs}\n{'setting':<40} {'result':<40} minutes")
    before: dict[tuple[object, ...], Setting] = {}
    passed = True
    for number, setting in enumerate(chosen):
        missing = machine.missing(setting)
        if lacking := machine.missing_for_aten(setting):
            print(f"{setting.name:<40} not run: this processor has no {lacking}", flush=True)
            continue
        earlier = before.setdefault(machine.conditions(setting), setting)
        same = f"as {earlier.name}: {machine.same_because(setting, earlier)}" if earlier is not setting else ""
        if same and not all_rows:
            print(f"{setting.name:<40} {same}", flush=True)
            continue
        code, counts, minutes = run(setting, tests, machine.num_workers(setting), logs / f"{number:02}.txt")
        note = same or (f"this processor has no {missing}" if missing else "")
        print(f"{setting.name:<40} {counts or f'ended with {code}':<40} {minutes:.1f}   {note}".rstrip(), flush=True)
        passed &= code == 0
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings by name")
    parser.add_argument("--together", action="store_true", help="several settings in each row")
    parser.add_argument("--all-rows", action="store_true", help="run also what is the same as an earlier setting here")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="other tests than those that compute")
    parser.add_argument("--everything", action="store_true", help="the whole suite")
    parser.add_argument(
        "-n", type=int, metavar="NUMBER", help="files tested side by side; default: the cores, and 1 for other tests"
    )
    parser.add_argument("--python", nargs="+", default=(), metavar="PATH", help="other interpreters")
    parser.add_argument("--logs", type=Path, help="folder for pytest's output; default: a temporary one")
    options = parser.parse_args()
    tests = ("tests",) if options.everything else tuple(options.tests or COMPUTING)
    machine = this_machine(options.n or (None if tests == COMPUTING else 1))
    chosen = (settings_together if options.together else settings)(machine.num_cores, options.python)
    if options.only:
        unknown = set(options.only) - {setting.name for setting in chosen}
        if unknown:
            parser.error(
                f"no setting {', '.join(sorted(unknown))}; there are: {', '.join(setting.name for setting in chosen)}"
            )
        chosen = [setting for setting in chosen if setting.name in options.only]
    logs = options.logs or Path(tempfile.mkdtemp(prefix="hearscape-machines-"))
    logs.mkdir(parents=True, exist_ok=True)
    return int(not table(chosen, machine, tests, logs, all_rows=options.all_rows))


if __name__ == "__main__":
    sys.exit(main())
