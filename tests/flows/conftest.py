"""A build small enough to run in seconds: one real video of ours, one file that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.synthetic.catalogue import catalogue
from pipeline.synthetic.render import render


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waves with their sound, 11 s, 448 x 252."""
    path = tmp_path_factory.mktemp("video") / "waves.mp4"
    render(next(spec for spec in catalogue() if spec.name == "ocean_pier"), path, scale=0.35)
    return path


@pytest.fixture
def recipe(tmp_path: Path, video: Path) -> Path:
    """A recipe of the video and of a text file, with its output in ``tmp_path``."""
    (tmp_path / "text.mp4").write_text("this is a text")
    (tmp_path / "sources.csv").write_text(f"id,url\nwaves,{video}\ntext,{tmp_path / 'text.mp4'}\n")
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
name = "tiny"
output = "{tmp_path / "tiny"}"
sources = ["{tmp_path / "sources.csv"}"]
probe = {{ min_short_side_px = 200 }}
clips = {{ length_seconds = 4.0, min_seconds = 3.0 }}
cut = {{ renditions = [{{ name = "128", short_side_px = 128 }}], preset = "ultrafast" }}
execution = {{ workers = 1, min_free_bytes = 0, batch_size = 1 }}
"""
    )
    return path
