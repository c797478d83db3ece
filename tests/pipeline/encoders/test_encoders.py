"""The networks here have random weights, saved to a file and loaded by path: there is no other way to get them."""

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import librosa
import numpy as np
import open_clip
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from pipeline.encoders import pair as pairs
from pipeline.encoders.device import ComputeOptions, pick_device
from pipeline.encoders.mel import LogMel, MelConfig
from pipeline.encoders.onednn import PackedSelfAttention
from pipeline.encoders.pair import EncoderPairSettings, check_settings, find_files, load_pair
from pipeline.encoders.picture import PictureEncoder, find_weights, picture_id
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

RATE = 44_100
ON_CPU = ComputeOptions(torch.device("cpu"))
TINY = "tiny-for-tests"
TINY_CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Also what a new network leaves at 0 and 1, so that a mistake in any part shows."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if "running_var" in name or name.endswith("weight") else 0.1 * noise)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
    network.load_state_dict(state)
    return network.eval()


def resnet18(prefix: str, width: int, channels: int, seed: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """torchvision's, which shares no code with ours, and its state dict under the published names."""
    network = torchvision.models.resnet18(weights=None, num_classes=width)
    network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    randomised(network, seed)
    return network, {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def soundclip(folder):
    """(path, convolution, network): a file as SoundCLIP publishes it, saved from a wrapped network, and its parts."""
    convolution = randomised(torch.nn.Conv2d(1, 3, 3), 1)
    network, state = resnet18("module.feature_extractor.", 512, 3, 2)
    state |= {f"module.conv.{name}": tensor for name, tensor in convolution.state_dict().items()}
    path = folder / "resnet18.pth"
    torch.save(state, path)
    return path, convolution, network


@pytest.fixture(scope="module")
def wav2clip(folder):
    """(path, network, layers): a file as Wav2CLIP publishes it, and its parts."""
    network, state = resnet18("audio_encoder.", 309, 1, 3)
    layers = randomised(
        torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(512, 512)),
        4,
    )
    for side in ("audio", "image"):
        state |= {f"{side}_transform.sequential.{name}": tensor for name, tensor in layers.state_dict().items()}
    state["audio_encoder.spectrogram.window"] = torch.hann_window(512)
    path = folder / "Wav2CLIP.pt"
    torch.save(state, path)
    return path, network, layers


@pytest.fixture(scope="module")
def by_soundclip(soundclip):
    return load_soundclip(soundclip[0], sha256(soundclip[0]), ON_CPU)


@pytest.fixture(scope="module")
def by_wav2clip(wav2clip):
    return load_wav2clip(wav2clip[0], sha256(wav2clip[0]), ON_CPU)


@pytest.fixture(scope="module")
def tiny(folder):
    """The path of random weights for a small open_clip model."""
    config = folder / f"{TINY}.json"
    config.write_text(json.dumps(TINY_CONFIG))
    open_clip.add_model_config(config)
    path = folder / "tiny.safetensors"
    torch.manual_seed(0)
    model = open_clip.create_model(TINY)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def picture(tiny):
    return PictureEncoder(TINY, str(tiny), tiny, sha256(tiny), running=ON_CPU)


def rain(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


def hum(seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * 120 * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def frames(num: int, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


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


# checkpoints of the align stage


@pytest.fixture(scope="module")
def aligned(folder, picture):
    """(path, network, config): a checkpoint with numbers of its own, made for the tiny picture encoder."""
    mel = MelConfig(sample_rate_hz=22_050, fft_size=1024, hop_size=256, num_mels=64)
    config = AlignConfig(picture_id=picture.encoder_id, num_frames=100, mel=mel)
    network = randomised(SoundNetwork(), 5)
    save_align(folder / "align.safetensors", network, config)
    return folder / "align.safetensors", network, config


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


# pictures and texts


def test_pictures_are_prepared_and_embedded_as_open_clip_does(tiny, picture):
    model, _, preprocess = open_clip.create_model_and_transforms(TINY, pretrained=str(tiny))
    model.eval()
    for height, width in [(48, 80), (80, 48), (32, 32), (20, 31), (360, 640)]:
        pictures = frames(3, height, width)
        batch = torch.stack([preprocess(Image.fromarray(one)) for one in pictures])
        with torch.inference_mode():
            wanted = torch.nn.functional.normalize(model.encode_image(batch), dim=-1).numpy()
        got = picture.embed_pictures(pictures)
        assert got.dtype == np.float32
        assert np.abs(got - wanted).max() < 1e-6
    assert picture.width == 512


def test_texts_are_embedded_as_open_clip_does(tiny, picture):
    model, *_ = open_clip.create_model_and_transforms(TINY, pretrained=str(tiny))
    texts = ["rain on a lake", "fire", "waves at night"]
    with torch.inference_mode():
        wanted = model.eval().encode_text(open_clip.get_tokenizer(TINY)(texts), normalize=True).numpy()
    assert np.abs(picture.embed_texts(texts) - wanted).max() < 1e-6
    assert picture.embed_texts([]).shape == (0, 512)


def test_more_frames_than_a_batch(tiny, picture):
    small = PictureEncoder(
        TINY, str(tiny), tiny, sha256(tiny), running=ComputeOptions(torch.device("cpu"), batch_size=2)
    )
    assert np.abs(small.embed_pictures(frames(5)) - picture.embed_pictures(frames(5))).max() < 1e-6
    assert small.encoder_id == picture.encoder_id


def test_the_picture_model_is_frozen(picture):
    assert not picture.model.training
    assert not any(weight.requires_grad for weight in picture.model.parameters())


@pytest.mark.parametrize(
    "bad", [frames(2)[..., :1], frames(2)[0], frames(2).astype(np.float32), frames(2)[:0], frames(2)[:, :0]]
)
def test_what_is_no_batch_of_frames_is_the_callers_mistake(picture, bad):
    with pytest.raises(ValueError, match="frames must be uint8"):
        picture.embed_pictures(bad)


def test_picture_weights_of_another_model_are_refused_with_the_first_mismatches(soundclip, tmp_path, tiny):
    with pytest.raises(EncoderError, match=rf"does not hold weights of {TINY}: .*Missing key") as caught:
        PictureEncoder(TINY, str(soundclip[0]), soundclip[0], "", running=ON_CPU)
    assert len(str(caught.value)) < 2000
    state = open_clip.create_model(TINY, pretrained=str(tiny)).state_dict()
    state["visual.conv1.weight"] = torch.zeros(64, 3, 8, 8)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(EncoderError, match=r"size mismatch for visual.conv1.weight.*\[64, 3, 8, 8\]"):
        PictureEncoder(TINY, "other.pt", tmp_path / "other.pt", "", running=ON_CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"visual.positional_embedding": torch.zeros(10, 64)},
            r"has shape \(10, 64\), wanted \(5, 64\): .*another size",
        ),
        ({"positional_embedding": torch.zeros(20, 64)}, r"has shape \(20, 64\), wanted \(16, 64\): .*another size"),
        ({"visual.proj": torch.ones(64, 512, dtype=torch.int8)}, r"visual\.proj holds whole numbers \(torch\.int8\)"),
    ],
)
def test_weights_that_open_clip_would_bend_are_refused(tiny, tmp_path, change, message):
    torch.save(open_clip.create_model(TINY, pretrained=str(tiny)).state_dict() | change, tmp_path / "bent.pt")
    with pytest.raises(EncoderError, match=rf"bent\.pt does not hold weights of {TINY}: .*{message}"):
        PictureEncoder(TINY, "bent.pt", tmp_path / "bent.pt", "", running=ON_CPU)


def test_no_weights_at_all_are_refused(tmp_path):
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(EncoderError, match=r"empty\.pt holds no state dict"):
        PictureEncoder(TINY, "empty.pt", tmp_path / "empty.pt", "", running=ON_CPU)


def test_packed_layers_give_the_same_numbers(tiny, picture):
    packed = PictureEncoder(TINY, str(tiny), tiny, sha256(tiny), running=ON_CPU, gradients=False)
    blocks = packed.model.visual.transformer.resblocks
    assert [type(part).__name__ for part in blocks.modules() if type(part).__name__.startswith("Packed")] == [
        "PackedSelfAttention", "PackedLinear", "PackedLinear", "PackedLinear", "PackedLinear",
    ]  # fmt: skip
    assert np.abs(packed.embed_pictures(frames(3)) - picture.embed_pictures(frames(3))).max() < 1e-6
    # texts go through plain layers in both; equal weights elsewhere in memory
    assert np.abs(packed.embed_texts(["rain"]) - picture.embed_texts(["rain"])).max() < 1e-6
    assert packed.encoder_id == picture.encoder_id


def test_packed_attention_equals_torchs_with_a_mask_and_refuses_what_it_cannot_do():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    packed = PackedSelfAttention(attention)
    inputs, mask = torch.randn(2, 5, 32), torch.triu(torch.full((5, 5), float("-inf")), 1)
    with torch.inference_mode():
        for given in (None, mask):
            wanted, _ = attention(inputs, inputs, inputs, need_weights=False, attn_mask=given)
            assert torch.allclose(packed(inputs, inputs, inputs, attn_mask=given)[0], wanted, atol=1e-6)
        for wrong in ((inputs, inputs.clone(), inputs), (inputs, inputs, inputs.clone())):
            with pytest.raises(ValueError, match="packed attention needs one tensor"):
                packed(*wrong)


def test_gradients_pass_through_a_picture_encoder_unless_they_are_given_up(picture):
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    picture.model.encode_image(pictures).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().max() > 1e-6


def test_low_precision_weights_give_what_autocast_gives(tiny, picture):
    low = PictureEncoder(
        TINY, str(tiny), tiny, sha256(tiny), running=ComputeOptions(torch.device("cpu"), precision="bf16")
    )
    assert low.model.visual.conv1.weight.dtype == torch.bfloat16
    batch = torch.stack([picture.preprocess(Image.fromarray(one)) for one in frames(3)])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = unit(picture.model.encode_image(batch).float().numpy())
    assert np.abs(low.embed_pictures(frames(3)) - wanted).max() < 1e-3


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_damaged_and_hostile_picture_weights_are_refused(tiny, tmp_path):
    torch.save({"state_dict": Hostile(tmp_path / "was run")}, tmp_path / "hostile.pt")
    with pytest.raises(EncoderError, match="nothing of it was run"):
        PictureEncoder(TINY, "", tmp_path / "hostile.pt", "", running=ON_CPU)
    assert not (tmp_path / "was run").exists()
    (tmp_path / "half.safetensors").write_bytes(tiny.read_bytes()[:100_000])
    with pytest.raises(EncoderError, match=r"half\.safetensors is damaged"):
        PictureEncoder(TINY, "", tmp_path / "half.safetensors", "", running=ON_CPU)
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(EncoderError, match=r"half\.pt is damaged or no checkpoint"):
        PictureEncoder(TINY, "", tmp_path / "half.pt", "", running=ON_CPU)


def test_a_tag_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError) as caught:
        find_weights("ViT-B-32", "laion2b_s34b_b79k", field="agreement.encoders.picture_weights")
    assert "agreement.encoders.picture_weights: the weights of tag 'laion2b_s34b_b79k'" in str(caught.value)
    assert "set agreement.encoders.picture_weights to the path of the file" in str(caught.value)


def test_a_tag_is_loaded_the_way_it_was_trained(monkeypatch, tiny, tmp_path):
    """Registered as a published tag would be: its own mean, and QuickGELU, which the model's name does not say."""
    known = {"published": {"file": str(tiny), "mean": (0.5,) * 3, "std": (0.25,) * 3, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, known)
    path = find_weights(TINY, "published")
    assert path == tiny
    by_tag = PictureEncoder(TINY, "published", path, sha256(path), running=ON_CPU)
    model, _, preprocess = open_clip.create_model_and_transforms(
        TINY, pretrained=str(tiny), force_quick_gelu=True, image_mean=(0.5,) * 3, image_std=(0.25,) * 3
    )
    with torch.inference_mode():
        rows = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(one)) for one in frames(2)]))
    assert np.abs(by_tag.embed_pictures(frames(2)) - unit(rows.numpy())).max() < 1e-6
    by_path = PictureEncoder(TINY, str(tiny), tiny, sha256(tiny), running=ON_CPU)
    assert by_path.preprocess.transforms[-1].mean == (0.5,) * 3  # all tags of the model agree on it
    assert by_path.encoder_id != by_tag.encoder_id  # but a path cannot say that it wants QuickGELU
    known["published"]["quick_gelu"] = False
    assert by_path.encoder_id == PictureEncoder(TINY, "published", path, sha256(path), running=ON_CPU).encoder_id


def test_the_picture_id_is_the_same_by_tag_and_by_path():
    by_tag = picture_id("ViT-B-32", "openai", "0" * 64)
    assert by_tag == picture_id("ViT-B-32-quickgelu", "openai", "0" * 64)
    assert by_tag == picture_id("ViT-B-32-quickgelu", "a/copy.safetensors", "0" * 64)
    others = [("ViT-B-32", "a/copy.safetensors", "0"), ("ViT-B-16", "openai", "0"), ("ViT-B-32", "openai", "1")]
    assert len({by_tag, *(picture_id(name, weights, digit * 64) for name, weights, digit in others)}) == 4


# pairs


def settings(tiny, aligned, **changes) -> EncoderPairSettings:
    values = {
        "picture_model": TINY,
        "picture_weights": str(tiny),
        "sound_kind": "align",
        "sound_weights": str(aligned[0]),
    }
    return EncoderPairSettings(**{**values, **changes})


def test_a_pair_embeds_clips_one_by_one(tiny, aligned, picture):
    pair = load_pair(settings(tiny, aligned))
    clips = [frames(4), frames(3, 60, 60, seed=1)]
    sounds = [rain(1), hum(3)]
    both = pair.embed_clips(clips, sounds, RATE)
    assert [rows.shape for rows in both.picture_frames] == [(4, 512), (3, 512)]
    assert np.abs(both.picture_frames[0] - picture.embed_pictures(clips[0])).max() < 1e-6  # its layers are packed
    assert np.abs(both.picture[1] - unit(both.picture_frames[1].mean(axis=0))).max() < 1e-6
    assert (both.picture.dtype, both.sound.dtype, both.sound.shape) == (np.float32, np.float32, (2, 512))
    for index in range(2):
        alone = pair.embed_clips(clips[index : index + 1], sounds[index : index + 1], RATE)
        assert np.array_equal(alone.picture[0], both.picture[index])
        assert np.array_equal(alone.sound[0], both.sound[index])
    assert pair.embed_clips([], [], RATE).picture.shape == (0, 512)
    assert np.abs(pair.embed_texts(["rain"]) - picture.embed_texts(["rain"])).max() < 1e-6
    with pytest.raises(ValueError, match="2 clips have frames, 1 have sound"):
        pair.embed_clips(clips, sounds[:1], RATE)


def test_published_sound_weights_make_pairs_too(tiny, aligned, soundclip, wav2clip, caplog):
    for kind, path in (("soundclip", soundclip[0]), ("wav2clip", wav2clip[0])):
        pair = load_pair(settings(tiny, aligned, sound_kind=kind, sound_weights=str(path)))
        assert pair.sound.embed_sounds([rain(1)], RATE).shape == (1, 512)
        assert f"{kind} was made for ViT-B/32, not for {TINY}" in caplog.text


def test_the_id_follows_the_numbers_not_the_paths(tiny, aligned, tmp_path):
    base = settings(tiny, aligned)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(tiny.read_bytes())
    first = find_files(base).encoder_id
    assert first == load_pair(base).encoder_id
    same = [{"picture_weights": str(moved)}, {"batch_size": 3}, {"num_threads": 1}, {"device": "cpu"}]
    assert {find_files(settings(tiny, aligned, **change)).encoder_id for change in same} == {first}
    other = tmp_path / "align.safetensors"
    save_align(other, randomised(SoundNetwork(), 7), aligned[2])
    config = tmp_path / "config.safetensors"
    save_align(config, aligned[1], aligned[2].model_copy(update={"num_frames": 99}))
    changes = [
        {"sound_weights": str(other)},
        {"sound_weights": str(config)},
        {"frames_per_clip": 4},
        {"precision": "bf16"},
    ]
    assert len({first, *(find_files(settings(tiny, aligned, **change)).encoder_id for change in changes)}) == 5


def test_bf16_is_close_to_fp32(tiny, aligned):
    exact, rough = (
        load_pair(settings(tiny, aligned, precision=precision)).embed_clips([frames(3)], [rain(1)], RATE)
        for precision in ("fp32", "bf16")
    )
    assert 0.99 < exact.picture[0] @ rough.picture[0] < 0.9999999
    assert 0.99 < exact.sound[0] @ rough.sound[0] < 0.9999999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_changes_no_number(tiny, aligned, precision):
    """Neither how many clips are embedded side by side, nor how many threads torch has for everything else."""
    clips, sounds = [frames(3, seed=seed) for seed in range(3)], [rain(1 + seed, seed) for seed in range(3)]
    before = torch.get_num_threads()
    found = []
    try:
        for of_torch, num_threads in ((1, None), (1, 3), (2, None), (2, 1), (3, 2)):
            torch.set_num_threads(of_torch)
            pair = load_pair(settings(tiny, aligned, num_threads=num_threads, precision=precision))
            found.append((pair.embed_clips(clips, sounds, RATE), pair.embed_texts(["rain", "fire", "wind"])))
            assert torch.get_num_threads() == of_torch
    finally:
        torch.set_num_threads(before)
    (first, first_texts), *others = found
    for clip_rows, text_rows in others:
        assert np.array_equal(clip_rows.picture, first.picture)
        assert np.array_equal(clip_rows.sound, first.sound)
        assert np.array_equal(text_rows, first_texts)


def test_the_batch_size_of_gpus_changes_no_number_on_a_cpu(tiny, aligned):
    one, two = (
        load_pair(settings(tiny, aligned, batch_size=size)).embed_clips([frames(11)], [rain(1)], RATE)
        for size in (2, 32)
    )
    assert np.array_equal(one.picture_frames[0], two.picture_frames[0])
    assert np.array_equal(one.sound, two.sound)


def test_a_sound_network_of_another_partner_is_refused(tiny, aligned, tmp_path):
    path = tmp_path / "stranger.safetensors"
    save_align(path, aligned[1], aligned[2].model_copy(update={"picture_id": "ViT-B-32-0123"}))
    with pytest.raises(EncoderError, match="was trained with the picture encoder ViT-B-32-0123"):
        load_pair(settings(tiny, aligned, sound_weights=str(path)))


def test_widths_are_compared_before_anything_is_loaded(tiny, aligned, tmp_path, monkeypatch):
    path = tmp_path / "narrow.safetensors"
    save_align(path, SoundNetwork(width=24), AlignConfig(width=24))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(EncoderError, match=rf"{TINY} has width 512, the align network .*narrow.* has 24"):
        check_settings(settings(tiny, aligned, sound_weights=str(path)))
    with pytest.raises(EncoderError, match=r"RN50 has width 1024, the soundclip network .* has 512"):
        check_settings(settings(tiny, aligned, picture_model="RN50", sound_kind="soundclip"))


def test_all_problems_are_found_at_once_before_any_work(tiny, aligned):
    check_settings(settings(tiny, aligned))
    wrong = settings(tiny, aligned, picture_model="ViT-B-33", sound_weights="nowhere.pt", device="cuda:7")
    with pytest.raises(EncoderError) as caught:
        check_settings(wrong, "agreement.encoders")
    message = str(caught.value)
    assert "agreement.encoders.picture_model: open_clip has no model named 'ViT-B-33'; near names: ViT-B-32" in message
    assert "agreement.encoders.sound_weights: there is no file 'nowhere.pt'" in message
    assert "agreement.encoders.device: 'cuda:7' is not there" in message
    with pytest.raises(EncoderError, match=r"'openay' is no file, and no pretrained tag of ViT-B-32 \(tags: openai, "):
        check_settings(settings(tiny, aligned, picture_model="ViT-B-32", picture_weights="openay"))


def test_settings_refuse_what_cannot_be(tiny, aligned):
    url = "https://127.0.0.1/w.pt"
    assert settings(tiny, aligned, sound_weights=url, sound_sha256="A" * 64).sound_sha256 == "a" * 64
    for changes, message in [
        ({"sound_weights": url}, "sound_weights is a URL: give sound_sha256"),
        ({"picture_weights": url}, "picture_weights is a URL: give picture_sha256"),
        ({"sound_sha256": "abc"}, "sound_sha256"),
        ({"sound_kind": "random"}, "sound_kind"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ({"frames_per_clip": 0}, "frames_per_clip"),
    ]:
        with pytest.raises(ValidationError, match=message):
            settings(tiny, aligned, **changes)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name, message in [
        ("gpu", "'gpu' is no device"),
        ("meta", "'meta' is not supported"),
        ("cuda:9", "is not there"),
    ]:
        with pytest.raises(EncoderError, match=message):
            pick_device(name, "encoders.device")


def test_nothing_is_logged_as_an_error(tiny, aligned, caplog):
    with caplog.at_level(logging.WARNING):
        load_pair(settings(tiny, aligned))
    assert caplog.records == []


def test_the_settings_are_documented():
    assert all(field.description for field in EncoderPairSettings.model_fields.values())
    assert pairs.NUMBERS_VERSION == 2


def test_importing_fetches_nothing():
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import pipeline.encoders.pair, pipeline.encoders.picture, pipeline.encoders.sound\n"
        "pipeline.encoders.sound.SoundNetwork()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
