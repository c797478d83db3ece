import subprocess
import sys
import warnings

import librosa
import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.encoders.mel import LogMel, MelConfig, check_sound, resampled
from pipeline.errors import MediaError

RATE = 44_100
SECONDS = np.arange(RATE) / RATE
RNG = np.random.default_rng(0)
SOUNDS = {
    "noise": RNG.standard_normal(RATE) * 0.1,
    "tone": np.sin(2 * np.pi * 440 * SECONDS),
    "two tones": np.sin(2 * np.pi * 440 * SECONDS) + 1e-4 * np.sin(2 * np.pi * 9000 * SECONDS),
    "sweep": np.sin(2 * np.pi * (50 * SECONDS + 9000 * SECONDS**2)),
    "fading": np.exp(-20 * SECONDS) * np.sin(2 * np.pi * 300 * SECONDS) + 1e-5 * RNG.standard_normal(RATE),
    "click": np.eye(1, RATE, RATE // 2)[0],
    "direct current": np.ones(RATE),
    "very quiet": RNG.standard_normal(RATE) * 1e-6,
    "silence": np.zeros(RATE),
    "shorter than a transform": RNG.standard_normal(700),
    "one sample": np.ones(1),
}


def librosa_mel(sound):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns of sounds shorter than a transform
        power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=2048, hop_length=512, n_mels=128)
    return librosa.power_to_db(power, ref=np.max, top_db=80) / 80 + 1


@pytest.fixture(scope="module")
def front_end():
    return LogMel()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_equals_librosa(front_end, name):
    sound = SOUNDS[name].astype(np.float32)
    wanted = librosa_mel(sound)
    got = front_end(torch.from_numpy(sound)[None])[0].numpy()
    assert got.shape == wanted.shape == (128, front_end.config.num_frames(len(sound)))
    assert np.abs(got - wanted).max() < 1e-4


def test_a_batch_is_its_sounds_each_relative_to_its_own_maximum(front_end):
    sounds = np.stack([SOUNDS["tone"], 0.001 * SOUNDS["noise"], SOUNDS["silence"]]).astype(np.float32)
    batch = front_end(torch.from_numpy(sounds)).numpy()
    for sound, got in zip(sounds, batch, strict=True):
        assert np.abs(got - librosa_mel(sound)).max() < 1e-4
        assert got.max() == pytest.approx(1.0, abs=1e-6)


def test_silence_is_all_ones(front_end):
    assert torch.equal(front_end(torch.zeros(1, RATE)), torch.ones(1, 128, 87))


FULL_SCALE = MelConfig(reference="full_scale", top_db=100)


def test_a_fixed_reference_tells_how_loud_a_sound_is():
    """A sine of amplitude 1 in the narrowest band is at the top; 20 dB less are a fifth of the range of 100 dB; silence is 0."""
    front_end = LogMel(FULL_SCALE)
    filters = functional.pad(front_end.filters, (1, 1))
    with_neighbours = filters[:, 1:-1] + 0.25 * (filters[:, :-2] + filters[:, 2:])  # what a Hann window spreads to
    time = np.arange(RATE) / RATE
    loud = np.sin(2 * np.pi * RATE / FULL_SCALE.fft_size * int(with_neighbours.amax(0).argmax()) * time)
    sounds = torch.from_numpy(np.stack([loud, 0.1 * loud, 0 * loud]).astype(np.float32))
    full, quieter, silent = front_end(sounds)[:, :, 10:-10].numpy()
    assert full.max() == pytest.approx(1, abs=1e-3)
    assert quieter.max() == pytest.approx(0.8, abs=1e-3)
    assert not silent.any()


def test_with_a_fixed_reference_a_moment_does_not_depend_on_another():
    front_end = LogMel(FULL_SCALE)
    noise = SOUNDS["noise"].astype(np.float32)
    quiet = torch.from_numpy(0.05 * noise)
    with_clap = quiet.clone()
    with_clap[-2000:] = torch.from_numpy(noise[-2000:])
    before = front_end(torch.stack([quiet, with_clap]))[:, :, :60]
    assert torch.equal(before[0], before[1])
    relative = LogMel()(torch.stack([quiet, with_clap]))[:, :, :60]
    assert float((relative[0] - relative[1]).abs().max()) > 0.2


def test_other_numbers_are_used(front_end):
    config = MelConfig(sample_rate_hz=16_000, fft_size=1024, hop_size=160, num_mels=64, top_db=60)
    sound = SOUNDS["noise"][:16_000].astype(np.float32)
    power = librosa.feature.melspectrogram(y=sound, sr=16_000, n_fft=1024, hop_length=160, n_mels=64)
    wanted = librosa.power_to_db(power, ref=np.max, top_db=60) / 60 + 1
    got = LogMel(config)(torch.from_numpy(sound)[None])[0].numpy()
    assert np.abs(got - wanted).max() < 1e-4


def test_autocast_does_not_blur_it(front_end):
    sound = torch.from_numpy(SOUNDS["sweep"].astype(np.float32))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front_end(sound)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, front_end(sound))


def test_it_has_no_weights_and_lets_gradients_through(front_end):
    assert front_end.state_dict() == {}
    sound = torch.from_numpy(SOUNDS["noise"].astype(np.float32))[None].requires_grad_()
    front_end(sound).sum().backward()
    assert sound.grad.abs().max() > 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_sound_is_an_error(front_end, bad):
    sound = SOUNDS["noise"].astype(np.float32)
    sound[123] = bad
    with pytest.raises(MediaError, match="NaN or infinity") as caught:
        front_end(torch.from_numpy(sound)[None])
    assert caught.value.code == "sound_not_finite"
    with pytest.raises(MediaError, match=f"sound 3 holds NaN or infinity in 1 of {RATE} samples"):
        check_sound(sound, index=3)


def test_no_samples_are_an_error(front_end):
    with pytest.raises(MediaError, match="no samples") as caught:
        front_end(torch.zeros(1, 0))
    assert caught.value.code == "sound_empty"
    with pytest.raises(MediaError, match="sound 0 has no samples"):
        check_sound(np.zeros(0, dtype=np.float32))


@pytest.mark.parametrize("sound", [np.zeros((2, 100), dtype=np.float32), np.zeros(100, dtype=np.int16)])
def test_stereo_and_integers_are_the_callers_mistake(sound):
    with pytest.raises(ValueError, match="mono floats"):
        check_sound(sound)


def test_resampling_keeps_the_tone_and_its_length():
    tone = np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000).astype(np.float32)
    changed = resampled(tone, 48_000, RATE)
    assert changed.dtype == np.float32
    assert changed.shape == (RATE,)
    wanted = np.sin(2 * np.pi * 1000 * SECONDS)
    assert np.abs(changed - wanted)[1000:-1000].max() < 1e-4
    assert resampled(tone, RATE, RATE) is tone


@pytest.mark.slow
def test_importing_is_cheap():
    code = "import sys, pipeline.encoders.mel; print('librosa' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_filters_begin_where_vector_instructions_load_whole():
    """MKL's last digits may follow where a matrix begins, and NumPy's memory begins anywhere."""
    assert {LogMel(MelConfig(num_mels=num)).filters.data_ptr() % 64 for num in (64, 80, 128)} == {0}
