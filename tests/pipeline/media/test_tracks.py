"""Which track is the picture and which the sound, where a file has several: everything that reads the file takes the same."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.measure.clips import ClipSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings, measure_video
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture, SoundBlock
from pipeline.media.facts import MediaFacts
from pipeline.media.ffmpeg import ffmpeg_path, probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, number_in, numbered_frames, tone

ONE = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=192),), preset="veryfast")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mkv: numbered frames with noise. small.mkv: 64x48 grey with a tone of 440 Hz. cover.jpg: one large picture."""
    folder = tmp_path_factory.mktemp("parts")
    write_video(folder / "film.mkv", numbered_frames(range(75)), noise(3.0, channels=1), fps=FPS, gop=25)
    small = [np.full((48, 64, 3), 128, np.uint8)] * 75
    write_video(folder / "small.mkv", small, tone(3.0), fps=FPS, gop=25)
    cover = ["-f", "lavfi", "-i", "color=red:size=640x480", "-frames:v", "1"]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *cover, str(folder / "cover.jpg")], check=True)
    return folder


def joined(parts: Path, path: Path, inputs: list[str], *options: str) -> Path:
    files = [word for name in inputs for word in ("-i", str(parts / name))]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *files, *options, "-c", "copy", str(path)], check=True)
    return path


def check_film_is_taken(path: Path, tmp_path: Path) -> MediaFacts:
    """Probe, decode, measures and cut have the numbered frames and the noise."""
    facts = probe(path)
    assert facts.video is not None and facts.sound is not None
    assert (facts.video.width, facts.video.height) == (320, 192)
    pieces = list(Decoding(path, sample_rate_hz=44_100))
    assert [piece for piece in pieces if isinstance(piece, Picture)][-1].luma().shape == (192, 320)
    heard = np.concatenate([piece.samples for piece in pieces if isinstance(piece, SoundBlock)])
    assert not is_tone(heard[:, 0] / 32768)
    measured = measure_video(
        path,
        facts,
        section_ms=(0, None),
        scenes=SceneSettings(),
        clips=ClipSettings(length_seconds=2, min_seconds=1),
        settings=MeasureSettings(),
        frames_out=tmp_path / "frames.npz",
        sound_out=tmp_path / "sound.flac",
    )
    assert measured.num_frames == 75
    cut_clip(path, facts, Span(1000, 3000), Bars(), ONE, tmp_path, num_frames=50)
    shown = [
        number_in(p.luma()) for p in Decoding(tmp_path / "full.mp4", sample_rate_hz=44_100) if isinstance(p, Picture)
    ]
    assert shown == list(range(25, 75))
    assert not is_tone(soundfile.read(tmp_path / "sound.flac")[0])
    return facts


def is_tone(samples: np.ndarray) -> bool:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return bool(power.max() > 0.5 * power.sum())


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_default_flag_decides_before_size_and_order(parts: Path, tmp_path: Path, suffix: str) -> None:
    """Here the other picture is larger, and the other sound has more channels."""
    large = [np.full((240, 400, 3), 128, np.uint8)] * 75
    write_video(tmp_path / "large.mkv", large, np.repeat(tone(3.0), 2, axis=1), fps=FPS, gop=25)
    maps = ["-map", "0:v", "-map", "0:a", "-map", "1:v", "-map", "1:a", "-disposition", "0"]
    flags = ["-disposition:v:1", "default", "-disposition:a:1", "default"]
    path = joined(parts, tmp_path / f"a.{suffix}", [str(tmp_path / "large.mkv"), "film.mkv"], *maps, *flags)
    facts = check_film_is_taken(path, tmp_path)
    assert facts.video is not None and facts.sound is not None
    assert (facts.video.track, facts.video.num_tracks, facts.video.chosen_by) == (2, 2, "default flag")
    assert (facts.sound.track, facts.sound.num_tracks, facts.sound.chosen_by) == (3, 2, "default flag")
    assert MediaFacts.from_json(facts.to_json()) == facts


def test_without_flags_the_larger_picture_is_taken(parts: Path, tmp_path: Path) -> None:
    path = joined(parts, tmp_path / "a.ts", ["small.mkv", "film.mkv"], "-map", "0:v", "-map", "1:v", "-map", "1:a")
    facts = check_film_is_taken(path, tmp_path)
    assert facts.video is not None and facts.sound is not None
    assert (facts.video.num_tracks, facts.video.chosen_by) == (2, "size")
    assert (facts.sound.num_tracks, facts.sound.chosen_by) == (1, None)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_cover_in_front_is_no_film(parts: Path, tmp_path: Path, suffix: str, is_marked: bool) -> None:
    """Marked or not, one large picture does not stand for the film, even with the default flag."""
    flags = ["-disposition:v:0", "attached_pic" if is_marked else "default", "-disposition:v:1", "0"]
    path = joined(
        parts, tmp_path / f"a.{suffix}", ["cover.jpg", "film.mkv"], "-map", "0:v", "-map", "1:v", "-map", "1:a", *flags
    )
    check_film_is_taken(path, tmp_path)


def test_a_jingle_is_not_the_sound(parts: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "jingle.mkv", None, np.repeat(tone(0.2), 2, axis=1))
    path = joined(
        parts,
        tmp_path / "a.mp4",
        [str(tmp_path / "jingle.mkv"), "film.mkv"],
        "-map",
        "0:a",
        "-map",
        "1:v",
        "-map",
        "1:a",
    )
    facts = check_film_is_taken(path, tmp_path)
    assert facts.sound is not None
    assert facts.sound.chosen_by == "length: the others are far shorter"
