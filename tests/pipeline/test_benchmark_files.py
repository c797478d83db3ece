"""benchmarks.build compares all files that a build processes, and names those that cannot be compared."""

from pathlib import Path

import pytest

from benchmarks.build import RECIPE, comparable_files, measure_files
from pipeline.build.recipe import load_recipe
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, numbered_frames


@pytest.mark.slow
def test_damaged_and_rejected_files_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They cost a build time as well. The second clip of the good file begins with the last few samples of a packet: fewer than 16,
    too few for FLAC's first block."""
    first = next(number for number in range(1, 120) if number * 1764 % 1024 > 1024 - 16)
    files = [tmp_path / name for name in ("damaged.mp4", "good.mp4", "silent.mp4")]
    files[0].write_bytes(b"no media" * 100)
    sound = noise(6.0 * 44_100 / SOUND_HZ)
    write_video(files[1], numbered_frames(range(150)), sound, fps=FPS, sample_rate=44_100)
    write_video(files[2], numbered_frames(range(75)), None, fps=FPS)
    length = f"clips.length_seconds={first / FPS}"
    changes = [
        length,
        "clips.min_seconds=1",
        'sources=["none"]',
        "probe.min_short_side_px=100",
        *(f"judge.{rule}=0" for rule in ("min_motion", "min_luma_std")),
    ]
    recipe = load_recipe(RECIPE, changes)
    assert comparable_files(files, recipe, tmp_path) == files
    (source,) = measure_files(files, recipe, tmp_path)
    assert (source.path.name, source.kept) == ("good.mp4", (0, 1))
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="none of the files can be measured"):
        comparable_files(files[:1], recipe, tmp_path)
