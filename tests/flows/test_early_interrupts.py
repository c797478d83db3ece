"""Ctrl-C while a command is still importing what it needs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTING = """
import os, signal, sys, time

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {wanted!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

sys.meta_path.insert(0, CtrlC())
"""


@pytest.mark.parametrize(
    ("words", "imported"),
    [
        ("trainer.evaluate --checkpoint none --shards none", "torch"),
        ("trainer.model.convert none none.safetensors", "torch"),
        ("trainer.model.sample --help", "torch"),
        ("trainer.small_pair --help", "numpy"),
        ("pipeline.agreement calibrate none", "numpy"),
        ("pipeline.ledger show none none", "pyarrow"),
        ("pipeline.manifest verify none", "pydantic"),
        ("pipeline.synthetic --help", "numpy"),
    ],
    ids=lambda words: words.split()[0],
)
def test_a_command_that_is_interrupted_while_it_starts_shows_no_trace(
    words: str, imported: str, tmp_path: Path
) -> None:
    """Python imports sitecustomize first, which here sends the signal as soon as a certain module is asked for."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(wanted=imported))
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", *words.split()],
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode in (-signal.SIGINT, 130), ended.stderr
    assert ended.stderr.startswith("\nInterrupted")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
