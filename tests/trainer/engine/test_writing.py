"""Checkpoints are written in a thread: only the next one waits for it, its errors come up, and a kill leaves the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import FitError
from trainer.engine.checkpoint import load_state, save_state
from trainer.engine.writing import BackgroundWriter

ROOT = Path(__file__).parents[3]


def test_only_the_next_writing_waits_for_the_one_before() -> None:
    writer, may_end, written = BackgroundWriter(), threading.Event(), []

    def first() -> None:
        assert may_end.wait(120)
        written.append(1)

    writer.start(first)
    assert written == []  # ``start`` has returned, and the function has not ended
    may_end.set()
    writer.start(lambda: written.append(2))
    assert written[0] == 1
    writer.wait()
    assert written == [1, 2]


def test_a_disk_that_does_not_take_a_checkpoint_is_told_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "resume.safetensors"
    save_state(path, "align", {"a": torch.zeros(3)}, {})
    writer = BackgroundWriter()
    (tmp_path / ".resume.safetensors.partial").mkdir()  # nothing can be written under this name
    writer.start(lambda: save_state(path, "align", {"a": torch.ones(3)}, {}))
    with pytest.raises(
        FitError, match=r"resume\.safetensors cannot be written .*the checkpoint before it, .*is complete"
    ):
        writer.wait()
    assert load_state(path, "align")[0]["a"].tolist() == [0, 0, 0]
    writer.wait()  # it is told once


KILLED = """
import sys
from pathlib import Path
import torch
from trainer.engine.checkpoint import save_state
from trainer.engine.writing import BackgroundWriter

path, writer = Path(sys.argv[1]), BackgroundWriter()
save_state(path, "align", {"a": torch.zeros(3)}, {"samples_seen": 1})
large = {str(number): torch.zeros(1 << 20) for number in range(100)}
while True:
    writer.start(lambda: save_state(path, "align", large, {"samples_seen": 2}))
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_the_writing_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    path, partial = tmp_path / "resume.safetensors", tmp_path / ".resume.safetensors.partial"
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGSTOP)
        if path.exists() and partial.exists():
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert partial.exists()
    tensors, values = load_state(path, "align")
    assert (len(tensors), values["samples_seen"]) in {(1, 1), (100, 2)}
    save_state(path, "align", {"a": torch.ones(3)}, {"samples_seen": 3})  # and the rest is in nobody's way
    assert [one.name for one in tmp_path.glob(".*")] == []
    assert load_state(path, "align")[1]["samples_seen"] == 3
