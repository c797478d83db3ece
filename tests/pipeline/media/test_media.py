"""Reading media: what the header says, and frames and sound on one clock."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import ffmpeg
import numpy as np
import pytest

from pipeline.errors import MediaError, WorkerError
from pipeline.media import ffmpeg as media
from pipeline.media.decoding import Decoding, Picture, SoundBlock
from pipeline.runtime.memory import IS_SUPPORTED
from pipeline.synthetic.video import write_video
from tests.footage import FPS, HEIGHT, WIDTH, noise, number_in, numbered_frames


def decode(
    path: Path, start: float = 0.0, end: float | None = None
) -> tuple[list[tuple[float, int]], list[SoundBlock]]:
    pictures, sound = [], []
    for piece in Decoding(path, sample_rate_hz=44_100, start_seconds=start, end_seconds=end):
        if isinstance(piece, Picture):
            pictures.append((round(piece.seconds, 3), number_in(piece.luma())))
        else:
            sound.append(piece)
    return pictures, sound


def test_every_frame_comes_once_and_at_its_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(range(100)), noise(4), fps=FPS)
    pictures, sound = decode(tmp_path / "a.mp4")
    assert pictures == [(round(number / 25, 3), number) for number in range(100)]
    assert sum(len(block.samples) for block in sound) == pytest.approx(4 * 44_100, abs=1100)
    assert abs(sound[0].seconds) < 0.03


def test_a_section_is_decoded_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered_frames(range(200)), noise(8), fps=FPS, gop=50)
    pictures, _ = decode(tmp_path / "a.mkv", 3.0, 4.0)
    assert [number for _, number in pictures] == list(range(75, 100))


def test_variable_frame_rate_keeps_the_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.14, 0.5, 0.9, 1.0, 1.7]
    write_video(tmp_path / "a.mp4", numbered_frames(range(7)), noise(2), frame_times_seconds=times)
    pictures, _ = decode(tmp_path / "a.mp4")
    assert pictures == list(zip(times, range(7), strict=True))


def test_the_ticks_of_a_clock_are_no_frame_rate(tmp_path: Path) -> None:
    times = [i / 25 + (0.013 if i % 3 else 0) for i in range(50)]
    write_video(tmp_path / "a.mkv", numbered_frames(range(50)), noise(2), frame_times_seconds=times)
    with media.opened(tmp_path / "a.mkv") as container:
        assert container.streams.video[0].average_rate == 30_000
    facts = media.probe(tmp_path / "a.mkv").video
    assert facts is not None and facts.fps is None


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_turned_picture_is_seen_upright(tmp_path: Path, rotation: int) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames([693, 694, 695]), noise(1), fps=FPS, rotation=rotation)
    facts = media.probe(tmp_path / "a.mp4").video
    assert facts is not None
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    pictures, _ = decode(tmp_path / "a.mp4")
    assert [number for _, number in pictures] == [693, 694, 695]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_luma_is_stretched_to_full_range(tmp_path: Path, pix_fmt: str) -> None:
    levels = [np.full((96, 160, 3), level, np.uint8) for level in (0, 128, 255)]
    write_video(tmp_path / "a.mp4", levels, noise(1), fps=FPS, pix_fmt=pix_fmt, crf=5)
    pieces = [piece for piece in Decoding(tmp_path / "a.mp4", sample_rate_hz=44_100) if isinstance(piece, Picture)]
    means = []
    for piece in Decoding(tmp_path / "a.mp4", sample_rate_hz=44_100):
        if isinstance(piece, Picture):
            means.append(float(piece.small_luma((80, 48)).mean()))
    assert len(pieces) == 3
    assert means == pytest.approx([0, 128, 255], abs=2)


def test_colours_survive(tmp_path: Path) -> None:
    frame = np.zeros((96, 160, 3), np.uint8)
    frame[:, :80], frame[:, 80:] = (200, 40, 30), (20, 60, 210)
    write_video(tmp_path / "a.mp4", [frame] * 3, noise(1), fps=FPS, crf=5)
    piece = next(piece for piece in Decoding(tmp_path / "a.mp4", sample_rate_hz=44_100) if isinstance(piece, Picture))
    small = piece.small_bgr((80, 48), piece.small_luma((80, 48)))
    assert small[24, 10].tolist() == pytest.approx([30, 40, 200], abs=12)
    rgb = piece.rgb(48)
    assert rgb.shape == (48, 80, 3)
    assert rgb[24, 70].tolist() == pytest.approx([20, 60, 210], abs=12)


@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (2, 2), (6, 2)])
def test_sound_comes_in_one_or_two_channels(tmp_path: Path, channels: int, expected: int) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(range(25)), noise(1, channels=channels), fps=FPS)
    _, sound = decode(tmp_path / "a.mp4")
    assert {block.samples.shape[1] for block in sound} == {expected}
    facts = media.probe(tmp_path / "a.mp4").sound
    assert facts is not None
    assert facts.num_channels == channels


def test_tracks_that_are_missing_are_none(tmp_path: Path) -> None:
    write_video(tmp_path / "picture.mp4", numbered_frames(range(5)), None, fps=FPS)
    write_video(tmp_path / "sound.m4a", None, noise(1))
    assert media.probe(tmp_path / "picture.mp4").sound is None
    assert media.probe(tmp_path / "sound.m4a").video is None


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty"), (b"this is text, not a film\n" * 9, "not_media"), (b"\x00" * 4000, "not_media")],
)
def test_what_is_not_media_is_named(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError) as caught:
        media.probe(tmp_path / "a.mp4")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "name", ["-y.mp4", "a:b.mp4", "with space 'and' \"quotes\".mp4", "line\nbreak.mp4", "%03d.mp4", "x" * 200 + ".mp4"]
)
def test_a_name_is_never_an_option_or_a_pattern(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "plain.mp4", numbered_frames(range(5)), noise(1), fps=FPS)
    path = (tmp_path / "plain.mp4").rename(tmp_path / name)
    assert media.probe(path).video is not None


ENDLESS = """
import sys, ffmpeg
from pipeline.media import ffmpeg as media
media.run_ffmpeg(ffmpeg.output(ffmpeg.input("color=s=1280x720", f="lavfi"), sys.argv[1], vcodec="mpeg4", flush_packets=1))
"""


def ffmpeg_that_writes(path: Path) -> list[int]:
    """Processes whose command names the path as its last word."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes().split(b"\0")
            if str(path).encode() in words and b"ffmpeg" in words[0]:
                found.append(int(command.parent.name))
    return found


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_ffmpeg_ends_with_a_build_that_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "endless.avi"
    build = subprocess.Popen([sys.executable, "-c", ENDLESS, str(target)], cwd=Path(__file__).parents[3])
    with build:
        deadline = time.monotonic() + 60
        while not (target.exists() and target.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(ffmpeg_that_writes(target)) == 1
        build.kill()
    while ffmpeg_that_writes(target) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ffmpeg_that_writes(target) == []


@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")
def test_an_ffmpeg_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    greedy = ffmpeg.input("testsrc2=s=2560x1440:d=60", f="lavfi").filter(
        "reverse"
    )  # holds all frames before it gives one
    with pytest.raises(WorkerError, match=r"used \d+ MiB of memory, over the limit of 512 MiB") as caught:
        media.run_ffmpeg(
            ffmpeg.output(greedy, str(tmp_path / "a.avi"), vcodec="mpeg4"), timeout_seconds=60, memory_bytes=512 << 20
        )
    assert caught.value.code == "out_of_memory"


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.ts", numbered_frames(range(50)), noise(2), fps=FPS)
    (tmp_path / "a.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path / 'secret.ts'}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.ts'}\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(MediaError, match="not a video that ffmpeg can open"):
            media.probe(tmp_path / name)
