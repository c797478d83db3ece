"""Frames out of an mp4: exactly those that a whole decode shows at these times, for the least of decoding."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.ffmpeg import probe
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, number_in, numbered_frames
from trainer.streaming import frames
from trainer.streaming.frames import as_pictures, decode_frames

UNEVEN = [index * 0.04 + (0.013 if index % 3 == 1 else 0.0) + (0.5 if index > 60 else 0.0) for index in range(100)]


@pytest.fixture(scope="module", params=["x264", pytest.param("svt_av1", marks=pytest.mark.slow)])
def mp4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoded(tmp_path_factory.mktemp("mp4"), request.param)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoded(tmp_path_factory.mktemp("mp4"), "x264", uneven=True)


def encoded(folder: Path, codec: str, *, uneven: bool = False) -> bytes:
    """4 s, 320x192, frames numbered from 0, with B-frames; where frames come evenly, a key frame every half second."""
    path = folder / ("uneven.mkv" if uneven else "even.mp4")
    times = {"frame_times_seconds": UNEVEN} if uneven else {"fps": FPS}
    sound = noise(5.0)
    write_video(path, numbered_frames(range(100)), sound, gop=60, audio_codec="pcm_s16le" if uneven else "aac", **times)
    settings = CutSettings(
        renditions=(RenditionSettings(name="192", short_side_px=192),),
        codec=codec,
        preset="fast" if codec == "x264" else "10",
        quality=20,
    )
    cut_clip(path, probe(path), Span(0, 4000), Bars(), settings, folder)
    return (folder / "192.mp4").read_bytes()


def whole(mp4: bytes) -> list[tuple[int, np.ndarray]]:
    with av.open(io.BytesIO(mp4)) as container:
        return [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


TIMES = [*np.random.default_rng(0).uniform(0, 4.3, 40), 0.0, -1.0, 0.4801, 0.5, 3.9999, 99.0]


def check_against_a_whole_decode(mp4: bytes, times: list[float]) -> list[int]:
    """The numbers shown."""
    everything = whole(mp4)
    numbers = []
    for seconds, frame in zip(times, decode_frames(mp4, times), strict=True):
        shown = [(stamp, pixels) for stamp, pixels in everything if stamp <= (seconds + 0.0005) * 90_000]
        stamp, pixels = (shown or everything)[-1 if shown else 0]
        assert frame.pts == stamp
        np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), pixels)
        (alone,) = decode_frames(mp4, [seconds])
        np.testing.assert_array_equal(alone.to_ndarray(format="rgb24"), pixels)
        numbers.append(number_in(frame.to_ndarray(format="gray")))
    return numbers


@pytest.mark.slow
def test_each_time_gives_the_frame_that_is_shown_then(mp4: bytes):
    numbers = check_against_a_whole_decode(mp4, TIMES)
    assert numbers[-6:] == [0, 0, 12, 12, 99, 99]
    assert numbers[:40] == [min(int((seconds + 0.0005) * FPS), 99) for seconds in TIMES[:40]]


def test_frames_that_come_unevenly_are_found_by_their_own_times(uneven: bytes):
    numbers = check_against_a_whole_decode(uneven, TIMES)
    assert numbers[:40] == [
        max(index for index, time in enumerate(UNEVEN) if time <= seconds + 0.0005 and time < 3.9995)
        for seconds in TIMES[:40]
    ]


def test_what_is_decoded_begins_at_a_key_frame_and_ends_with_what_is_wanted(mp4: bytes):
    with av.open(io.BytesIO(mp4), mode="r") as container:
        stream = container.streams.video[0]
        stamps, groups = frames._planned(container, stream, [0.3, 0.35, 1.1, 3.0, 3.3])
        assert sorted({stamp for group in groups for stamp in group.wanted}) == stamps
        for group in groups:
            assert [packet.is_keyframe for packet in group.packets].index(True) == 0
            assert sum(packet.is_keyframe for packet in group.packets) == 1
            assert group.packets[-1].pts in group.wanted
    assert len(groups) == 3


def test_pictures_are_square_cuts_scaled_by_area(mp4: bytes):
    decoded = decode_frames(mp4, [1.0])
    full = decoded[0].to_ndarray(format="rgb24")
    for place, left in ((0.0, 0), (0.5, 64), (1.0, 128)):
        (picture,) = as_pictures(decoded, 192, place, upscale=False)
        np.testing.assert_array_equal(picture, full[:, left : left + 192].transpose(2, 0, 1))
    (half,) = as_pictures(decoded, 96, 0.0, upscale=False)
    means = full[:, :192].reshape(96, 2, 96, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(half - means).mean() < 2
    with pytest.raises(MediaError, match="its picture is 320x192, smaller than 193 px"):
        as_pictures(decoded, 193, 0.5, upscale=False)
    assert as_pictures(decoded, 193, 0.5, upscale=True).shape == (1, 3, 193, 193)


def test_a_high_picture_is_cut_from_top_to_bottom(tmp_path: Path):
    path = tmp_path / "high.mp4"
    picture = np.zeros((128, 64, 3), np.uint8)
    picture[64:] = 200
    write_video(path, [picture] * 10, None, fps=FPS)
    decoded = decode_frames(path.read_bytes(), [0.2])
    top, bottom = (as_pictures(decoded, 64, place, upscale=False)[0].mean() for place in (0.0, 1.0))
    assert (round(top), round(bottom)) == (pytest.approx(0, abs=3), pytest.approx(200, abs=3))


def test_a_file_that_ends_early_gives_its_own_frames_or_none(mp4: bytes):
    times = [0.3, 1.1, 2.0, 3.0, 3.99]
    wanted = [frame.pts for frame in decode_frames(mp4, times)]
    with av.open(io.BytesIO(mp4)) as container:
        last = container.streams.video[0].index_entries[-1]
    within_last = [last.pos, last.pos + 1, last.pos + last.size // 2, last.pos + last.size - 1]
    for end in within_last:
        with pytest.raises(MediaError):
            decode_frames(mp4[:end], times)
    for end in np.linspace(100, len(mp4) - 1, 80).astype(int):
        try:
            found = [frame.pts for frame in decode_frames(mp4[:end], times)]
        except MediaError:
            continue
        assert found == wanted, end


def test_damage_where_a_frame_is_needed_is_an_error_and_elsewhere_none(mp4: bytes):
    with av.open(io.BytesIO(mp4)) as container:
        third = [packet for packet in container.demux(video=0) if packet.is_keyframe][2]
        where, size = third.pos, third.size
        assert where is not None
    damaged = mp4[: where + 20] + np.random.default_rng(1).bytes(size - 20) + mp4[where + size :]
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode_frames(damaged, [0.1, 1.2])
    (frame,) = decode_frames(damaged, [0.1])
    np.testing.assert_array_equal(frame.to_ndarray(), decode_frames(mp4, [0.1])[0].to_ndarray())
