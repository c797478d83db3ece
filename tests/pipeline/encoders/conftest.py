"""Files of random weights, and the encoders that they make."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.picture import PictureEncoder
from pipeline.encoders.sound import (
    AlignConfig,
    SoundNetwork,
    load_soundclip,
    load_wav2clip,
    save_align,
)
from tests.pipeline.encoders.networks import (
    ON_CPU,
    TINY,
    TINY_CONFIG,
    randomised,
    resnet18,
    sha256,
)


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


# checkpoints of the align stage


@pytest.fixture(scope="module")
def aligned(folder, picture):
    """(path, network, config): a checkpoint with numbers of its own, made for the tiny picture encoder."""
    mel = MelConfig(sample_rate_hz=22_050, fft_size=1024, hop_size=256, num_mels=64)
    config = AlignConfig(picture_id=picture.encoder_id, num_frames=100, mel=mel)
    network = randomised(SoundNetwork(), 5)
    save_align(folder / "align.safetensors", network, config)
    return folder / "align.safetensors", network, config
