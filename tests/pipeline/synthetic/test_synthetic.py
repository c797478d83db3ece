"""Synthetic sources are what their specs say: cuts, lengths, sounds, faults, and the same bytes every time."""

import csv
import hashlib
import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyloudnorm
import pytest
import silero_vad
from scenedetect import ContentDetector, SceneManager, open_video
from scipy import signal
from silero_vad.sequence_vad import SileroVADSequence

from pipeline.errors import MediaError
from pipeline.schema import Bars
from pipeline.synthetic import rhythm
from pipeline.synthetic.__main__ import main
from pipeline.synthetic.catalogue import SceneSpec, SyntheticSpec, catalogue
from pipeline.synthetic.pictures import PAINTERS, scene_frames
from pipeline.synthetic.render import numpy_of_all_processors, render, render_catalogue
from pipeline.synthetic.serve import serve_folder
from pipeline.synthetic.sounds import NATURE_KINDS, nature_sound
from pipeline.synthetic.video import write_video
from pipeline.synthetic.voices import music_sound, speech_sound

SPECS = {spec.name: spec for spec in catalogue()}


def quick(spec: SyntheticSpec, **changes: object) -> SyntheticSpec:
    """The spec at a low frame rate."""
    return replace(spec, **{"fps": 10.0, **changes})


def decoded(path: Path) -> tuple[list[float], np.ndarray]:
    """Times of all frames, and the middle frame as it is shown."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    middle = frames[len(frames) // 2]
    return [float(frame.time) for frame in frames], np.rot90(middle.to_ndarray(format="rgb24"), middle.rotation // 90)


def sound_of(path: Path) -> tuple[np.ndarray, int]:
    """Samples (count, channels) and their rate."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray().T for frame in container.decode(stream)]
        return np.concatenate(blocks), stream.rate


def found_cuts(path: Path) -> list[float]:
    video = open_video(str(path))
    manager = SceneManager()
    manager.add_detector(ContentDetector())
    manager.detect_scenes(video)
    return [scene[0].seconds for scene in manager.get_scene_list()[1:]]


@pytest.fixture(scope="module")
def hears_speech():
    model = SileroVADSequence(str(Path(silero_vad.__file__).parent / "data" / "silero_vad_16k_sequence.onnx"))

    def share(sound: np.ndarray, rate: int) -> float:
        mono = signal.resample_poly(sound.mean(axis=1), 16000, rate).astype(np.float32)
        return float(np.mean(model.audio_forward(mono) > 0.5))

    return share


def test_a_sample_is_the_same_bytes_every_time(tmp_path):
    spec = quick(SPECS["river_bend"], scenes=(SceneSpec("river", 1.5, 51), SceneSpec("ocean", 1.0, 3)))
    render(spec, tmp_path / "a.mp4", scale=0.5)
    render(spec, tmp_path / "b.mp4", scale=0.5)
    first, second = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.mp4", "b.mp4"))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_is_painted_does_not_depend_on_the_processor(tmp_path, monkeypatch):
    """As a processor without AVX would paint it, and one for which Intel's library has nothing."""
    specs = [spec for spec in catalogue() if spec.name in ("thunder_ridge", "wrong_sound")]
    here = render_catalogue(tmp_path / "here", specs=specs, scale=0.25)
    monkeypatch.setenv("OPENCV_IPP", "disabled")
    monkeypatch.setenv("OPENCV_CPU_DISABLE", "SSE4.1,SSE4.2,AVX,FP16,AVX2,AVX512-SKX")
    elsewhere = render_catalogue(tmp_path / "elsewhere", specs=specs, scale=0.25)
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in elsewhere]
    code = "from numpy._core import _multiarray_umath as m; print([n for n in m.__cpu_dispatch__ if m.__cpu_features__[n]])"
    with numpy_of_all_processors():
        left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert left.strip() == "[]"


@pytest.mark.parametrize("name", [spec.name for spec in catalogue() if len(spec.scenes) > 1])
def test_cuts_are_where_the_spec_says(name, tmp_path):
    spec = quick(SPECS[name])
    render(spec, tmp_path / spec.file_name, scale=0.5)
    assert found_cuts(tmp_path / spec.file_name) == pytest.approx(spec.cuts_seconds, abs=0.01)


@pytest.mark.parametrize("seed", [30, 34, 36])
def test_lightning_is_no_cut(seed, tmp_path):
    spec = SyntheticSpec("storm", "storm.mp4", "thunder", "", (SceneSpec("thunder", 6.0, seed),), sounds=())
    render(spec, tmp_path / "storm.mp4")
    assert len(rhythm.strikes(seed, 6.0)) >= 2
    assert found_cuts(tmp_path / "storm.mp4") == []


@pytest.mark.parametrize("name", ["rain_lake", "fire_hearth", "underwater_reef", "underwater_deep", "river_stones"])
def test_lengths_sizes_and_sound_tracks_are_as_specified(name, tmp_path):
    spec = quick(SPECS[name])
    path = tmp_path / spec.file_name
    render(spec, path, scale=0.5)
    times, shown = decoded(path)
    assert len(times) == round(spec.picture_seconds * 10)
    assert times[-1] == pytest.approx(spec.picture_seconds - 0.1, abs=0.01)
    small = spec.scaled(0.5)
    assert shown.shape == (small.height, small.width, 3)
    samples, rate = sound_of(path)
    assert (samples.shape[1], rate) == (spec.channels, spec.sample_rate)
    assert len(samples) / rate == pytest.approx(spec.sound_seconds, abs=0.05)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == spec.encoding.pix_fmt


def test_variable_frame_rate_varies_and_keeps_its_times(tmp_path):
    spec = quick(SPECS["river_bend"], scenes=(SceneSpec("river", 3.0, 51),))
    render(spec, tmp_path / "v.mp4", scale=0.25)
    times, _ = decoded(tmp_path / "v.mp4")
    assert times == pytest.approx(spec.frame_times()[0], abs=1e-4)
    assert np.ptp(np.diff(times)) > 0.05


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotation_tag_shows_the_frames_as_they_were_given(rotation, tmp_path):
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:24, :48], frame[24:, 48:] = (255, 0, 0), (0, 0, 255)
    write_video(tmp_path / "r.mp4", [frame] * 5, None, rotation=rotation)
    _, shown = decoded(tmp_path / "r.mp4")
    assert shown.shape == frame.shape
    assert np.abs(shown.astype(int) - frame)[[8, 8, 40, 40], [16, 80, 16, 80]].max() < 8
    with av.open(str(tmp_path / "r.mp4")) as container:
        stored = container.streams.video[0]
        assert (stored.width, stored.height) == ((96, 48) if rotation == 180 else (48, 96))


def test_the_truncated_sample_promises_more_than_it_holds(tmp_path):
    spec = quick(SPECS["truncated"])
    render(spec, tmp_path / "t.mp4", scale=0.5)
    times = []
    with av.open(str(tmp_path / "t.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(12, abs=0.1)
        with pytest.raises(av.error.InvalidDataError):
            times.extend(frame.time for frame in container.decode(video=0))
        assert 0.3 * 12 < times[-1] < 0.8 * 12


def test_bars_are_black_and_the_picture_inside_is_not(tmp_path):
    spec = quick(SPECS["ocean_letterboxed"], scenes=(SceneSpec("ocean", 1.0, 4),), bars=Bars(top=44, bottom=60, left=8))
    render(spec, tmp_path / "b.mp4")
    _, shown = decoded(tmp_path / "b.mp4")
    assert shown.shape == (360, 640, 3)
    for bar in (shown[:42], shown[-58:], shown[:, :6]):
        assert bar.max() < 24
    assert shown[46, 10:].mean() > 60
    assert shown[-62, 10:].mean() > 60
    assert shown[60:-70, 10].mean() > 60


def test_a_still_scene_is_one_frame_and_others_never_stand_still():
    still, moving = (
        list(scene_frames("wind", 1, [0.0, 0.1, 0.2], width=160, height=90, seconds=1.0, still=still))
        for still in (True, False)
    )
    assert np.array_equal(still[0], still[2])
    assert np.mean(moving[1] != moving[2]) > 0.5


@pytest.mark.parametrize("kind", sorted(PAINTERS))
def test_every_picture_has_the_size_asked_for(kind):
    for height, width in ((64, 64), (120, 68), (90, 160)):
        frames = list(scene_frames(kind, 5, [0.0, 0.9], width=width, height=height, seconds=1.0))
        assert [frame.shape for frame in frames] == [(height, width, 3)] * 2
        assert frames[0].dtype == np.uint8
    assert (frames[1].std() == 0) == (kind == "black")


def test_lightning_and_thunder_come_when_the_strikes_say():
    strike = rhythm.strikes(36, 6.0)[0]
    before, lit = scene_frames(
        "thunder", 36, [strike.flash_seconds - 0.04, strike.flash_seconds + 0.01], width=320, height=180, seconds=6.0
    )
    assert lit.max(axis=(0, 2)).argmax() / 320 == pytest.approx(strike.across, abs=0.25)
    assert lit.astype(int).mean() > before.mean() + 4
    sound = nature_sound("thunder", 36, 6.0).mean(axis=1)
    at = round(strike.thunder_seconds * 48000)
    assert sound[at + 2400 : at + 14400].std() > 4 * sound[at - 12000 : at].std()


def test_the_swell_is_heard_when_it_is_seen():
    sound = nature_sound("ocean", 4, 12.0).mean(axis=1)
    blocks = sound.reshape(-1, 4800).std(axis=1)
    seen = rhythm.swell(4, np.arange(len(blocks)) / 10 + 0.05)
    assert np.corrcoef(blocks, seen)[0, 1] > 0.9


@pytest.mark.parametrize("kind", NATURE_KINDS)
def test_nature_is_loud_enough_wide_and_no_voice(kind, hears_speech):
    for seed in (1, 2):
        sound = nature_sound(kind, seed, 8.0)
        assert sound.shape == (384000, 2)
        assert -35 < pyloudnorm.Meter(48000).integrated_loudness(sound.astype(float)) < -15
        assert np.abs(sound).max() < 0.95
        assert abs(np.corrcoef(sound.T)[0, 1]) < 0.2
        assert hears_speech(sound, 48000) < 0.05


def test_speech_is_heard_as_speech_and_music_is_not(hears_speech):
    for seed in (1, 2, 3):
        assert hears_speech(speech_sound(seed, 10.0), 48000) > 0.6
        assert hears_speech(music_sound(seed, 10.0), 48000) < 0.05


def test_music_has_steady_partials_and_nature_has_not():
    def steady(sound: np.ndarray) -> float:
        """How far the strongest frequency of 0.2 to 2 kHz stands out of the 100 Hz around it over 2 s, dB."""
        spectrum = np.abs(np.fft.rfft(sound[:96000].mean(axis=1) * np.hanning(96000)))[400:4000]
        return float(20 * math.log10((spectrum / signal.medfilt(spectrum, 201))[100:-100].max()))

    assert steady(music_sound(2, 2.0)) > 30
    assert max(steady(nature_sound(kind, 1, 2.0)) for kind in NATURE_KINDS) < 20


@pytest.mark.parametrize(
    ("name", "video", "audio"), [("audio_only", 0, 1), ("no_audio", 1, 0), ("short_sound", 1, 1), ("clipped", 1, 1)]
)
def test_tracks_of_the_incomplete(name, video, audio, tmp_path):
    spec = quick(SPECS[name], fps=5.0)
    path = tmp_path / spec.file_name
    render(spec, path, scale=0.25)
    with av.open(str(path)) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (video, audio)
    if name == "short_sound":
        samples, rate = sound_of(path)
        assert len(samples) / rate == pytest.approx(1.5, abs=0.05)
    if name == "clipped":
        samples, _ = sound_of(path)
        assert np.mean(np.abs(samples.astype(float)) >= 32767) > 0.05


def test_what_is_not_media_is_not_media(tmp_path):
    for name in ("text", "html", "empty"):
        render(SPECS[name], tmp_path / f"{name}.mp4")
        with pytest.raises(av.error.InvalidDataError):
            av.open(str(tmp_path / f"{name}.mp4"))
    assert (tmp_path / "empty.mp4").stat().st_size == 0
    assert (tmp_path / "html.mp4").read_text().startswith("<!DOCTYPE html>")


def test_a_folder_is_rendered_once_and_mended_where_it_is_not_whole(tmp_path):
    specs = [quick(SPECS[name], fps=5.0) for name in ("short", "text", "tiny")]
    paths = render_catalogue(tmp_path, specs=specs, workers=1, scale=0.25, base_url="http://127.0.0.1:1")
    assert [path.name for path in paths] == ["short.mp4", "text.mp4", "tiny.mp4"]
    written = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    paths[1].unlink()
    specs[2] = replace(specs[2], scenes=(SceneSpec("river", 2.0, 7),))
    render_catalogue(tmp_path, specs=specs, workers=1, scale=0.25, base_url="http://127.0.0.1:1")
    assert (paths[0].read_bytes(), paths[0].stat().st_mtime_ns) == written[paths[0]]
    assert paths[1].read_bytes() == written[paths[1]][0]
    assert paths[2].read_bytes() != written[paths[2]][0]
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["tiny"]["picture_seconds"] == 2.0
    assert truth["short"]["expected"] == "too_short"


def test_the_command_writes_a_source_list_with_quoted_links(tmp_path, monkeypatch, capsys):
    pier = replace(SPECS["ocean_pier"], scenes=(SceneSpec("ocean", 0.4, 8),), width=160, height=90)
    monkeypatch.setattr("pipeline.synthetic.__main__.catalogue", lambda: (pier, SPECS["html"]))
    main([str(tmp_path), "--base-url", "http://127.0.0.1:9/s", "--only", "ocean_pier", "--workers", "1"])
    assert capsys.readouterr().out.startswith("1 synthetic sources in ")
    with (tmp_path / "sources.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "id": "ocean_pier",
            "url": "http://127.0.0.1:9/s/Waves%20at%20the%20pier.mp4",
            "label": "ocean",
            "caption": "a grey sea and its surf",
            "licence": "CC0-1.0",
            "split": "validation",
        }
    ]


def test_the_server_answers_whole_files_ranges_and_what_is_not_there(tmp_path):
    (tmp_path / "a b.mp4").write_bytes(bytes(range(200)))

    def get(url: str, asked: str | None = None) -> tuple[int, bytes, str | None]:
        request = urllib.request.Request(url, headers={} if asked is None else {"Range": asked})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["Content-Range"]

    with serve_folder(tmp_path) as base:
        link = f"{base}a%20b.mp4"
        assert get(link) == (200, bytes(range(200)), None)
        assert get(link, "bytes=10-19") == (206, bytes(range(10, 20)), "bytes 10-19/200")
        assert get(link, "bytes=190-") == (206, bytes(range(190, 200)), "bytes 190-199/200")
        assert get(link, "bytes=-5") == (206, bytes(range(195, 200)), "bytes 195-199/200")
        assert get(link, "bytes=100-900") == (206, bytes(range(100, 200)), "bytes 100-199/200")
        for url, asked, status in ((link, "bytes=200-", 416), (f"{base}no.mp4", None, 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(url, asked)
            assert caught.value.code == status
            caught.value.close()


def test_write_video_takes_other_codecs_odd_sizes_and_refuses_what_does_not_fit(tmp_path):
    frames = [np.full((31, 33, 3), 8 * number, np.uint8) for number in range(10)]
    sound = np.zeros(4800, np.float32)
    write_video(tmp_path / "odd.mkv", frames, sound, fps=30000 / 1001, pix_fmt="yuv444p", audio_codec="flac", gop=5)
    with av.open(str(tmp_path / "odd.mkv")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.pix_fmt) == (33, 31, "yuv444p")
        assert stream.average_rate == pytest.approx(30000 / 1001, abs=0.01)
        keys = [number for number, packet in enumerate(container.demux(stream)) if packet.size and packet.is_keyframe]
        assert keys[0] == 0
        assert max(np.diff([*keys, 10])) <= 5
    target = tmp_path / "x.mp4"
    with pytest.raises(ValueError, match="neither"):
        write_video(target, None, None)
    with pytest.raises(ValueError, match="rotation is 0, 90, 180 or 270"):
        write_video(target, frames, None, rotation=45)
    with pytest.raises(ValueError, match="must rise"):
        write_video(target, frames[:2], None, frame_times_seconds=[1.0, 1.0])
    with pytest.raises(ValueError, match="10 frames for 11"):
        write_video(target, frames, None, frame_times_seconds=range(11), pix_fmt="yuv444p")
    with pytest.raises(ValueError, match="frame 1 is"):
        write_video(target, [frames[0], frames[0][:30]], None, pix_fmt="yuv444p")
    with pytest.raises(MediaError, match="no-such-codec") as caught:
        write_video(target, frames, None, video_codec="no-such-codec")
    assert caught.value.code == "encode_failed"
    assert [path.name for path in tmp_path.iterdir()] == ["odd.mkv"]
