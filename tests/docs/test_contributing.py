"""The examples of CONTRIBUTING.md: each patch fits the code as it is, and does what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets import build_dataset, cut_clips

PROJECT = Path(__file__).parents[2]
MEASURE = """
from pipeline.judge.rules import JudgeSettings, judge_clip
from pipeline.report.catalogue import MEASURE_OF
from pipeline.schema import PictureMeasures, SoundMeasures

sound = SoundMeasures(-25.0, -3.0, 1.0, 0.0, 0.0, 0.0, False, 0.0, 0.0, "")
picture = PictureMeasures(250, 120, 40, 90.0, 0.0, 0.0, 5.0, 0.0, 0.01, 0, 0, 0, 0, "")
for limit in (80, 100):
    print(judge_clip(picture, sound, None, (640, 360), JudgeSettings(min_brightest_luma=limit)).reason)
print(MEASURE_OF["brightest_luma"].label)
"""
ENCODER = """
import numpy as np, torch
from pathlib import Path
from safetensors.torch import save_file
from pipeline.encoders.device import ComputeOptions
from pipeline.encoders.pair import EncoderPairSettings
from pipeline.encoders.sound import load_sound

save_file({"matrix": torch.eye(512, 128)}, "linear.safetensors")
encoder = load_sound("linear", Path("linear.safetensors"), "0" * 64, None)
sounds = np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32)
rows = encoder.embed_sounds(list(sounds), 16000)
print(rows.shape, np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5, encoder.encoder_id.partition("-")[0])
EncoderPairSettings(picture_model="ViT-B-32-quickgelu", picture_weights="openai", sound_kind="linear", sound_weights="linear.safetensors")
"""


def example(title: str) -> str:
    """The patch below a heading."""
    page = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = re.search(r"```diff\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code, in a folder of its own."""
    folder = tmp_path / "code"
    for name in ("pipeline", "trainer", "tests"):
        shutil.copytree(PROJECT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def patched(folder: Path, title: str) -> None:
    subprocess.run(["git", "apply", "-"], input=example(title), cwd=folder, text=True, check=True)


def output(folder: Path, *words: str) -> str:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_add_a_measure(copy: Path) -> None:
    patched(copy, "Add a measure")
    assert output(copy, "-c", MEASURE) == "None\ndark\nBrightest frame\n"


def test_add_an_encoder(copy: Path) -> None:
    patched(copy, "Add an encoder")
    assert output(copy, "-c", ENCODER) == "(2, 512) True linear\n"


def test_add_a_stage(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    build_dataset(tmp_path / "set", cut_clips(tmp_path / "clips"), [3])
    patched(copy, "Add a stage")
    words = ["--shards", str(tmp_path / "set"), "--stages", "brightness", "--out", str(tmp_path / "run")]
    for change in ("reader.picture_px=32", "reader.num_workers=0", "reader.batch_size=3"):
        words += ["--set", change]
    output(copy, "-m", "trainer.fit", *words)
    assert (tmp_path / "run" / "brightness" / "mean.json").read_text().endswith('"num_samples": 3}')
