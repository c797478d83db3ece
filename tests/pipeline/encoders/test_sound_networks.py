"""Sound encoders: SoundCLIP's, Wav2CLIP's and align's networks, with random weights in files."""

import json

import cv2
import librosa
import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.encoders.mel import LogMel
from pipeline.encoders.sound import (
    AlignConfig,
    SoundNetwork,
    Wav2ClipNetwork,
    folded,
    load_align,
    load_soundclip,
    load_wav2clip,
    mel_windows,
    read_align_config,
    save_align,
)
from pipeline.errors import EncoderError, MediaError
from tests.pipeline.encoders.networks import ON_CPU, RATE, hum, rain, randomised, sha256, unit

# SoundCLIP


def published_soundclip(parts, mel: np.ndarray) -> np.ndarray:
    """What the published program computes for a mel of at most 864 frames, with OpenCV and torchvision."""
    _, convolution, network = parts
    padded = np.zeros((128, 864), dtype=np.float32)
    padded[:, : mel.shape[1]] = mel
    resized = cv2.resize(padded, (128, 512))
    with torch.inference_mode():
        row = network(convolution(torch.from_numpy(resized.reshape(1, 1, 128, 512))))
    return unit(row.numpy())[0]


def librosa_mel(sound: np.ndarray) -> np.ndarray:
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_mels=128)
    return librosa.power_to_db(power, ref=np.max) / 80 + 1


@pytest.mark.parametrize("seconds", [10.0, 3.0])
def test_soundclip_equals_the_published_computation(soundclip, by_soundclip, seconds):
    sound = rain(seconds) + hum(seconds)
    got = by_soundclip.embed_sounds([sound], RATE)
    assert got.shape == (1, 512)
    assert got.dtype == np.float32
    assert np.abs(got[0] - published_soundclip(soundclip, librosa_mel(sound))).max() < 1e-4


def test_the_networks_names_are_the_published_ones():
    published = {"conv.weight", "conv.bias"} | {
        f"feature_extractor.{name}" for name in torchvision.models.resnet18(num_classes=512).state_dict()
    }
    assert set(SoundNetwork().state_dict()) == published


def test_folding_is_opencvs_resize_read_row_by_row():
    mel = torch.rand(2, 128, 864, generator=torch.Generator().manual_seed(0))
    got = folded(mel)
    for one, wanted in zip(got, mel, strict=True):
        assert np.abs(one.numpy() - cv2.resize(wanted.numpy(), (128, 512)).reshape(128, 512)).max() < 1e-5


def test_windows_cover_a_long_mel_evenly_and_pad_a_short_one():
    mel = torch.arange(25.0).expand(2, 25)
    assert mel_windows(mel, 10)[:, 0, 0].tolist() == [0.0, 8.0, 15.0]
    assert mel_windows(mel, 10)[-1, 0, -1] == 24
    assert mel_windows(mel[:, :10], 10).shape == (1, 2, 10)
    assert mel_windows(mel[:, 1:4], 5)[0, 0].tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]


def test_a_long_sound_is_the_mean_of_its_windows(soundclip, by_soundclip):
    sound = np.concatenate([rain(8), hum(8)])
    mel = librosa_mel(sound)
    halves = [published_soundclip(soundclip, mel[:, start : start + 864]) for start in (0, mel.shape[1] - 864)]
    assert np.abs(by_soundclip.embed_sounds([sound], RATE)[0] - unit(np.mean(halves, axis=0))).max() < 1e-4


def test_sounds_do_not_depend_on_what_they_are_embedded_beside(by_soundclip, by_wav2clip):
    sounds = [rain(2), hum(11), rain(0.5, seed=1), hum(2)]
    for encoder in (by_soundclip, by_wav2clip):
        together = encoder.embed_sounds(sounds, RATE)
        alone = [encoder.embed_sounds([sound], RATE)[0] for sound in sounds]
        assert np.array_equal(together, alone)
        assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
        assert encoder.embed_sounds([], RATE).shape == (0, 512)


def test_another_sample_rate_is_the_same_sound(by_soundclip):
    at_48k, at_44k = (
        np.sin(2 * np.pi * 500 * np.arange(3 * rate) / rate).astype(np.float32)
        * np.hanning(3 * rate).astype(np.float32)
        for rate in (48_000, RATE)
    )
    same = by_soundclip.embed_sounds([at_48k], 48_000)[0] @ by_soundclip.embed_sounds([at_44k], RATE)[0]
    assert same > 0.999


def test_silence_and_single_samples_have_a_finite_embedding(by_soundclip, by_wav2clip):
    for encoder in (by_soundclip, by_wav2clip):
        rows = encoder.embed_sounds([np.zeros(RATE, dtype=np.float32), np.ones(1, dtype=np.float32)], RATE)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_sound_that_cannot_be_embedded_is_named(by_soundclip, by_wav2clip):
    bad = rain(1)
    bad[5] = np.nan
    for encoder in (by_soundclip, by_wav2clip):
        with pytest.raises(MediaError, match="sound 1 holds NaN or infinity in 1 of 44100"):
            encoder.embed_sounds([rain(1), bad], RATE)
        with pytest.raises(MediaError, match="sound 0 has no samples"):
            encoder.embed_sounds([bad[:0]], RATE)


def test_other_weights_are_refused_by_name(soundclip, wav2clip, tmp_path):
    with pytest.raises(EncoderError, match=r"does not fit SoundNetwork: conv\.weight is missing"):
        load_soundclip(wav2clip[0], "", ON_CPU)
    with pytest.raises(EncoderError, match=r"does not fit Wav2ClipNetwork: audio_encoder\.conv1\.weight is missing"):
        load_wav2clip(soundclip[0], "", ON_CPU)
    state = torch.load(soundclip[0], weights_only=True)
    state["module.feature_extractor.fc.weight"] = torch.zeros(309, 512)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(EncoderError, match=r"fc\.weight has shape \(309, 512\), wanted \(512, 512\)"):
        load_soundclip(tmp_path / "other.pth", "", ON_CPU)


def test_weights_that_give_nothing_are_refused(soundclip, tmp_path):
    state = {name: torch.zeros_like(tensor) for name, tensor in torch.load(soundclip[0], weights_only=True).items()}
    torch.save(state, tmp_path / "zeros.pth")
    with pytest.raises(EncoderError, match="zero or not finite"):
        load_soundclip(tmp_path / "zeros.pth", "", ON_CPU).embed_sounds([rain(1)], RATE)


# Wav2CLIP


def published_wav2clip(parts, sound: np.ndarray) -> np.ndarray:
    """What the published program computes for one sound at 16 kHz, with librosa's STFT and torchvision."""
    _, network, layers = parts
    spectrum = librosa.stft(sound, n_fft=512, hop_length=353, window="hann", center=True, pad_mode="reflect")
    logs = torch.from_numpy(np.log(np.abs(spectrum) ** 2 + 1e-7))[None, None]
    standardised = (logs - logs.mean()) / (logs.std() + 1e-9)
    headless = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())
    with torch.inference_mode():
        return unit(layers(headless(standardised)).numpy())[0]


@pytest.mark.parametrize("wrapped", [False, True])
def test_wav2clip_equals_the_published_computation(wav2clip, tmp_path, wrapped):
    path = wav2clip[0]
    if wrapped:  # the training program's own checkpoint
        path = tmp_path / "ResNet_CX.ckpt"
        torch.save({"epoch": 3, "state_dict": torch.load(wav2clip[0], weights_only=True)}, path)
    encoder = load_wav2clip(path, sha256(path), ON_CPU)
    for seconds in (10.0, 1.7):
        sound = rain(seconds, rate=16_000)
        got = encoder.embed_sounds([sound], 16_000)
        assert got.shape == (1, 512)
        assert np.abs(got[0] - published_wav2clip(wav2clip, sound)).max() < 1e-4


def test_wav2clip_standardises_each_sound_alone_and_silence_to_zeros():
    network = Wav2ClipNetwork()
    loud, silent = torch.from_numpy(rain(1, rate=16_000)), torch.zeros(16_000)
    spectra = network.spectrogram(torch.stack([loud, 0.01 * loud, silent]))
    assert spectra.shape == (3, 1, 257, 1 + 16_000 // 353)
    assert spectra[:2].mean((1, 2, 3)) == pytest.approx(0, abs=1e-4)
    assert spectra[:2].std((1, 2, 3)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(spectra[2], torch.zeros_like(spectra[2]))


def test_an_align_checkpoint_comes_back_as_it_was(aligned):
    path, network, config = aligned
    encoder = load_align(path, sha256(path), ON_CPU)
    assert encoder.config == config == read_align_config(path)
    assert json.loads(path.with_suffix(".json").read_text())["mel"]["num_mels"] == 64
    sound = rain(1, rate=22_050)
    mel = LogMel(config.mel)(torch.from_numpy(sound)[None])
    padded = torch.nn.functional.pad(mel, (0, 100 - mel.shape[2]))
    with torch.inference_mode():
        wanted = unit(network(padded[:, None]).numpy())
    assert np.abs(encoder.embed_sounds([sound], 22_050) - wanted).max() < 1e-6


def test_align_weights_in_half_precision_and_of_another_width(tmp_path):
    network = randomised(SoundNetwork(width=24, backbone="resnet10t"), 6).half()
    save_align(tmp_path / "small.safetensors", network, AlignConfig(width=24, backbone="resnet10t", num_frames=64))
    encoder = load_align(tmp_path / "small.safetensors", "", ON_CPU)
    assert encoder.embed_sounds([rain(0.5)], RATE).shape == (1, 24)


def test_damaged_align_checkpoints_are_refused(aligned, soundclip, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(EncoderError, match="was not written by the align stage"):
        read_align_config(path)
    for text, message in [
        ('{"width": 0}', "width: Input should be greater"),
        ('{"depth": 1}', "depth: Extra inputs"),
        ('{"version": 2}', "version: Input should be 1"),
        ('{"mel": {"num_mels": "many"}}', "mel.num_mels: Input should be a valid integer"),
        ("nonsense", "Invalid JSON"),
    ]:
        save_file({"a": torch.ones(1)}, path, metadata={"hearscape_align": text})
        with pytest.raises(EncoderError, match=message):
            read_align_config(path)
    save_file({"a": torch.ones(1)}, path, metadata={"hearscape_align": '{"backbone": "resnet1000"}'})
    with pytest.raises(EncoderError, match="timm has no network named 'resnet1000'"):
        load_align(path, "", ON_CPU)
    with pytest.raises(EncoderError, match="no safetensors file"):
        read_align_config(soundclip[0])


def test_every_part_of_the_sound_network_gets_a_gradient():
    network = randomised(SoundNetwork(width=16), 8).train()
    mels = torch.rand(4, 1, 64, 100, generator=torch.Generator().manual_seed(1))
    network(mels).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())
