"""The first and the last frames of a file, through measuring and cutting: each at its time, with the sound that belongs to it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import soundfile
import soxr

from pipeline.measure.clips import ClipSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings, measure_video
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.ffmpeg import ffmpeg_path, probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.avi import jpegs, write_avi
from tests.footage import FPS, SOUND_HZ, noise, number_in, numbered_frames

SETTINGS = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=192),), preset="veryfast")
SOUND = noise(6.0, seed=7)
FRAME_SECONDS = 1 / FPS


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of numbered frames, B-frames among them, with noise."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_video(path, numbered_frames(range(150)), SOUND, fps=FPS, gop=25, extra=["-bf", "2"])
    return path


def with_late_picture(film: Path, path: Path, seconds: float, *options: str) -> Path:
    inputs = ["-i", str(film), "-itsoffset", str(seconds), "-i", str(film)]
    copied = ["-map", "1:v", "-map", "0:a", "-c", "copy", *options]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *inputs, *copied, str(path)], check=True)
    return path


def pictures(path: Path) -> list[tuple[float, int]]:
    return [(p.seconds, number_in(p.luma())) for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture)]


def sound_place(heard: npt.NDArray[np.float64], rate: int) -> float:
    """Where in SOUND, in seconds, three tenths of a second of sound come from."""
    wanted = soxr.resample(heard, rate, SOUND_HZ)
    return int(np.abs(scipy.signal.fftconvolve(SOUND[:, 0], wanted[::-1], "valid")).argmax()) / SOUND_HZ


def clips_of(path: Path) -> list[tuple[Span, list[tuple[float, int]], list[float]]]:
    """The first two clips that are made of a file: span, frames with their times in it, and at the first frame, the fifth and the
    fortieth, how much later the sound's place is than the frame's."""
    facts = probe(path)
    measured = measure_video(
        path,
        facts,
        section_ms=(0, None),
        scenes=SceneSettings(threshold=1e9),
        clips=ClipSettings(length_seconds=2, min_seconds=1),
        settings=MeasureSettings(),
        frames_out=path.with_suffix(".npz"),
        sound_out=path.with_suffix(".flac"),
    )
    made = []
    for clip in measured.clips[:2]:
        cut_clip(path, facts, clip.span, Bars(), SETTINGS, path.parent, num_frames=clip.picture.num_frames)
        shown = pictures(path.parent / "full.mp4")
        heard, rate = soundfile.read(path.parent / "sound.flac")
        ahead = [
            sound_place(heard[round(seconds * rate) :][: rate * 3 // 10], rate) - number / FPS
            for seconds, number in (shown[0], shown[4], shown[39])
        ]
        made.append((clip.span, shown, ahead))
    return made


def check_clips(path: Path, first_seconds: float, sound_ahead_seconds: float) -> None:
    """Frame 0 is shown at ``first_seconds`` of the file; the clips have every frame, and the sound so much ahead of each."""
    (first_span, first, first_ahead), (second_span, second, second_ahead) = clips_of(path)
    assert pictures(path)[0] == (pytest.approx(first_seconds, abs=0.001), 0)
    assert first_span.start_seconds == pytest.approx(first_seconds, abs=0.001)
    assert second_span.start_seconds == pytest.approx(first_seconds + 2, abs=0.001)
    assert [number for _, number in first + second] == list(range(100))
    for shown in (first, second):
        assert [seconds for seconds, _ in shown] == pytest.approx([n * FRAME_SECONDS for n in range(50)], abs=0.0011)
    assert [*first_ahead, *second_ahead] == pytest.approx([sound_ahead_seconds] * 6, abs=0.001)


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("num_missing", [1, 5])
def test_frames_dropped_at_the_beginning_of_an_avi_leave_their_time(
    tmp_path: Path, num_missing: int, has_index: bool
) -> None:
    path = tmp_path / "a.avi"
    write_avi(path, [b""] * num_missing + jpegs(range(140)), SOUND, has_index=has_index)
    check_clips(path, num_missing * FRAME_SECONDS, num_missing * FRAME_SECONDS)


@pytest.mark.parametrize("has_index", [True, False])
def test_an_avi_whose_picture_begins_late(tmp_path: Path, has_index: bool) -> None:
    path = tmp_path / "a.avi"
    write_avi(path, jpegs(range(140)), SOUND, picture_start=3, has_index=has_index)
    check_clips(path, 3 * FRAME_SECONDS, 3 * FRAME_SECONDS)


def test_an_avi_whose_sound_begins_late(tmp_path: Path) -> None:
    """For the first 80 ms there is none; from the fifth frame on all is as it was meant."""
    path = tmp_path / "a.avi"
    write_avi(path, jpegs(range(140)), SOUND, sound_start=round(0.08 * SOUND_HZ))
    (_, first, first_ahead), (_, second, second_ahead) = clips_of(path)
    assert [number for _, number in first + second] == list(range(100))
    assert [*first_ahead[1:], *second_ahead] == pytest.approx([-0.08] * 5, abs=0.001)


def test_frames_dropped_in_an_avi_are_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    frames = jpegs(range(140))
    write_avi(path, [*frames[:10], *[b""] * 7, *frames[17:]], SOUND)
    (_, first, ahead), _ = clips_of(path)
    wanted = [*range(10), *range(17, 50)]
    assert [number for _, number in first] == wanted
    assert [seconds for seconds, _ in first] == pytest.approx([n * FRAME_SECONDS for n in wanted], abs=0.0011)
    assert ahead == pytest.approx([0] * 3, abs=0.001)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", []),
        ("mp4", ["-movflags", "frag_keyframe+empty_moov+delay_moov"]),
        ("mp4", ["-movflags", "dash+delay_moov+global_sidx"]),
        ("mov", []),
        ("mkv", []),
    ],
    ids=["mp4", "fragmented", "dash", "mov", "mkv"],
)
def test_a_late_first_frame_keeps_its_time(film: Path, tmp_path: Path, suffix: str, options: Sequence[str]) -> None:
    """Told by an edit list, by the first fragment, or by the time stamps themselves."""
    check_clips(with_late_picture(film, tmp_path / f"a.{suffix}", 0.12, *options), 0.12, 0.12)


@pytest.mark.parametrize("options", [["-use_editlist", "0"], ["-movflags", "frag_keyframe+empty_moov"]], ids=str)
def test_a_first_frame_that_the_muxer_pulled_forward_stays_until_the_second(
    film: Path, tmp_path: Path, options: Sequence[str]
) -> None:
    """Without an edit list ffmpeg's muxer lets a late track begin with the file, and its first frame last for longer: so it is in the
    file, and so in the clip. All other frames are where they belong."""
    path = with_late_picture(film, tmp_path / "a.mp4", 0.12, *options)
    (first_time, _), (second_time, _), *_ = pictures(path)
    late_seconds = second_time - first_time - FRAME_SECONDS
    assert late_seconds > 0.01
    (span, shown, ahead), (_, _, second_ahead) = clips_of(path)
    assert span.start_seconds == pytest.approx(first_time, abs=0.001)
    assert [number for _, number in shown] == list(range(len(shown)))
    times = [0.0, *(late_seconds + n * FRAME_SECONDS for n in range(1, len(shown)))]
    assert [seconds for seconds, _ in shown] == pytest.approx(times, abs=0.0011)
    assert ahead == pytest.approx([0.12 - late_seconds, 0.12, 0.12], abs=0.001)
    assert second_ahead == pytest.approx([0.12] * 3, abs=0.001)


def test_a_transport_stream_with_a_late_first_frame(film: Path, tmp_path: Path) -> None:
    path = with_late_picture(film, tmp_path / "a.ts", 0.4)
    for _, shown, ahead in clips_of(path):
        assert [number for _, number in shown] == list(range(shown[0][1], shown[0][1] + 50))
        assert ahead == pytest.approx([0.4] * 3, abs=0.001)


@pytest.mark.parametrize(
    "options",
    [["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"], ["-c:v", "libx264", "-bf", "2"], ["-c:v", "libx264", "-bf", "0"]],
    ids=["mpeg4", "h264", "no B-frames"],
)
def test_an_avi_with_b_frames_keeps_its_last_frames(film: Path, tmp_path: Path, options: Sequence[str]) -> None:
    """They come out of the decoder when no packet is left, and with it no time of decoding: each follows the one before."""
    path = tmp_path / "a.avi"
    command = ["-i", str(film), "-t", "4", *options, "-c:a", "pcm_s16le", str(path)]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *command], check=True)
    shown = pictures(path)
    assert [number for _, number in shown] == list(range(100))
    begin = shown[0][0]
    assert [seconds for seconds, _ in shown] == pytest.approx([begin + n * FRAME_SECONDS for n in range(100)], abs=1e-6)
    span = Span(round(shown[50][0] * 1000), round(shown[99][0] * 1000) + 40)
    cut_clip(path, probe(path), span, Bars(), SETTINGS, tmp_path, num_frames=50)
    cut = pictures(tmp_path / "full.mp4")
    assert [number for _, number in cut] == list(range(50, 100))
    assert [seconds for seconds, _ in cut] == pytest.approx([n * FRAME_SECONDS for n in range(50)], abs=0.0011)
