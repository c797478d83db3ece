"""Runs the tests that compute under the conditions of other machines, and prints a table.

python -m tests.machines                         every setting below, on the tests that compute
python -m tests.machines --only SSE41 "one core" --tests tests/pipeline
python -m tests.machines --everything            the whole suite under each setting: hours
python -m tests.machines --python .venv-3.12/bin/python      also with another interpreter, which has the project installed

A setting restricts instruction sets, threads or cores, changes the order of the tests, or keeps all cores busy. It cannot add
instructions that this processor lacks; the table names those. The exit code is 1 if a test failed.
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

ROOT = Path(__file__).parent.parent
COMPUTING = (
    "tests/pipeline/agreement/test_agreement.py",
    "tests/pipeline/dataset/test_dedup.py",
    "tests/pipeline/build/test_embedder.py",
    "tests/pipeline/encoders/test_pairs.py",
    "tests/pipeline/encoders/test_picture_encoder.py",
    "tests/pipeline/encoders/test_sound_networks.py",
    "tests/pipeline/measure/test_measure.py",
    "tests/pipeline/encoders/test_mel.py",
    "tests/pipeline/build/test_packaged_filter.py",
    "tests/pipeline/measure/test_picture.py",
    "tests/pipeline/measure/test_previews.py",
    "tests/pipeline/measure/test_rhythm_match.py",
    "tests/pipeline/measure/test_scenes.py",
    "tests/pipeline/encoders/test_small_pair.py",
    "tests/pipeline/measure/test_sound.py",
    "tests/pipeline/measure/test_speech.py",
    "tests/trainer",
)
SEEDS = (1, 2, 3)
"""Seeds of random orders of the tests."""
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


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
    python: str = sys.executable
    flags: tuple[str, ...] = ()
    """Flags in /proc/cpuinfo without which the processor runs the setting like a smaller one."""


def settings(pythons: Sequence[str] = ()) -> list[Setting]:
    isa, aten = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"
    num_cores = len(os.sched_getaffinity(0))
    return [
        Setting("as it is"),
        Setting("SSE41", {isa: "SSE41"}),
        Setting("AVX2", {isa: "AVX2"}, flags=("avx2",)),
        Setting("AVX512_CORE", {isa: "AVX512_CORE"}, flags=("avx512bw",)),
        Setting("AVX512_CORE_BF16", {isa: "AVX512_CORE_BF16"}, flags=("avx512_bf16",)),
        Setting("AVX512_CORE_AMX", {isa: "AVX512_CORE_AMX"}, flags=("amx_bf16",)),
        Setting("ATen default", {aten: "default"}),
        Setting("ATen avx2", {aten: "avx2"}, flags=("avx2",)),
        Setting("ATen avx512", {aten: "avx512"}, flags=("avx512bw",)),
        Setting("MKL_CBWR", {"MKL_CBWR": "COMPATIBLE"}),
        Setting("OMP 1", {"OMP_NUM_THREADS": "1"}),
        Setting("OMP 2", {"OMP_NUM_THREADS": "2"}),
        Setting("one core", cores=1),
        Setting("two cores", cores=2),
        Setting("busy neighbours", num_busy=num_cores),
        *(
            Setting(f"order {seed}", arguments=("--random-order-bucket=module", f"--random-order-seed={seed}"))
            for seed in SEEDS
        ),
        *(Setting(f"python {path}", python=path) for path in pythons),
    ]


def missing_flags(setting: Setting) -> str:
    """The setting's flags that this processor lacks, with commas between."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return ", ".join(flag for flag in setting.flags if flag not in words)


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


def run(setting: Setting, tests: Sequence[str], log: Path) -> tuple[int, str, float]:
    """Runs the tests under a setting. Returns the exit code, pytest's counts as text, and minutes."""
    command = [setting.python, "-m", "pytest", "-q", *setting.arguments, *tests]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings by name")
    parser.add_argument("--tests", nargs="+", default=COMPUTING, metavar="PATH", help="other tests")
    parser.add_argument("--everything", action="store_true", help="the whole suite")
    parser.add_argument("--python", nargs="+", default=(), metavar="PATH", help="other interpreters")
    parser.add_argument("--logs", type=Path, help="folder for pytest's output; default: a temporary one")
    options = parser.parse_args()
    chosen = settings(options.python)
    if options.only:
        unknown = set(options.only) - {setting.name for setting in chosen}
        if unknown:
            parser.error(
                f"no setting {', '.join(sorted(unknown))}; there are: {', '.join(setting.name for setting in chosen)}"
            )
        chosen = [setting for setting in chosen if setting.name in options.only]
    logs = options.logs or Path(tempfile.mkdtemp(prefix="hearscape-machines-"))
    logs.mkdir(parents=True, exist_ok=True)
    tests = ("tests",) if options.everything else tuple(options.tests)
    any_failed = False
    print(f"pytest's output is in {logs}\n{'setting':<28} {'result':<40} minutes")
    for number, setting in enumerate(chosen):
        code, counts, minutes = run(setting, tests, logs / f"{number:02}.txt")
        missing = missing_flags(setting)
        note = f"   (this processor has no {missing})" if missing else ""
        print(f"{setting.name:<28} {counts or f'ended with {code}':<40} {minutes:.1f}{note}", flush=True)
        any_failed |= code != 0
    return int(any_failed)


if __name__ == "__main__":
    sys.exit(main())
