"""The sound encoders: networks, and classes that run them on sounds of any length and sample rate.

There are three kinds of weights: SoundCLIP's as published, Wav2CLIP's as published, and checkpoints of ``save_align``.
The first two follow the published names, shapes and preprocessing; they were tested with random weights of those shapes
only, not with the published files.

Shape suffixes: B sounds or windows, N samples, M mel bands (or rows), T mel frames, D width of the space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.device import ComputeOptions, one_thread, unit_rows
from pipeline.encoders.mel import LogMel, MelConfig, check_sound, resampled
from pipeline.encoders.norms import Norm, with_group_norm
from pipeline.encoders.weights import load_into, read_state_dict, reason
from pipeline.errors import EncoderError
from pipeline.schema import stable_hash
from pipeline.settings import Settings

PUBLISHED_WIDTH = 512
SOUNDCLIP_FRAMES = 864
_METADATA_KEY = "hearscape_align"


class SoundNetwork(nn.Module):
    """(B, 1, M, T) mels -> (B, D), not normalised: a 3x3 convolution to 3 channels, then a timm network (ResNet-18).

    Its state dict has SoundCLIP's published names: ``conv.*`` and ``feature_extractor.*``.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, backbone: str = "resnet18", norm: Norm = "batch") -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.feature_extractor = _timm_network(backbone, num_classes=width)
        if norm == "group":
            with_group_norm(self.feature_extractor)

    def forward(self, mels_B1MT: Tensor) -> Tensor:
        features: Tensor = self.feature_extractor(self.conv(mels_B1MT))
        return features


class Wav2ClipNetwork(nn.Module):
    """(B, N) sounds at 16 kHz -> (B, 512), not normalised: log power spectrogram, ResNet-18, two linear layers.

    As published, except that the spectrogram is standardised for each sound alone, not over the batch: the same for a
    batch of one. A spectrogram without any variation (digital silence) becomes zeros.
    """

    window: Tensor
    SAMPLE_RATE_HZ = 16_000
    FFT_SIZE = 512
    HOP_SIZE = 353

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = _timm_network("resnet18", num_classes=0, in_chans=1)
        layers = (nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, PUBLISHED_WIDTH))
        self.audio_transform = nn.ModuleDict({"sequential": nn.Sequential(*layers)})
        self.register_buffer("window", torch.hann_window(self.FFT_SIZE), persistent=False)

    def spectrogram(self, sounds_BN: Tensor) -> Tensor:
        """(B, 1, FFT_SIZE / 2 + 1, T), each sound's with mean 0 and standard deviation 1."""
        with torch.autocast(sounds_BN.device.type, enabled=False):
            spectrum = torch.stft(
                sounds_BN.float(),
                self.FFT_SIZE,
                self.HOP_SIZE,
                window=self.window,
                pad_mode="reflect",
                return_complex=True,
            )
            logs = (spectrum.real.square() + spectrum.imag.square() + 1e-7).log()
            deviation = logs.std((1, 2), keepdim=True)
            standardised = (logs - logs.mean((1, 2), keepdim=True)) / (deviation + 1e-9)
            return torch.where(deviation > 1e-5, standardised, torch.zeros_like(logs)).unsqueeze(1)

    def forward(self, sounds_BN: Tensor) -> Tensor:
        features: Tensor = self.audio_transform["sequential"](self.audio_encoder(self.spectrogram(sounds_BN)))
        return features


def _timm_network(name: str, **arguments: Any) -> nn.Module:
    import timm  # noqa: PLC0415 (slow to import)

    if not timm.is_model(name):
        raise EncoderError(f"timm has no network named {name!r}; the paper's is 'resnet18'")
    network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network


class AlignConfig(Settings):
    """The configuration of a sound network, stored in its checkpoint."""

    version: Literal[1] = 1
    """Version of this format."""
    picture_id: str | None = None
    """``encoder_id`` of the picture encoder that it was trained with. None: any of the same width is accepted."""
    width: int = Field(default=PUBLISHED_WIDTH, ge=1)
    """Width of the embeddings."""
    backbone: str = "resnet18"
    """Name of the timm network."""
    norm: Norm = "batch"
    """Its normalisation. batch: as in the published weights, and in checkpoints of versions without this field."""
    num_frames: int = Field(default=SOUNDCLIP_FRAMES, ge=1)
    """Mel frames in one window of the network: 864 are 10.03 s."""
    layout: Literal["mel", "folded"] = "mel"
    """mel: mel bands are rows and frames are columns. folded: as SoundCLIP's weights were trained, see ``folded()``."""
    mel: MelConfig = MelConfig()
    """The mel front end."""


def save_align(path: Path, network: SoundNetwork, config: AlignConfig) -> None:
    """Writes ``path`` (safetensors, with the config in its header), and the config as .json beside it for readers."""
    from safetensors.torch import save_file  # noqa: PLC0415

    text = config.model_dump_json(indent=2)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(state, partial, metadata={_METADATA_KEY: text})
    partial.replace(path)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def read_align_config(path: Path) -> AlignConfig:
    """The config of a checkpoint, without its weights. Raises EncoderError when it has none or a damaged one."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"{path} is no safetensors file, or a damaged one: {reason(error)}; name a checkpoint of the align stage, or make it again "
            "with python -m trainer.fit --stages align"
        ) from error
    if text is None:
        raise EncoderError(f"{path} was not written by the align stage; name its kind: 'soundclip' or 'wav2clip'")
    try:
        return AlignConfig.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'config'}: {one['msg']}" for one in error.errors())
        raise EncoderError(f"{path} has a config that cannot be used: {wrong}") from error


def folded(windows_BMT: Tensor, rows: int = 512) -> Tensor:
    """Mel windows (B, M, T) in the layout that SoundCLIP's weights were trained on, (B, M, rows).

    SoundCLIP's authors resized the (M, T) picture to (rows, M), which stretches the mel axis and shrinks time, then
    reshaped it to (M, rows): with 128 bands and 512 rows, each row of the result is four rows of the resized picture.
    """
    size = (rows, windows_BMT.shape[1])
    stretched = functional.interpolate(windows_BMT.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    return stretched.reshape(windows_BMT.shape[0], windows_BMT.shape[1], rows)


def mel_windows(mel_MT: Tensor, num_frames: int) -> Tensor:
    """Cuts a mel (M, T) into the fewest windows that cover it, evenly spread and overlapping if needed: (K, M, num_frames).

    A mel shorter than a window is padded at its end with zeros, the minimum of the scale.
    """
    length = mel_MT.shape[1]
    if length <= num_frames:
        return functional.pad(mel_MT, (0, num_frames - length)).unsqueeze(0)
    count = math.ceil(length / num_frames)
    starts = [round(i * (length - num_frames) / (count - 1)) for i in range(count)]
    return torch.stack([mel_MT[:, start : start + num_frames] for start in starts])


class SoundEncoder(Protocol):
    """Embeds sounds as unit vectors of ``width`` numbers. ``encoder_id`` depends on all that changes the embeddings."""

    encoder_id: str
    width: int
    partner_id: str | None
    """``encoder_id`` of the picture encoder that it was trained with. None: not recorded."""

    def embed_sounds(self, sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int) -> NDArray[np.float32]:
        """Mono sounds of any length -> (len(sounds), D) float32, rows of length 1, each computed independently.

        Raises MediaError for a sound without samples, or with NaN or infinity.
        """


N = TypeVar("N", bound=nn.Module)


def frozen_on(network: N, device: torch.device) -> N:
    """The network, frozen, on the device, in the memory format ``channels_last``, which makes convolutions a third faster."""
    frozen = network.requires_grad_(False).eval().to(device)
    return frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class MelSoundEncoder:
    """SoundCLIP's network or one of the align stage. The embedding of a longer sound is the mean of its windows'."""

    def __init__(self, network: SoundNetwork, config: AlignConfig, encoder_id: str, running: ComputeOptions) -> None:
        self.network = frozen_on(network, running.device)
        self.front_end = LogMel(config.mel).to(running.device)
        self.config = config
        self.encoder_id = encoder_id
        self.width = config.width
        self.partner_id = config.picture_id
        self.running = running

    def _windows(self, sound: NDArray[np.float32], sample_rate_hz: int) -> Tensor:
        own_rate = resampled(sound, sample_rate_hz, self.config.mel.sample_rate_hz)
        mel_MT = self.front_end(torch.from_numpy(own_rate).to(self.running.device).unsqueeze(0))[0]
        cut = mel_windows(mel_MT, self.config.num_frames)
        return (folded(cut) if self.config.layout == "folded" else cut).unsqueeze(1)

    def embed_sounds(self, sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int) -> NDArray[np.float32]:
        if not sounds:
            return np.zeros((0, self.width), dtype=np.float32)
        for index, sound in enumerate(sounds):
            check_sound(sound, index)
        groups = self.running.map(lambda sound: self._windows(sound, sample_rate_hz), sounds)
        flat = self.running.each(self.network, [window for group in groups for window in group])
        with one_thread():
            each = torch.split(unit_rows(flat, self.encoder_id), [len(group) for group in groups])
            return np.asarray(unit_rows(torch.stack([rows.mean(0) for rows in each]), self.encoder_id).numpy())


class Wav2ClipEncoder:
    """Wav2CLIP's network on whole sounds of any length; those below one spectrogram frame (32 ms) are padded with zeros."""

    def __init__(self, network: Wav2ClipNetwork, encoder_id: str, running: ComputeOptions) -> None:
        self.network = frozen_on(network, running.device)
        self.encoder_id = encoder_id
        self.width = PUBLISHED_WIDTH
        self.partner_id: str | None = None
        self.running = running

    def embed_sounds(self, sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int) -> NDArray[np.float32]:
        if not sounds:
            return np.zeros((0, self.width), dtype=np.float32)
        inputs = []
        for index, sound in enumerate(sounds):
            check_sound(sound, index)
            own_rate = torch.from_numpy(resampled(sound, sample_rate_hz, self.network.SAMPLE_RATE_HZ))
            inputs.append(functional.pad(own_rate, (0, max(0, self.network.FFT_SIZE - len(own_rate)))))
        flat = self.running.each(self.network, inputs)
        with one_thread():
            return np.asarray(unit_rows(flat, self.encoder_id).numpy())


def load_soundclip(path: Path, sha256: str, running: ComputeOptions) -> MelSoundEncoder:
    """SoundCLIP's published ``resnet18`` weights. Raises EncoderError when the file does not fit."""
    network = SoundNetwork()
    load_into(network, read_state_dict(path), path)
    config = AlignConfig(layout="folded")
    return MelSoundEncoder(network, config, sound_id("soundclip", sha256), running)


def load_align(path: Path, sha256: str, running: ComputeOptions) -> MelSoundEncoder:
    """A checkpoint of the align stage. Raises EncoderError when the file does not fit."""
    config = read_align_config(path)
    network = SoundNetwork(config.width, config.backbone, config.norm)
    load_into(network, read_state_dict(path), path)
    return MelSoundEncoder(network, config, sound_id("align", sha256), running)


def load_wav2clip(path: Path, sha256: str, running: ComputeOptions) -> Wav2ClipEncoder:
    """Wav2CLIP's published checkpoint, of which ``audio_encoder.*`` and ``audio_transform.*`` are used.

    Raises EncoderError when the file does not fit.
    """
    unused = ("audio_encoder.fc.", "audio_encoder.spectrogram.")
    state = {
        name: tensor
        for name, tensor in read_state_dict(path).items()
        if name.startswith(("audio_encoder.", "audio_transform.")) and not name.startswith(unused)
    }
    network = Wav2ClipNetwork()
    load_into(network, state, path)
    return Wav2ClipEncoder(network, sound_id("wav2clip", sha256), running)


def load_sound(kind: str, path: Path, sha256: str, running: ComputeOptions) -> SoundEncoder:
    """The encoder of a kind: soundclip, wav2clip or align. Raises EncoderError when the file does not fit."""
    if kind == "soundclip":
        return load_soundclip(path, sha256, running)
    if kind == "wav2clip":
        return load_wav2clip(path, sha256, running)
    return load_align(path, sha256, running)


def sound_id(kind: str, sha256: str) -> str:
    """``encoder_id`` of a sound encoder. The hash of the file also covers the config of an align checkpoint."""
    return f"{kind}-{stable_hash('sound', kind, sha256, length=12)}"
