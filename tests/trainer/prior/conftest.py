"""What the tests of the prior stage learn from."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from tests import paired

RECIPE = """
stages = ["prior"]
[run]
device = "cpu"
num_threads = 1
tick_seconds = 3600.0
[reader]
window_seconds = 1.0
num_workers = 0
[prior]
batch_size = 4
num_samples = 16
validate_every_samples = 8
save_every_samples = 8
r1_every = 2
path_weight = 2.0
path_every = 2
ada_samples = 64.0
ada_every = 2
grid_seeds = 6
[prior.generator]
kind = "stylegan2"
resolution = 16
z_dim = 8
w_dim = 8
mapping_layers = 2
widths = [8, 8, 8]
[prior.fidelity]
num_pictures = 12
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset ``paired`` (16 samples to train on), a folder of 10 pictures, and a recipe."""
    folder = tmp_path_factory.mktemp("prior")
    paired.build_paired(folder / "sets" / "paired", {"train": 4, "validation": 1})
    (folder / "pictures").mkdir()
    for number in range(10):
        frame = paired.class_frame(paired.CLASSES[number % 4], number)
        cv2.imwrite(str(folder / "pictures" / f"{number}.png"), frame[:, :, ::-1])
    (folder / "fit.toml").write_text(RECIPE)
    return folder
