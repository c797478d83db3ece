"""Files whose picture or sound changes its form in the middle: clips of both sides are right, and none goes across."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from pipeline.measure.clips import ClipSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings, measure_video
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.ffmpeg import apart, ffmpeg_path, probe
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, number_in, numbered_frames

SETTINGS = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=192),), preset="veryfast")
SOUND = noise(8.0, seed=7)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of numbered frames with noise."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_video(path, numbered_frames(range(200)), SOUND, fps=FPS, gop=25, audio_codec="pcm_s16le")
    return path


def changing(film: Path, folder: Path, change: list[str]) -> Path:
    """A transport stream that goes on for four seconds after four, the second half with other options of the encoder."""
    encoder = ["-c:v", "libx264", "-preset", "superfast", "-g", "25", "-c:a", "aac"]
    command = [ffmpeg_path(), "-v", "error", "-y"]
    subprocess.run([*command, "-i", str(film), "-t", "4", *encoder, str(folder / "0.ts")], check=True)
    later = ["-ss", "4", "-i", str(film), *encoder, *change, "-output_ts_offset", "4", str(folder / "1.ts")]
    subprocess.run([*command, *later], check=True)
    (folder / "a.ts").write_bytes((folder / "0.ts").read_bytes() + (folder / "1.ts").read_bytes())
    return folder / "a.ts"


def sound_position(flac: Path) -> float:
    """The place in SOUND, in seconds, of what the file begins with."""
    heard, rate = soundfile.read(flac, always_2d=True)
    one_second = soxr.resample(heard[:, 0], rate, SOUND_HZ)[SOUND_HZ // 4 : SOUND_HZ // 4 + SOUND_HZ]
    match = scipy.signal.fftconvolve(SOUND[:, 0], one_second[::-1], "valid")
    return int(np.abs(match).argmax()) / SOUND_HZ - 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(["-vf", "scale=640:384"], id="size"),
        pytest.param(["-ac", "2"], id="channels"),
        pytest.param(["-vf", "scale=160:96", "-ac", "2"], id="both"),
    ],
)
def test_clips_on_both_sides_of_a_change_are_right(film: Path, tmp_path: Path, change: list[str]) -> None:
    path = changing(film, tmp_path, change)
    facts = probe(path)
    measured = measure_video(
        path,
        facts,
        section_ms=(0, None),
        scenes=SceneSettings(threshold=1e9),
        clips=ClipSettings(length_seconds=1.5, min_seconds=1.4, margin_seconds=0.1),
        settings=MeasureSettings(),
        frames_out=tmp_path / "frames.npz",
        sound_out=tmp_path / "sound.flac",
    )
    assert len(measured.scenes) >= 2
    assert len(measured.clips) == 4
    for clip in measured.clips:
        made = cut_clip(
            path, facts, clip.span, clip.picture.bars, SETTINGS, tmp_path, num_frames=clip.picture.num_frames
        )
        assert made.renditions[0].num_frames == clip.picture.num_frames
        pieces = [p for p in Decoding(tmp_path / "full.mp4", sample_rate_hz=44_100) if isinstance(p, Picture)]
        numbers = [number_in(piece.luma()) for piece in pieces]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert sound_position(tmp_path / "sound.flac") == pytest.approx(numbers[0] / FPS, abs=0.002)
        assert numbers[-1] < 100 or numbers[0] >= 100


def test_filters_that_hang_together_stay_together() -> None:
    graph = "[0:0]trim=1[s0];[0:1]atrim=1[s1];[s0]split=2[s2][s3];[s1]asplit=2[s4][s5];[s3]scale=2:2[s6];[0:1]anull[s7]"
    command = ["ffmpeg", "-i", "a", "-filter_complex", graph, "-map", "[s2]", "b"]
    assert apart(command) == [
        *["ffmpeg", "-i", "a"],
        *["-filter_complex", "[0:0]trim=1[s0];[s0]split=2[s2][s3];[s3]scale=2:2[s6]"],
        *["-filter_complex", "[0:1]atrim=1[s1];[s1]asplit=2[s4][s5]"],
        *["-filter_complex", "[0:1]anull[s7]"],
        *["-map", "[s2]", "b"],
    ]
    assert apart(["ffmpeg", "-i", "a", "b"]) == ["ffmpeg", "-i", "a", "b"]
