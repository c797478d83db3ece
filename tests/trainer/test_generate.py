"""Sounds into videos, through the functions and through the command, with small models of random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch
from scipy.interpolate import PchipInterpolator

from pipeline.encoders.mel import resampled
from pipeline.errors import MediaError, OutputError
from tests.trainer.sounding import random_model, saved_run, tone
from trainer.generate import main
from trainer.model.sound_video import SoundVideoModel
from trainer.rendering.contact_sheet import SheetRow, draw_sheet, shown_frames
from trainer.rendering.sound_file import Sound, as_stereo, open_sound, sound_of_array
from trainer.rendering.sound_to_video import (
    GenerateSettings,
    encode_sound,
    generate,
    interpolate_styles,
    num_frames_of,
    styles_of,
    walk_noise,
)
from trainer.rendering.video_writer import write_mp4, write_with_sound

RATE_HZ = 44_100


@pytest.fixture(scope="module")
def model() -> SoundVideoModel:
    return random_model()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("run"))


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames (T, H, W, 3), sound (samples, channels), its rate."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate_hz = container.streams.audio[0].rate
    return frames, np.concatenate(parts, axis=1).T, rate_hz


def pitch_hz(sound_N: np.ndarray, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(sound_N * np.hanning(len(sound_N))))
    return float(spectrum.argmax() * rate_hz / len(sound_N))


# styles between segments


def test_the_curve_goes_through_the_styles_and_stays_before_and_after() -> None:
    styles = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))
    times = [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    torch.testing.assert_close(interpolate_styles(styles, times, times), styles)
    outside = interpolate_styles(styles, times, [-3.0, 0.0, 2.8, 99.0])
    torch.testing.assert_close(outside, styles[[0, 0, 5, 5]])


def test_the_curve_never_leaves_the_span_of_its_two_segments() -> None:
    styles = torch.tensor([0.0, 1.0, 1.0, -2.0, -2.0, 5.0]).view(6, 1, 1)
    at = np.linspace(0, 5, 501)
    drawn = interpolate_styles(styles, range(6), at).flatten().numpy()
    known = styles.flatten().numpy()
    for instant, value in zip(at, drawn, strict=True):
        before, after = known[int(instant)], known[min(5, int(instant) + 1)]
        assert min(before, after) - 1e-6 <= value <= max(before, after) + 1e-6
    assert abs(np.diff(drawn, 2)).max() < 0.01, "the curve has a kink"


def test_a_part_of_the_curve_is_that_of_the_whole() -> None:
    styles = torch.randn(9, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    times = np.array([0.0, 0.5, 1.4, 2.0, 3.1, 3.3, 4.0, 5.5, 6.0])
    whole = PchipInterpolator(times, styles.numpy(), axis=0)
    for start in np.linspace(0, 6, 61):
        at = [start, min(6.0, start + 0.04)]
        np.testing.assert_allclose(interpolate_styles(styles, times, at).numpy(), whole(at), atol=1e-12)


def test_one_or_two_segments_and_wrong_times() -> None:
    one = torch.ones(1, 2, 2)
    torch.testing.assert_close(interpolate_styles(one, [1.0], [0.0, 1.0, 5.0]), torch.ones(3, 2, 2))
    two = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert interpolate_styles(two, [0.0, 2.0], [0.5, 1.0]).flatten().tolist() == [0.25, 0.5]
    for times in ([0.0, 0.0], [1.0, 0.0], [0.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="rising times"):
            interpolate_styles(two, times, [0.5])


# hearing and drawing


def test_a_long_sound_is_heard_as_the_model_hears_it_at_once(model: SoundVideoModel) -> None:
    sound = np.concatenate([tone(200.0 * 2**octave, 1.3, seed=octave) for octave in range(6)])  # 7.8 s: two chunks
    encoded = encode_sound(model, sound_of_array(sound, RATE_HZ))
    segments = model.segments_of_sound(torch.from_numpy(sound))
    assert encoded.seconds == pytest.approx(7.8)
    assert len(segments) == 16
    torch.testing.assert_close(encoded.features_SF, model.inversion.features(segments), rtol=1e-4, atol=1e-4)
    assert encoded.mel_MT.shape == (128, round(7.8 / 0.5 * 64))
    carried = styles_of(model, encoded.features_SF, seed=4)
    noise = walk_noise(4, 16, model.num_noise)
    start = model.start(torch.randn(16, generator=torch.Generator().manual_seed(4))[None])
    torch.testing.assert_close(carried, model.walk(segments[None], start, noise[None])[0], rtol=1e-4, atol=1e-4)


def test_a_last_segment_that_is_hardly_there_is_left_out(model: SoundVideoModel) -> None:
    lengths = {0.01: 1, 0.74: 1, 0.76: 2, 1.5: 3, 1.52: 3, 1.8: 4}
    for seconds, wanted in lengths.items():
        assert len(encode_sound(model, sound_of_array(tone(500, seconds), RATE_HZ)).features_SF) == wanted, seconds


def test_the_noise_of_a_walk_begins_the_same_whatever_its_length() -> None:
    torch.testing.assert_close(walk_noise(3, 5, 7), walk_noise(3, 20, 7)[:5], rtol=0, atol=0)
    assert not torch.equal(walk_noise(3, 5, 7), walk_noise(4, 5, 7))


def test_the_same_seed_gives_the_same_frames_and_sound_reaches_them(model: SoundVideoModel) -> None:
    settings = GenerateSettings(fps=4.0, seed=1)
    first = np.stack(list(generate(model, tone(300, 1.5), RATE_HZ, settings)))
    assert first.shape == (6, 16, 16, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, np.stack(list(generate(model, tone(300, 1.5), RATE_HZ, settings))))
    other_seed = np.stack(list(generate(model, tone(300, 1.5), RATE_HZ, GenerateSettings(fps=4.0, seed=2))))
    other_sound = np.stack(list(generate(model, tone(3000, 1.5), RATE_HZ, settings)))
    for other in (other_seed, other_sound):
        assert (abs(first.astype(int) - other).max(axis=(1, 2, 3)) > 3).all(), "a frame does not follow"


def test_frames_are_counted_and_scaled(model: SoundVideoModel) -> None:
    settings = GenerateSettings(fps=30000 / 1001, resolution=40, batch_size=5)
    frames = list(generate(model, tone(300, 1.0, 8000), 8000, settings))
    assert len(frames) == 30
    assert frames[0].shape == (40, 40, 3)
    encoded = encode_sound(model, sound_of_array(tone(300, 1.0), RATE_HZ))
    assert num_frames_of(encoded.seconds, GenerateSettings(fps=25.0)) == 25
    assert num_frames_of(encoded.seconds, GenerateSettings(fps=25.0, seconds=2.0)) == 50


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.full(5000, np.nan, np.float32), "NaN or infinity"),
        (np.full(5000, np.inf, np.float32), "NaN or infinity"),
    ],
)
def test_a_sound_that_cannot_be_heard_is_refused_before_the_first_frame(
    model: SoundVideoModel, sound: np.ndarray, words: str
) -> None:
    with pytest.raises(MediaError, match=words):
        generate(model, sound, RATE_HZ)


def test_silence_is_a_sound(model: SoundVideoModel) -> None:
    frames = list(generate(model, np.zeros(RATE_HZ, np.float32), RATE_HZ, GenerateSettings(fps=2.0)))
    assert [frame.shape for frame in frames] == [(16, 16, 3)] * 2


# sounds


def test_resampling_in_blocks_is_resampling_at_once() -> None:
    sound = tone(440, 20.0, 8000)
    blocks = list(sound_of_array(sound, 8000).mono(RATE_HZ))
    assert len(blocks) > 1
    whole, joined = resampled(sound, 8000, RATE_HZ), np.concatenate(blocks)
    assert abs(len(whole) - len(joined)) <= 1
    np.testing.assert_allclose(joined, whole[: len(joined)], atol=1e-6)


def test_many_channels_become_two_without_being_too_loud() -> None:
    front_right = np.zeros((4, 6), np.float32)
    front_right[:, 1] = 1.0
    mixed = as_stereo(front_right)
    assert mixed[0].tolist() == [0.0, pytest.approx(1 / (1 + 2 * 0.5**0.5))]
    for channels in range(3, 12):
        assert abs(as_stereo(np.ones((2, channels), np.float32)) - 1).max() < 1e-6
    low = np.zeros((1, 6), np.float32)
    low[:, 3] = 1.0
    assert as_stereo(low).tolist() == [[0.0, 0.0]]


def test_the_sound_of_a_video_and_of_an_odd_rate(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 90, np.uint8)] * 10
    write_mp4(tmp_path / "a.mp4", frames, 10, sound_of_array(tone(1000, 1.0, 37_000), 37_000))
    sound = open_sound(tmp_path / "a.mp4")
    assert (sound.rate_hz, sound.num_channels) == (48_000, 1)
    samples = np.concatenate(list(sound.blocks()))[:, 0]
    assert pitch_hz(samples[4800:43200], 48_000) == pytest.approx(1000, abs=2)
    assert sum(map(len, sound.blocks(0.25))) == 12_000


def test_a_sound_whose_channels_and_rate_change_on_the_way(tmp_path: Path) -> None:
    content = b""
    for rate_hz, layout in ((44_100, "mono"), (48_000, "stereo"), (44_100, "mono")):
        with av.open(str(tmp_path / "part.aac"), "w", format="adts") as container:
            track = container.add_stream("aac", rate=rate_hz, layout=layout)
            samples = np.tile(tone(1000, 1.0, rate_hz), (1 if layout == "mono" else 2, 1))
            for start in range(0, rate_hz, 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples[:, start : start + 1024]), format="fltp", layout=layout
                )
                frame.sample_rate = rate_hz
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        content += (tmp_path / "part.aac").read_bytes()
    path = tmp_path / "broadcast.aac"
    path.write_bytes(content)
    sound = open_sound(path)
    assert (sound.rate_hz, sound.num_channels) == (44_100, 1)
    samples = np.concatenate(list(sound.blocks()))[:, 0]
    assert len(samples) / 44_100 == pytest.approx(3.0, abs=0.15)
    for second in range(3):
        assert pitch_hz(samples[44_100 * second + 8000 :][:20_000], 44_100) == pytest.approx(1000, abs=5), second


def test_files_that_are_no_sound_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound at all")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    write_mp4(tmp_path / "mute.mp4", [np.zeros((16, 16, 3), np.uint8)], 1)
    for name, words in {
        "none.wav": "no such file", "empty.wav": "the file is empty", "text.wav": "no sound that can be read",
        "list.m3u8": "no sound that can be read", "mute.mp4": "no sound track",
    }.items():  # fmt: skip
        with pytest.raises(MediaError, match=words) as caught:
            open_sound(tmp_path / name)
        assert name in str(caught.value)


# writing


def test_a_video_holds_its_frames_and_its_sound(tmp_path: Path) -> None:
    colours = [(220, 70, 20), (20, 60, 200), (30, 160, 40)]
    frames = [np.tile(np.array(colour, np.uint8), (32, 48, 1)) for colour in colours for _ in range(10)]
    stereo = np.stack([tone(500, 3.0), tone(2000, 3.0)], axis=1)
    path = tmp_path / "video.mp4"
    assert write_mp4(path, iter(frames), 10, sound_of_array(stereo, RATE_HZ)) == 30
    seen, encoded, rate_hz = decoded(path)
    assert seen.shape == (30, 32, 48, 3)
    for number, colour in enumerate(colours):
        assert abs(seen[number * 10 + 5].reshape(-1, 3).mean(0) - colour).max() < 4, "colours are off"
    assert (rate_hz, encoded.shape[1]) == (RATE_HZ, 2)
    middle = encoded[RATE_HZ : 2 * RATE_HZ]
    assert [round(pitch_hz(middle[:, side], rate_hz)) for side in (0, 1)] == [500, 2000]
    content = path.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat"), "a player would have to load all of it first"
    write_mp4(path, iter(frames), 10, sound_of_array(stereo, RATE_HZ))
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_sound_is_as_long_as_the_picture(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8)] * 20
    for seconds in (0.5, 8.0):
        write_mp4(tmp_path / "a.mp4", frames, 10, sound_of_array(tone(700, seconds), RATE_HZ))
        with av.open(str(tmp_path / "a.mp4")) as container:
            track = container.streams.audio[0]
            assert track.duration is not None and track.time_base is not None
            assert float(track.duration * track.time_base) == pytest.approx(2.0, abs=0.001)
        _, encoded, _ = decoded(tmp_path / "a.mp4")
        loud = abs(encoded[round(1.2 * RATE_HZ) : round(1.8 * RATE_HZ)]).max()
        assert loud < 1e-3 if seconds == 0.5 else loud > 0.2


def test_a_video_gets_another_sound_and_keeps_its_pictures(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 12 * number, np.uint8) for number in range(20)]
    write_mp4(tmp_path / "a.mp4", frames, 10, sound_of_array(tone(500, 2.0), RATE_HZ))
    write_with_sound(tmp_path / "b.mp4", tmp_path / "a.mp4", sound_of_array(tone(3000, 5.0, 8000), 8000))
    (seen, _, _), (kept, encoded, rate_hz) = decoded(tmp_path / "a.mp4"), decoded(tmp_path / "b.mp4")
    np.testing.assert_array_equal(kept, seen)
    assert len(encoded) / rate_hz == pytest.approx(2.0, abs=0.15)
    assert pitch_hz(encoded[2000:14_000, 0], rate_hz) == pytest.approx(3000, abs=5)
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "none.mp4"):
        with pytest.raises(MediaError, match=f"{name}: it is no video that can be read"):
            write_with_sound(tmp_path / "c.mp4", tmp_path / name, sound_of_array(tone(500, 1.0), RATE_HZ))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "text.mp4"]


def test_pictures_and_sound_are_written_as_they_come(tmp_path: Path) -> None:
    read: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(600):
            read.append(1000)
            yield np.zeros((1000, 1), np.float32)

    def frames() -> Iterator[np.ndarray]:
        for number in range(750):  # one minute
            assert sum(read) <= number / 12.5 * 10_000 + 3000, "the sound is far ahead of the picture"
            yield np.full((16, 16, 3), number % 256, np.uint8)

    with pytest.raises(MediaError, match="sample rate is 10"):
        sound_of_array(np.zeros(10, np.float32), 10)
    write_mp4(tmp_path / "a.mp4", frames(), 12.5, Sound("made", 8000, 1, blocks))
    assert sum(read) == 480_000 + 1000 * (480_000 % 1000 > 0)


def test_nothing_is_left_where_a_video_cannot_be_made(tmp_path: Path) -> None:
    there = tmp_path / "a.mp4"
    there.write_bytes(b"before")

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((16, 16, 3), np.uint8)
        raise MediaError("damaged", "the picture is gone")

    with pytest.raises(MediaError, match="the picture is gone"):
        write_mp4(there, broken(), 10)
    for wrong, words in (
        ([], "there are none"),
        ([np.zeros((15, 16, 3), np.uint8)], "even sides"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], "frame 1 is"),
    ):
        with pytest.raises(ValueError, match=words):
            write_mp4(there, wrong, 10)
    with pytest.raises(OutputError, match="cannot be written"):
        write_mp4(tmp_path / "none" / "a.mp4", [np.zeros((16, 16, 3), np.uint8)], 10)
    assert there.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [there]


# the contact sheet


def test_a_sheet_shows_frames_in_order_and_the_spectrogram_below() -> None:
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (10, 80, 160, 240)]
    mel = np.zeros((128, 40), np.float32)
    mel[:32] = 1.0  # low sounds
    sheet = draw_sheet([SheetRow("rain", "2.0 s", frames, mel, 0.5)] * 2)
    assert sheet.shape == (2 * 194 + 10, 190 + 8 * 128 + 20, 3)
    places = [190 + 256 * number + 128 for number in range(4)]
    assert [int(sheet[10 + 60, x, 0]) for x in places] == [10, 80, 160, 240]
    strip = sheet[10 + 128 : 10 + 184, 190 : 190 + 1024].astype(int).sum(2)
    assert strip[50, 100] > 500, "low sounds are not at the bottom"
    assert strip[5, 100] < 50
    assert strip[50, 520:].max() == 0, "there is sound where the video has none"
    assert sheet[10:60, 10:180].min() < 60, "the name is missing"


def test_shown_frames_are_spread_and_each_is_shown_once() -> None:
    assert shown_frames(80) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert shown_frames(3) == [0, 1, 2]
    assert shown_frames(1) == [0]
    assert draw_sheet([SheetRow("name_" * 40, "", [np.zeros((8, 8, 3), np.uint8)], np.ones((4, 1), np.float32))]).any()


# the command


def test_the_command_writes_a_video_of_a_sound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, out = tmp_path / "rain.wav", tmp_path / "made" / "rain.mp4"
    soundfile.write(sound, np.tile(tone(600, 1.2, 8000)[:, None], (1, 1)), 8000)
    words = ["--checkpoint", str(run), "--sound", str(sound), "--out", str(out), "--fps", "10", "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert f"{out}: 1.2 s, 12 frames of 16 x 16 at 10 a second, seed 0" in told.out
    assert told.err == ""
    frames, encoded, rate_hz = decoded(out)
    assert len(frames) == 12
    assert round(pitch_hz(encoded[2000:9000, 0], rate_hz)) == pytest.approx(600, abs=2)
    content = out.read_bytes()
    assert main(words) == 2
    assert "there already" in capsys.readouterr().err
    assert out.read_bytes() == content
    assert main([*words, "--overwrite"]) == 0
    assert out.read_bytes() == content, "the same seed gave another video"
    assert main([*words, "--overwrite", "--seed", "5", "--truncation", "0.3", "--resolution", "32"]) == 0
    assert decoded(out)[0].shape == (12, 32, 32, 3)


def test_seconds_cut_a_sound_or_let_the_last_picture_stay(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([tone(300, 1.0), tone(6000, 1.0)]), RATE_HZ)
    words = ["--checkpoint", str(run), "--sound", str(tmp_path / "a.wav"), "--fps", "10", "--crf", "0"]
    assert main([*words, "--out", str(tmp_path / "cut.mp4"), "--seconds", "0.8"]) == 0
    assert main([*words, "--out", str(tmp_path / "long.mp4"), "--seconds", "3"]) == 0
    assert "a.wav ends after 2.0 s: silence follows, and the last picture stays" in capsys.readouterr().out
    assert len(decoded(tmp_path / "cut.mp4")[0]) == 8
    frames, encoded, rate_hz = decoded(tmp_path / "long.mp4")
    assert len(frames) == 30
    assert abs(frames[20:].astype(int) - frames[29]).max() <= 2
    assert abs(frames[0].astype(int) - frames[29]).max() > 10
    assert abs(encoded[round(2.2 * rate_hz) :]).max() < 1e-3


def test_a_bad_sound_costs_its_own_video_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tone(500, 0.5)
    broken[9000] = np.nan
    sounds = {"nan": broken, "none": np.zeros(0, np.float32), "silent": np.zeros(9000, np.float32)}
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "many.wav", np.tile(tone(500, 0.5)[:, None], (1, 6)), RATE_HZ)
    paths = [str(tmp_path / f"{name}.wav") for name in (*sounds, "many", "missing")]
    out = tmp_path / "out"
    words = ["--checkpoint", str(run), "--sound", *paths, "--out", str(out), "--sheet", str(out / "sheet.png")]
    assert main([*words, "--fps", "8"]) == 1
    told = capsys.readouterr()
    failed = told.err.splitlines()
    assert [line.partition(": ")[0] for line in failed] == ["failed"] * 3
    for line, words_of_it in zip(
        failed, ("nan.wav: the sound holds NaN", "none.wav: the sound has no samples", "missing.wav: there is no such file"),
        strict=True,
    ):  # fmt: skip
        assert words_of_it in line
    assert sorted(path.name for path in out.iterdir()) == ["many.mp4", "sheet.png", "silent.mp4"]
    assert "contact sheet, rows: 2" in told.out
    assert decoded(out / "many.mp4")[1].shape[1] == 2
    assert cv2.imread(str(out / "sheet.png")).shape == (2 * 194 + 10, 1234, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--out", "OUT/a.mkv"], "videos are written as mp4; name it"),
        (["--sound", "OUT/a.wav", "OUT/b.wav"], "is one file, and there are 2 sounds; name a folder"),
        (["--sound", "OUT/x/a.wav", "OUT/y/a.wav", "--out", "OUT"], "would both become"),
        (["--sheet", "OUT/a.jpg"], "written as PNG; name it"),
        (["--out", "OUT/in.mp4", "--sound", "OUT/in.mp4", "--overwrite"], "is one of the sounds"),
        (["--out", "OUT/file/a.mp4"], "the folder cannot be made"),
        (["--fps", "0", "--resolution", "33", "--batch-size", "0"], "--fps: .*\n  --resolution: .*\n  --batch-size: "),
        (["--seconds", "nan"], "--seconds: "),
        (["--checkpoint", "OUT/nothing"], "there is no such file or folder; name a run"),
        (["--checkpoint", "OUT"], "holds no model of sound and video"),
        (["--checkpoint", "OUT/file"], "damaged or no safetensors file"),
        (["--checkpoint", "OUT/half.safetensors"], "damaged or no safetensors file"),
        (["--device", "tpu"], "--device: 'tpu' is no device"),
    ],
)
def test_what_cannot_be_done_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    (tmp_path / "file").write_text("a file")
    model = (run / "video" / "best.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(model[: len(model) // 2])
    given = {"--checkpoint": [str(run)], "--sound": ["OUT/a.wav"], "--out": ["OUT/a.mp4"]}
    name = ""
    for word in changes:
        if word.startswith("--"):
            name, given[word] = word, []
        else:
            given[name].append(word)
    flat = [word.replace("OUT", str(tmp_path)) for key, values in given.items() for word in (key, *values)]
    before = sorted(tmp_path.rglob("*"))
    assert main(flat) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert re.search(words, told), told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_of_the_invert_stage_shows_each_segment_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path / "run", "invert")
    soundfile.write(tmp_path / "a.wav", tone(600, 1.5), RATE_HZ)
    words = ["--checkpoint", str(run), "--sound", str(tmp_path / "a.wav"), "--out", str(tmp_path / "a.mp4")]
    assert main([*words, "--fps", "2", "--crf", "0"]) == 0
    assert "is of the invert stage" in capsys.readouterr().out
    model = random_model()
    features = encode_sound(model, open_sound(tmp_path / "a.wav")).features_SF
    alone = styles_of(model, features, use_blocks=False)
    start = model.start(torch.randn(16, generator=torch.Generator().manual_seed(0))[None])
    wanted = start.base_BLD + model.inversion.offsets(features, features[:, :0])
    torch.testing.assert_close(alone, wanted)
    assert abs(alone - styles_of(model, features)).max() > 0.01
