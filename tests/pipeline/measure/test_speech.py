"""The detector of voices keeps to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = (
    "import os, numpy as np\n"
    "from pipeline.measure.speech import voice_detector\n"
    "print(voice_detector().probabilities(np.zeros(1024, np.float32)).shape)\n"
)


def test_onnxruntime_tells_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    """Left to itself, it keeps a number for the machine and what it means to send below the home folder."""
    quiet = ("ORT_", "CI", "GITHUB_", "TF_BUILD")  # it holds its tongue where it takes itself to be tested
    kept = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    homes = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    said = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[3],
        env={**kept, **homes},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == "(2,)"
    assert list(tmp_path.rglob("*")) == []
