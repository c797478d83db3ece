"""The batch script for Slurm. Programs of this test stand for ``srun``, with two nodes, and for ``scontrol``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import paired
from tests.trainer.several_ranks import ENVIRONMENT, PATIENCE_SECONDS, ROOT, Started, ticks
from trainer.engine.checkpoint import load_state

BATCH_SCRIPT = ROOT / "manifests" / "slurm" / "fit.sbatch"
SRUN = """
import contextlib, signal, subprocess, sys
import psutil

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)


def pass_on(number, _frame):
    # as Slurm does: to all processes of all nodes, whatever each of them passes on in its turn
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


signal.signal(signal.SIGUSR1, pass_on)
nodes = [subprocess.Popen(words) for _ in range(2)]
sys.exit(max(node.wait() for node in nodes))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$QUEUE"; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment in which the commands of Slurm, and torchrun, are found."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun.py").write_text(SRUN)
    (programs / "srun").write_text(f'#!/bin/bash\nexec {sys.executable} {programs / "srun.py"} "$@"\n')
    (programs / "scontrol").write_text(SCONTROL)
    for name in ("srun", "scontrol"):
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "QUEUE": str(tmp_path / "queue"),
        "RENDEZVOUS_PORT": str(port),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }


def options(folder: Path, out: Path, *changes: str) -> list[str]:
    small = (
        "run.device=cpu", "run.num_threads=1", "run.tick_seconds=0.0001", "reader.num_workers=0",
        "prior.generator={kind = 'stylegan2', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, widths = [8, 8, 8]}",
        "prior.batch_size=8", "prior.grid_seeds=4", "prior.fidelity={num_pictures = 0}", "prior.r1_every=2",
        "prior.save_every_samples=1000000", *changes,
    )  # fmt: skip
    named = ["--shards", str(folder), "--recipe", str(folder / "prior.toml"), "--out", str(out), "--stages", "prior"]
    return [*named, *(word for change in small for word in ("--set", change))]


def test_a_job_whose_time_is_over_is_queued_again_and_ends_as_if_undisturbed(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    folder, out, whole = tmp_path / "sets", tmp_path / "run", tmp_path / "whole"
    paired.build_paired(folder / "paired", {"train": 4})
    (folder / "prior.toml").write_text("")
    job = ["bash", str(BATCH_SCRIPT)]
    started = Started([*job, *options(folder, out, "reader.num_workers=1")], tmp_path / "first.log", **cluster)
    try:
        started.wait_until(lambda: len(ticks(out, "prior")) >= 3)
        started.process.send_signal(signal.SIGUSR1)
        assert started.end() != 0
    finally:
        started.kill()
    assert (tmp_path / "queue").read_text() == "requeue 17\n", started.said
    assert f"prior: stopped, {out}/prior\nInterrupted. To continue, run it again: " in started.said
    stopped_at = load_state(out / "prior" / "resume.safetensors", "prior")[1]["samples_seen"]
    assert stopped_at >= 24

    end = f"prior.num_samples={stopped_at + 16}"
    again = Started([*job, *options(folder, out, end)], tmp_path / "again.log", **cluster, SLURM_RESTART_COUNT="1")
    try:
        assert again.end() == 0, again.said
    finally:
        again.kill()
    assert (tmp_path / "queue").read_text() == "requeue 17\n"  # it is done
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    undisturbed = subprocess.run(
        [*launcher, "-m", "trainer.fit", *options(folder, whole, end)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert undisturbed.returncode == 0, undisturbed.stderr
    (first, of_first), (second, of_second) = (
        load_state(each / "prior" / "resume.safetensors", "prior") for each in (whole, out)
    )
    assert of_first == of_second
    assert of_first["samples_seen"] == stopped_at + 16
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    files = [load_file(each / "prior" / "last.safetensors") for each in (whole, out)]
    assert [name for name in files[0] if not torch.equal(files[0][name], files[1][name])] == []
