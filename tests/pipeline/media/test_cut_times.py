"""A cut keeps the file's own times: of late first frames, gaps, and tracks that are not taken. All containers alike."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from pipeline.errors import MediaError
from pipeline.media.cut import CutClip, CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.ffmpeg import ffmpeg_path, probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, number_in, numbered_frames

SETTINGS = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=192),), preset="veryfast")
SOUND = noise(6.0, seed=7)
CONTAINERS = ["mp4", "mkv", "ts", *(pytest.param(suffix, marks=pytest.mark.slow) for suffix in ("mov", "flv"))]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of numbered frames with noise."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_video(path, numbered_frames(range(150)), SOUND, fps=FPS, gop=25, extra=["-bf", "0"])
    return path


def with_late_picture(film: Path, path: Path, seconds: float) -> Path:
    inputs = ["-i", str(film), "-itsoffset", str(seconds), "-i", str(film)]
    command = [ffmpeg_path(), "-v", "error", "-y", *inputs, "-map", "1:v", "-map", "0:a", "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    return path


def pictures(path: Path) -> list[tuple[float, int]]:
    return [(p.seconds, number_in(p.luma())) for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture)]


def cut(path: Path, span: Span, num_frames: int | None = None) -> CutClip:
    return cut_clip(path, probe(path), span, Bars(), SETTINGS, path.parent, num_frames=num_frames)


def check_cut(path: Path, span: Span, whole: list[tuple[float, int]]) -> None:
    """The cut has the frames of the whole that lie in the span, each at its time, and the sound that goes with them."""
    start, end = span.start_seconds - 0.0005, span.end_seconds - 0.0005
    wanted = [(seconds - span.start_seconds, number) for seconds, number in whole if start <= seconds < end]
    made = cut(path, span, len(wanted))
    found = pictures(path.parent / "full.mp4")
    assert [number for _, number in found] == [number for _, number in wanted]
    assert [seconds for seconds, _ in found] == pytest.approx([seconds for seconds, _ in wanted], abs=0.0011)
    assert made.renditions[0].num_frames == len(wanted)


def sound_position(flac: Path) -> float:
    """The place in SOUND, in seconds, of what the file begins with."""
    heard, rate = soundfile.read(flac)
    one_second = soxr.resample(heard, rate, SOUND_HZ)[SOUND_HZ // 2 : SOUND_HZ // 2 + SOUND_HZ]
    match = scipy.signal.fftconvolve(SOUND[:, 0], one_second[::-1], "valid")
    return int(np.abs(match).argmax()) / SOUND_HZ - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_picture_that_begins_late_is_not_pulled_forward(film: Path, tmp_path: Path, suffix: str) -> None:
    path = with_late_picture(film, tmp_path / f"late.{suffix}", 0.4)
    whole = pictures(path)
    first_ms = round(whole[0][0] * 1000)
    for span in (Span(0, 1200), Span(200, 1400), Span(1000, 2200), Span(first_ms, first_ms + 1200)):
        check_cut(path, span, whole)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4", "mov"])
def test_a_gap_at_the_end_of_a_clip_is_no_loss(tmp_path: Path, suffix: str) -> None:
    """No frame from 1.6 to 2.6 s. How long the frame before stays is not told alike by all containers."""
    numbers = [n for n in range(150) if not 40 < n < 65]
    path = tmp_path / f"gap.{suffix}"
    write_video(path, numbered_frames(numbers), SOUND, frame_times_seconds=[n / 25 for n in numbers], gop=25)
    whole = pictures(path)
    start_ms = round(whole[0][0] * 1000)
    check_cut(path, Span(start_ms, start_ms + 2000), whole)
    with pytest.raises(MediaError, match="41 of 50 frames") as caught:
        cut(path, Span(start_ms, start_ms + 2000), num_frames=50)
    assert caught.value.code == "cut_short"


@pytest.mark.slow
def test_a_track_that_is_not_taken_does_not_move_the_others(film: Path, tmp_path: Path) -> None:
    """The sound in another language begins half a second before all else: time 0 is where it begins."""
    inputs = ["-i", str(film), "-itsoffset", "-0.5", "-i", str(film)]
    maps = ["-map", "0:v", "-map", "0:a", "-map", "1:a", "-disposition:a:0", "default", "-disposition:a:1", "comment"]
    path = tmp_path / "two.ts"
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *inputs, *maps, "-c", "copy", str(path)], check=True)
    facts = probe(path)
    assert facts.sound is not None and facts.sound.track == 1
    whole = pictures(path)
    first, number = whole[0]
    assert (first, number) == (pytest.approx(0.5, abs=0.03), 0)
    for frame in (0, 50):
        start_ms = round((first + frame / 25) * 1000)
        check_cut(path, Span(start_ms, start_ms + 2000), whole)
        assert sound_position(tmp_path / "sound.flac") == pytest.approx(frame / 25, abs=0.001)


def test_a_jump_in_a_transport_stream_is_a_gap_in_all_that_is_made_of_it(film: Path, tmp_path: Path) -> None:
    """The second part, of three seconds, goes on 30 s later: ffmpeg would by itself close so large a gap."""
    for name, times in {
        "one": ["-t", "3"],
        "two": ["-ss", "3", "-copyts", "-muxdelay", "0", "-output_ts_offset", "30"],
    }.items():
        command = [
            ffmpeg_path(),
            "-v",
            "error",
            "-y",
            "-i",
            str(film),
            *times,
            "-c",
            "copy",
            str(tmp_path / f"{name}.ts"),
        ]
        subprocess.run(command, check=True)
    path = tmp_path / "jump.ts"
    path.write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    whole = pictures(path)
    after = next(seconds for seconds, number in whole if number == 80)
    assert after > 20
    check_cut(path, Span(round(after * 1000), round(after * 1000) + 2000), whole)
    assert sound_position(tmp_path / "sound.flac") == pytest.approx(80 / 25, abs=0.03)


def test_times_below_zero_in_matroska_lose_no_frame(film: Path, tmp_path: Path) -> None:
    """The first key frame lies before time 0, where the index does not reach."""
    path = tmp_path / "negative.mkv"
    options = ["-ss", "1.3", "-i", str(film), "-c", "copy", "-avoid_negative_ts", "disabled"]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *options, str(path)], check=True)
    whole = pictures(path)
    start_ms = round(whole[0][0] * 1000)
    check_cut(path, Span(start_ms, start_ms + 2000), whole)
    check_cut(path, Span(start_ms + 2000, start_ms + 4000), whole)


def test_a_short_gap_in_the_sound_does_not_move_what_comes_after(film: Path, tmp_path: Path) -> None:
    """Picture and sound go on 100 ms late after two seconds; half of that the last and the first packet of sound fill."""
    encoder = ["-c:v", "copy", "-c:a", "aac"]
    for name, times in {"0": ["-t", "2"], "1": ["-ss", "2", "-output_ts_offset", "2.1"]}.items():
        command = [ffmpeg_path(), "-v", "error", "-y", "-i", str(film), *times, *encoder, str(tmp_path / f"{name}.ts")]
        subprocess.run(command, check=True)
    path = tmp_path / "gap.ts"
    path.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    whole = pictures(path)
    seconds_of = {number: seconds for seconds, number in whole}
    start_ms = round(seconds_of[25] * 1000)
    check_cut(path, Span(start_ms, start_ms + 3000), whole)
    heard, rate = soundfile.read(tmp_path / "sound.flac")
    soundfile.write(tmp_path / "after.flac", heard[round((seconds_of[75] - seconds_of[25]) * rate) :], rate)
    assert sound_position(tmp_path / "after.flac") == pytest.approx(75 / 25, abs=0.002)
