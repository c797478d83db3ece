"""What is cut out is what was asked for: to the frame, to the sample, to the byte."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from pipeline.errors import MediaError, WorkerError
from pipeline.media.cut import CutClip, CutSettings, RenditionSettings, cut_clip, picture_size
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.facts import VideoFacts
from pipeline.media.ffmpeg import has_encoder, probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, number_in, numbered_frames

FRAME_MS = 1000 / FPS
SETTINGS = CutSettings(
    renditions=(RenditionSettings(name="full", short_side_px=192), RenditionSettings(name="half", short_side_px=96)),
    preset="veryfast",
)
SOUND = noise(9.0, seed=7)
UNEVEN = [index * 0.04 + (0.013 if index % 3 == 1 else 0.0) + (0.5 if index > 140 else 0.0) for index in range(210)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``footage`` puts its files. Not to be written into by others."""
    return tmp_path_factory.mktemp("footage")


def footage(folder: Path, name: str) -> Path:
    """Nine seconds of numbered frames with SOUND, made where they are not there yet."""
    path = folder / name
    if path.exists():
        return path
    if path.stem == "uneven":
        write_video(
            path, numbered_frames(range(210)), SOUND, frame_times_seconds=UNEVEN, gop=60, audio_codec="pcm_s16le"
        )
    else:
        write_video(path, numbered_frames(range(225)), SOUND, fps=FPS, gop=60)
    return path


def pictures(path: Path) -> list[tuple[float, int]]:
    return [(p.seconds, number_in(p.luma())) for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture)]


def sound_offset_ms(flac: Path, expected_seconds: float) -> float:
    """How far the sound in the file is from the place in SOUND where it should be, by cross-correlation."""
    heard, rate = soundfile.read(flac)
    one_second = soxr.resample(heard.reshape(len(heard), -1)[:, 0], rate, SOUND_HZ)[SOUND_HZ : 2 * SOUND_HZ]
    match = scipy.signal.fftconvolve(SOUND[:, 0], one_second[::-1], "valid")
    return (int(np.abs(match).argmax()) - SOUND_HZ) / SOUND_HZ * 1000 - expected_seconds * 1000


@pytest.mark.parametrize(
    "name",
    [
        "even.mp4",
        "even.ts",
        "uneven.mkv",
        "even.mkv",
        "uneven.mov",
    ],
)
def test_picture_and_sound_start_where_the_span_does(folder: Path, tmp_path: Path, name: str) -> None:
    path = footage(folder, name)
    whole = pictures(path)
    shift = whole[0][0]  # a transport stream begins with the sound's priming: picture and sound are shifted alike
    for first_frame in (0, 37, 150):
        start = whole[first_frame][0]
        span = Span(round(start * 1000), round(start * 1000) + 2000)
        cut = cut_clip(path, probe(path), span, Bars(), SETTINGS, tmp_path)

        wanted = [(seconds - start, number) for seconds, number in whole if start - 0.001 <= seconds < start + 1.9995]
        for rendition in cut.renditions:
            found = pictures(tmp_path / f"{rendition.name}.mp4")
            assert [number for _, number in found] == [number for _, number in wanted]
            assert [seconds for seconds, _ in found] == pytest.approx([seconds for seconds, _ in wanted], abs=0.001)
            assert rendition.num_frames == len(wanted)
        assert abs(sound_offset_ms(tmp_path / "sound.flac", start - shift)) < 1.0  # a frame lasts 40 ms
        assert soundfile.info(tmp_path / "sound.flac").frames == cut.num_samples == 2 * 44_100


def test_both_renditions_have_their_size_and_closed_groups(folder: Path, tmp_path: Path) -> None:
    path = footage(folder, "even.mp4")
    cut = cut_clip(
        path, probe(path), Span(1000, 5000), Bars(), SETTINGS.model_copy(update={"gop_seconds": 0.4}), tmp_path
    )
    assert [(r.width, r.height) for r in cut.renditions] == [(320, 192), (160, 96)]
    facts = probe(tmp_path / "half.mp4")
    assert facts.video is not None
    assert (facts.video.width, facts.video.height) == (160, 96)
    for start in (0.4, 1.2, 3.6):  # a key frame every 10 frames: decoding from there needs nothing before it
        seen = [
            number_in(p.luma())
            for p in Decoding(tmp_path / "half.mp4", sample_rate_hz=44_100, start_seconds=start)
            if isinstance(p, Picture)
        ]
        assert seen[0] == 25 + round(start * FPS)


@pytest.mark.parametrize("codec", ["x264", "svt_av1"])
def test_the_same_cut_is_the_same_bytes(folder: Path, tmp_path: Path, codec: str) -> None:
    path = footage(folder, "even.mp4")
    settings = SETTINGS.model_copy(
        update={"codec": codec, "preset": "veryfast" if codec == "x264" else "12", "quality": 30}
    )
    sums = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        cut_clip(path, probe(path), Span(2000, 4000), Bars(), settings, folder)
        sums.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())})
    assert sums[0] == sums[1]
    assert set(sums[0]) == {"full.mp4", "half.mp4", "sound.flac"}


def test_nvenc_takes_the_options_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    """Where there is none, ffmpeg reads all of them before it looks for one."""
    path = footage(folder, "even.mp4")
    one = (RenditionSettings(name="half", short_side_px=96),)
    settings = CutSettings(renditions=one, codec="nvenc", preset="p4", gop_seconds=0.4)
    refused = r"Error setting option|Error applying encoder options|Unrecognized option"
    wrong = settings.model_copy(update={"preset": "ultrafast"})
    with pytest.raises(MediaError, match=refused):
        cut_clip(path, probe(path), Span(0, 2000), Bars(), wrong, tmp_path)
    if has_encoder("h264_nvenc"):
        assert cut_clip(path, probe(path), Span(0, 2000), Bars(), settings, tmp_path).renditions[0].num_frames == 50
        return
    with pytest.raises((MediaError, WorkerError), match="h264_nvenc") as caught:
        cut_clip(path, probe(path), Span(0, 2000), Bars(), settings, tmp_path)
    assert not re.search(refused, str(caught.value))


def test_bars_are_cut_off(tmp_path: Path) -> None:
    frames = []
    for frame in numbered_frames(range(60)):
        boxed = np.zeros((192 + 48, 320, 3), np.uint8)
        boxed[24:-24] = frame
        frames.append(boxed)
    write_video(tmp_path / "a.mp4", frames, noise(2.4), fps=FPS)
    cut = cut_clip(
        tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), Span(0, 2000), Bars(top=24, bottom=24), SETTINGS, tmp_path
    )
    assert (cut.renditions[0].width, cut.renditions[0].height) == (320, 192)
    assert [number for _, number in pictures(tmp_path / "full.mp4")] == list(range(50))


def test_a_turned_source_comes_out_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(range(60)), noise(2.4), fps=FPS, rotation=90)
    cut_clip(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), Span(0, 2000), Bars(), SETTINGS, tmp_path)
    assert [number for _, number in pictures(tmp_path / "full.mp4")] == list(range(50))


def test_a_span_that_begins_with_the_last_samples_of_a_packet(tmp_path: Path) -> None:
    """AAC comes in packets of 1024 samples; here 8 of the first one are left, fewer than FLAC takes as a block."""
    first = next(number for number in range(1, 300) if number * 1764 % 1024 == 1016)
    sound = soxr.resample(noise(12.0, seed=7), SOUND_HZ, 44_100).astype(np.float32)
    write_video(tmp_path / "a.mp4", numbered_frames(range(300)), sound, fps=FPS, sample_rate=44_100)
    span = Span(first * 40, first * 40 + 2000)
    cut = cut_clip(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), span, Bars(), SETTINGS, tmp_path)
    assert soundfile.info(tmp_path / "sound.flac").frames == cut.num_samples == 2 * 44_100


def test_sound_that_ends_early_is_filled_with_silence(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(range(100)), noise(2.0), fps=FPS)
    cut_clip(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), Span(0, 4000), Bars(), SETTINGS, tmp_path)
    heard, _ = soundfile.read(tmp_path / "sound.flac")
    assert len(heard) == 4 * 44_100
    assert np.abs(heard[:44_100]).mean() > 0.05
    assert not heard[2 * 44_100 + 4000 :].any()


def test_what_ffmpeg_says_reaches_the_error(folder: Path, tmp_path: Path) -> None:
    path = footage(folder, "even.mp4")
    facts = probe(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"moov atom not found|Invalid data") as caught:
        cut_clip(path, facts, Span(0, 2000), Bars(), SETTINGS, tmp_path)
    assert caught.value.code == "ffmpeg_failed"


def test_a_record_survives_json() -> None:
    values = {
        "num_samples": 1,
        "sample_rate_hz": 2,
        "num_channels": 1,
        "flac_bytes": 3,
        "flac_sha256": "0" * 64,
        "renditions": [{"name": "a", "width": 2, "height": 2, "num_frames": 1, "num_bytes": 9, "sha256": "1" * 64}],
    }
    assert CutClip.from_json(values).to_json() == values


@pytest.mark.parametrize(
    ("size", "bars", "wanted", "upscale", "expected"),
    [
        ((1920, 1080), Bars(), 256, False, (456, 256)),
        ((1920, 1080), Bars(), 1080, False, (1920, 1080)),
        ((1280, 720), Bars(), 1080, False, (1280, 720)),
        ((1280, 720), Bars(), 1080, True, (1920, 1080)),
        ((1920, 1080), Bars(0, 140, 0, 140), 256, False, (614, 256)),
        ((1080, 1920), Bars(), 256, False, (256, 456)),
        ((1921, 1081), Bars(), 2160, False, (1920, 1080)),
    ],
)
def test_sizes_keep_the_shape_and_are_even(
    size: tuple[int, int], bars: Bars, wanted: int, upscale: bool, expected: tuple[int, int]
) -> None:
    video = VideoFacts("h264", *size, 25.0, 9.0, 0, 1.0, "yuv420p", is_hdr=False, interlaced=False)
    assert picture_size(video, bars, RenditionSettings(name="r", short_side_px=wanted, upscale=upscale)) == expected


def test_hdr_is_brought_to_the_range_of_a_screen(tmp_path: Path) -> None:
    """PQ code 0.5 of 1 stands for 92 cd/m2 (SMPTE ST 2084), white on a screen: taken as it is, it would be mid grey."""
    frames = [np.full((192, 320, 3), 128, np.uint8)] * 50
    tags = ["-x264-params", "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"]
    write_video(tmp_path / "a.mp4", frames, noise(2), fps=FPS, pix_fmt="yuv420p10le", extra=tags)
    facts = probe(tmp_path / "a.mp4")
    assert facts.video is not None
    assert facts.video.is_hdr
    cut_clip(tmp_path / "a.mp4", facts, Span(0, 2000), Bars(), SETTINGS, tmp_path)
    after = probe(tmp_path / "full.mp4").video
    assert after is not None
    assert (after.is_hdr, after.pixel_format) == (False, "yuv420p")
    shown = next(p for p in Decoding(tmp_path / "full.mp4", sample_rate_hz=44_100) if isinstance(p, Picture))
    assert 150 < float(shown.small_luma((80, 48)).mean()) < 250


def test_interlaced_footage_comes_out_progressive(tmp_path: Path) -> None:
    fields = ["-x264-params", "tff=1", "-flags", "+ilme+ildct"]
    write_video(tmp_path / "a.mp4", numbered_frames(range(60)), noise(2.4), fps=FPS, extra=fields)
    facts = probe(tmp_path / "a.mp4")
    assert facts.video is not None
    assert facts.video.interlaced
    cut_clip(tmp_path / "a.mp4", facts, Span(0, 2000), Bars(), SETTINGS, tmp_path)
    after = probe(tmp_path / "full.mp4").video
    assert after is not None
    assert not after.interlaced
    assert [number for _, number in pictures(tmp_path / "full.mp4")] == list(range(50))


def test_pixels_come_out_square(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(range(60)), noise(2.4), fps=FPS, extra=["-aspect", "20:9"])
    facts = probe(tmp_path / "a.mp4")
    assert facts.video is not None
    assert (facts.video.width, facts.video.height) == (427, 192)
    cut = cut_clip(tmp_path / "a.mp4", facts, Span(0, 2000), Bars(), SETTINGS, tmp_path)
    assert (cut.renditions[0].width, cut.renditions[0].height) == (428, 192)
    after = probe(tmp_path / "full.mp4").video
    assert after is not None
    assert after.sample_aspect == 1.0
    assert [number for _, number in pictures(tmp_path / "full.mp4")] == list(range(50))
