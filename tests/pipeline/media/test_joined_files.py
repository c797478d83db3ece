"""Files that were joined byte by byte, so that their time stamps begin again: read whole, or refused with a word."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr

from pipeline.errors import MediaError
from pipeline.measure.clips import ClipSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasuredVideo, MeasureSettings, measure_video
from pipeline.media.boxes import outer_boxes
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture, SoundBlock
from pipeline.media.ffmpeg import probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, SOUND_HZ, noise, number_in, numbered_frames

SETTINGS = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=192),), preset="veryfast")
SOUND = noise(9.0, seed=7)
MPEG = {"video_codec": "mpeg2video", "audio_codec": "mp2", "preset": None}


def joined(folder: Path, suffix: str, **options: object) -> Path:
    """Three seconds, then six, of numbered frames and the noise that goes with them."""
    content = b""
    for part, (begin, end) in enumerate([(0, 75), (75, 225)]):
        sound = SOUND[round(begin / FPS * SOUND_HZ) : round(end / FPS * SOUND_HZ)]
        path = folder / f"{part}.{suffix}"
        write_video(path, numbered_frames(range(begin, end)), sound, fps=FPS, gop=25, **options)  # type: ignore[arg-type]
        content += path.read_bytes()
    (folder / f"joined.{suffix}").write_bytes(content)
    return folder / f"joined.{suffix}"


def measured(path: Path, section_ms: tuple[int, int | None] = (0, None)) -> MeasuredVideo:
    return measure_video(
        path,
        probe(path),
        section_ms=section_ms,
        scenes=SceneSettings(threshold=1e9),
        clips=ClipSettings(length_seconds=2, min_seconds=1),
        settings=MeasureSettings(),
        frames_out=path.with_suffix(".npz"),
        sound_out=path.with_suffix(".flac"),
    )


def numbers_in(path: Path) -> list[tuple[float, int]]:
    return [(p.seconds, number_in(p.luma())) for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture)]


def sound_position(flac: Path) -> float:
    """The place in SOUND, in seconds, of what the file begins with."""
    heard, rate = soundfile.read(flac)
    one_second = soxr.resample(heard, rate, SOUND_HZ)[SOUND_HZ // 2 : SOUND_HZ // 2 + SOUND_HZ]
    match = scipy.signal.fftconvolve(SOUND[:, 0], one_second[::-1], "valid")
    return int(np.abs(match).argmax()) / SOUND_HZ - 0.5


@pytest.mark.parametrize(("suffix", "options"), [("ts", {}), ("mpg", MPEG)])
def test_streams_that_were_joined_are_read_whole(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    path = joined(tmp_path, suffix, **options)
    facts = probe(path)
    assert len(facts.part_shifts) == 2
    assert facts.duration_seconds == pytest.approx(9.0, abs=0.1)
    found = measured(path)
    assert found.num_frames == 225
    assert found.decoded_seconds == pytest.approx(9.0, abs=0.1)
    assert len(found.clips) == 4 or found.clips[-1].span.duration_ms < 2000
    for clip in (found.clips[0], found.clips[2]):
        assert clip.sound is not None and clip.sound.covered_share > 0.98
        cut_clip(path, facts, clip.span, Bars(), SETTINGS, tmp_path, num_frames=clip.picture.num_frames)
        shown = numbers_in(tmp_path / "full.mp4")
        assert [number for _, number in shown] == list(range(shown[0][1], shown[0][1] + 50))
        assert sound_position(tmp_path / "sound.flac") == pytest.approx(shown[0][1] / FPS, abs=0.001)
    assert shown[0][1] > 75  # of the second part
    assert not (tmp_path / "straight.nut").exists()


@pytest.mark.parametrize("codecs", [("libx264", "libx265"), ("mpeg2video", "libx264")], ids=" then ".join)
def test_a_part_of_another_codec_is_not_left_out_unsaid(tmp_path: Path, codecs: tuple[str, str]) -> None:
    """The first part's decoder takes the other's packets for damage, or for nothing at all; the sound goes on."""
    content = b""
    for part, codec in enumerate(codecs):
        frames, sound = numbered_frames(range(part * 75, part * 75 + 75)), SOUND[part * 3 * SOUND_HZ :][: 3 * SOUND_HZ]
        options: dict[str, object] = {
            "libx265": {"extra": ["-x265-params", "log-level=none"]}, "mpeg2video": {"preset": None},
        }.get(codec, {})  # fmt: skip
        write_video(tmp_path / "one.ts", frames, sound, fps=FPS, video_codec=codec, **options)  # type: ignore[arg-type]
        content += (tmp_path / "one.ts").read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(content)
    facts = probe(path)
    assert facts.video is not None and facts.video.duration_seconds == pytest.approx(6.0, abs=0.1)
    with pytest.raises(MediaError, match=r"says 6\.\d s of picture, only [23]\.\d s can be decoded") as caught:
        measured(path)
    assert caught.value.code == "truncated"


def test_a_cut_across_the_join_has_both_parts_in_step(tmp_path: Path) -> None:
    """Sound is a little longer than the picture in each part; so much the picture of the second waits."""
    path = joined(tmp_path, "ts")
    facts = probe(path)
    times = {
        number_in(piece.luma()): piece.seconds
        for piece in Decoding(path, sample_rate_hz=44_100, part_shifts=facts.part_shifts)
        if isinstance(piece, Picture)
    }
    assert list(times) == list(range(225))
    span = Span(round(times[50] * 1000), round(times[50] * 1000) + 3000)
    cut_clip(path, facts, span, Bars(), SETTINGS, tmp_path)
    shown = numbers_in(tmp_path / "full.mp4")
    assert [number for _, number in shown] == list(range(50, 50 + len(shown)))
    assert [seconds for seconds, _ in shown] == pytest.approx([times[n] - times[50] for _, n in shown], abs=0.0011)
    heard, rate = soundfile.read(tmp_path / "sound.flac")
    soundfile.write(tmp_path / "behind.flac", heard[round((times[80] - times[50]) * rate) :], rate)
    assert sound_position(tmp_path / "behind.flac") == pytest.approx(80 / FPS, abs=0.001)


@pytest.mark.parametrize("offsets", [(100, 50, 10), (0, 200, 0), (95_441, 95_441, 20), (0, 2.5, 5)], ids=str)
def test_parts_may_begin_anywhere(tmp_path: Path, offsets: tuple[float, ...]) -> None:
    """Also where the 33 bits of a transport stream's times run over, and where parts overlap by a part of a second."""
    content = b""
    for part, offset in enumerate(offsets):
        begin, end = part * 75, (part + 1) * 75
        sound = SOUND[round(begin / FPS * SOUND_HZ) : round(end / FPS * SOUND_HZ)]
        one = tmp_path / f"{part}.ts"
        shifted = ["-output_ts_offset", str(offset)]
        write_video(one, numbered_frames(range(begin, end)), sound, fps=FPS, gop=25, extra=shifted)
        content += one.read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(content)
    facts = probe(path)
    times = {
        number_in(piece.luma()): piece.seconds
        for piece in Decoding(path, sample_rate_hz=44_100, part_shifts=facts.part_shifts)
        if isinstance(piece, Picture)
    }
    assert list(times) == list(range(225))
    assert list(times.values()) == sorted(times.values())
    for first in (20, 80, 155, 160):
        span = Span(round(times[first] * 1000), round(times[first] * 1000) + 2000)
        cut_clip(path, facts, span, Bars(), SETTINGS, tmp_path, num_frames=50)
        shown = numbers_in(tmp_path / "full.mp4")
        assert [number for _, number in shown] == list(range(first, first + 50))
        assert shown[0][0] == pytest.approx(0, abs=0.001)
        assert sound_position(tmp_path / "sound.flac") == pytest.approx(first / FPS, abs=0.001)


def test_a_section_behind_the_join_is_found(tmp_path: Path) -> None:
    path = joined(tmp_path, "ts")
    assert [clip.picture.num_frames for clip in measured(path, (5000, 7100)).clips] == [50]


@pytest.mark.parametrize(
    ("suffix", "options", "says"),
    [
        ("mkv", {}, r"time stamps go back, so that 3\.0 s"),
        ("flv", {}, "at the end, cannot be read"),
        ("mp4", {}, "at the end, cannot be read"),
        ("mp4", {"faststart": True}, "at the end, cannot be read"),
        ("mov", {}, "at the end, cannot be read"),
        ("wmv", {"video_codec": "wmv2", "audio_codec": "wmav2", "preset": None}, "at the end, cannot be read"),
    ],
    ids=str,
)
def test_what_is_lost_of_other_joined_files_is_said(
    tmp_path: Path, suffix: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        measured(joined(tmp_path, suffix, **options))
    assert caught.value.code == "joined"


def test_a_header_that_is_told_again_is_no_other_file(tmp_path: Path) -> None:
    """Fragments whose times go on, with the header before each, as some recorders write them: all of it is read."""
    fragments = ["-movflags", "frag_keyframe+empty_moov+default_base_moof"]
    path = tmp_path / "a.mp4"
    write_video(path, numbered_frames(range(150)), SOUND[: 6 * SOUND_HZ], fps=FPS, gop=25, extra=fragments)
    content = path.read_bytes()
    boxes = list(outer_boxes(path))
    header = b"".join(content[b.start : b.start + b.num_bytes] for b in boxes if b.kind in (b"ftyp", b"moov"))
    again = [
        (header if b.kind == b"moof" else b"") + content[b.start : b.start + b.num_bytes]
        for b in boxes
        if b.kind in (b"moof", b"mdat")
    ]
    path.write_bytes(b"".join(again))
    assert sum(box.kind == b"moov" for box in outer_boxes(path)) > 2
    assert measured(path).num_frames == 150


def test_a_track_that_begins_again_alone_is_told(tmp_path: Path) -> None:
    """The second part has no sound: where the first one's goes on cannot be told."""
    write_video(tmp_path / "0.ts", numbered_frames(range(75)), SOUND[: 3 * SOUND_HZ], fps=FPS)
    write_video(tmp_path / "1.ts", numbered_frames(range(75, 150)), None, fps=FPS)
    (tmp_path / "a.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    assert probe(tmp_path / "a.ts").part_shifts == ()
    with pytest.raises(MediaError, match=r"time stamps go back, so that 3\.0 s") as caught:
        measured(tmp_path / "a.ts")
    assert caught.value.code == "joined"


def with_picture_a_second_earlier(content: bytes, number: int) -> bytes:
    """A transport stream in which one picture's time stamp is damaged. Without B-frames each has a PTS alone, in five bytes."""
    starts = [
        at + 9 for at in range(len(content) - 14) if content[at : at + 4] == b"\0\0\1\xe0" and content[at + 7] == 0x80
    ]
    at = starts[number]
    a, b, c, d, e = content[at : at + 5]
    ticks = ((a >> 1 & 7) << 30 | b << 22 | c >> 1 << 15 | d << 7 | e >> 1) - 90_000
    stamp = bytes(
        [
            a & 0xF1 | (ticks >> 30 & 7) << 1,
            ticks >> 22 & 255,
            ticks >> 14 & 254 | 1,
            ticks >> 7 & 255,
            ticks << 1 & 254 | 1,
        ]
    )
    return content[:at] + stamp + content[at + 5 :]


def test_one_damaged_time_stamp_makes_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write_video(path, numbered_frames(range(150)), SOUND[: 6 * SOUND_HZ], fps=FPS, extra=["-bf", "0"])
    path.write_bytes(with_picture_a_second_earlier(path.read_bytes(), 60))
    decoded = [piece.seconds for piece in Decoding(path, sample_rate_hz=44_100) if isinstance(piece, Picture)]
    assert decoded[60] == pytest.approx(decoded[59] + 1 / FPS - 1, abs=0.001)
    assert probe(path).part_shifts == ()
    assert measured(path).num_frames == 149


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv", "flv", "mpg", "ogv", "avi"])
def test_a_span_behind_the_end_is_named(tmp_path: Path, suffix: str) -> None:
    codecs: dict[str, dict[str, object]] = {
        "mpg": MPEG,
        "avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame", "preset": None},
        "ogv": {"video_codec": "libtheora", "audio_codec": "libvorbis", "preset": None},
    }
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered_frames(range(75)), SOUND[: 3 * SOUND_HZ], fps=FPS, **codecs.get(suffix, {}))  # type: ignore[arg-type]
    for section, wanted in [((30_000, 40_000), "30 to 40 s of it"), ((30_000, None), "30 s to its end")]:
        with pytest.raises(
            MediaError, match=rf"the file is 3\.\d\d s long, and the row of the source list asks for {wanted}"
        ) as caught:
            measured(path, section)
        assert caught.value.code == "no_such_span"


def test_sound_blocks_of_a_joined_file_never_go_back(tmp_path: Path) -> None:
    path = joined(tmp_path, "ts")
    blocks = [
        piece
        for piece in Decoding(path, sample_rate_hz=44_100, part_shifts=probe(path).part_shifts)
        if isinstance(piece, SoundBlock)
    ]
    assert sum(len(block.samples) for block in blocks) == pytest.approx(9 * 44_100, abs=5_000)
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(blocks))
