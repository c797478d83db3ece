"""What the packaged pair looks at and listens to: features of two published networks, whose convolutions are packaged with it.

Pictures go through EfficientNet-Lite0 (Tan and Le, 2019; Google, 2020; learned from ImageNet), sounds through YAMNet (Google, 2019:
MobileNet v1 of Howard et al., 2017; learned from AudioSet). They were trained on a thousand times more than the pair itself: it only
learns which of their features belong to its classes. Both lie in the package at 8 bits a weight, with a factor for each output channel.

Shape suffixes: H height, W width, C channels, P patches of sound, T mel frames, M mel bands, F features, A tags.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.weights import read_state_dict
from pipeline.errors import EncoderError
from pipeline.runtime.numba_cache import provide_numba_cache

Floats = NDArray[np.float32]
Side = Literal["picture", "sound"]

FOLDER = Path(__file__).parent
TRUNKS = {"picture": FOLDER / "picture_trunk.safetensors", "sound": FOLDER / "sound_trunk.safetensors"}

PICTURE_SIDE_PX = 128
"""Pictures are squeezed into a square of this side. EfficientNet-Lite0 learned at 224, at three times the cost: a point of accuracy."""
NUM_ROWS = 3
"""Bands of the picture (sky, middle, ground) whose features are kept apart."""

RATE_HZ = 16_000
WINDOW, HOP, FFT_SIZE = 400, 160, 512
NUM_MELS, LOW_HZ, HIGH_HZ = 64, 125.0, 7500.0
LOG_OFFSET = 1e-3
PATCH_FRAMES, PATCH_HOP = 96, 48
"""YAMNet's own numbers: 25 ms windows every 10 ms, and patches of 0.96 s every 0.48 s."""
PEAK = 13.0
"""Sounds are brought to this largest magnitude, which is that of an ordinary recording: nothing depends on loudness."""
SMALLEST_SHARE = 1e-4
"""A tag's probability below this says no more than this."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution. A number of groups and a size of kernel are its weight's."""

    stride: int = 1
    highest: float | None = None
    """What the activation is cut off at, beside 0. None: no activation. Infinity: a plain ReLU."""
    starts: bool = False
    """Whether its input is added to what the next layer that ``ends`` gives."""
    ends: bool = False
    read: bool = False
    """Whether what it gives is looked at, beside being passed on."""


_BLOCKS = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6))
"""Of EfficientNet-Lite0 up to its 192 channels: blocks of a group, stride of the first, and how far they widen."""
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of MobileNet v1's depthwise convolutions."""


def picture_layers() -> tuple[Layer, ...]:
    """EfficientNet-Lite0 without its last block and its classes. Read at every resolution: what is coarse, blurred or small says most
    in the first blocks, what is sharp in the last."""
    layers = [Layer(2, 6.0)]
    for count, stride, widened in _BLOCKS:
        for index in range(count):
            first, adds = stride if index == 0 else 1, index > 0
            if widened > 1:
                layers.append(Layer(1, 6.0, starts=adds))
            layers += [Layer(first, 6.0), Layer(ends=adds, read=index == count - 1)]
    return tuple(layers)


def sound_layers() -> tuple[Layer, ...]:
    """YAMNet without its classes."""
    plain = float("inf")
    pairs = ((Layer(stride, plain), Layer(1, plain)) for stride in _STRIDES)
    *layers, last = (Layer(2, plain), *itertools.chain.from_iterable(pairs))
    return (*layers, replace(last, read=True))


class Trunk(nn.Module):
    """Convolutions one after another, with TensorFlow's ``SAME`` padding and batch normalisation already in the weights."""

    def __init__(self, layers: tuple[Layer, ...], tensors: dict[str, Tensor]) -> None:
        """``tensors``: NN.weight int8 (out, in, height, width), NN.factor (out,) and NN.bias (out,) of every layer. Raises KeyError."""
        super().__init__()
        self.layers = layers
        for number in range(len(layers)):
            name = f"{number:02}"
            weight = tensors[f"{name}.weight"].float() * tensors[f"{name}.factor"].float()[:, None, None, None]
            self.register_buffer(f"weight_{name}", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"bias_{name}", tensors[f"{name}.bias"].float())

    def _convolution(self, number: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight_{number:02}"), self.get_buffer(f"bias_{number:02}")

    @property
    def num_channels(self) -> int:
        """Channels of all layers that are read, together."""
        return sum(len(self._convolution(number)[1]) for number, layer in enumerate(self.layers) if layer.read)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> (B, C, H, W) of every layer that is read; C, H and W are each layer's own."""
        x, kept = x.contiguous(memory_format=torch.channels_last), None
        seen = []
        for number, layer in enumerate(self.layers):
            weight, bias = self._convolution(number)
            kept = x if layer.starts else kept
            down, across = (_same(n, k, layer.stride) for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
            padding: tuple[int, int] | int = (down[0], across[0])
            if down[0] != down[1] or across[0] != across[1]:
                x, padding = functional.pad(x, (*across, *down)), 0
            x = functional.conv2d(x, weight, bias, layer.stride, padding, 1, x.shape[1] // weight.shape[1])
            if layer.highest is not None:
                x = functional.hardtanh_(x, 0.0, layer.highest)
            x = x + kept if layer.ends and kept is not None else x
            if layer.read:
                seen.append(x)
        return seen


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


@dataclass(frozen=True, slots=True)
class Tags:
    """Some of YAMNet's classes, as its last layer has them."""

    weight_AF: Tensor
    bias_A: Tensor


@functools.cache
def trunk(side: Side) -> tuple[Trunk, Tags | None]:
    """The packaged trunk, read once in a process. Raises EncoderError when its file is damaged or missing."""
    path = TRUNKS[side]
    remedy = "it is part of the package: install hearscape again"
    tensors = read_state_dict(path, remedy)
    try:
        if side == "picture":
            return Trunk(picture_layers(), tensors), None
        tags = Tags(tensors["tags.weight"].float(), tensors["tags.bias"].float())
        if tags.weight_AF.shape[0] != len(TAGS):
            raise KeyError(f"tags.weight with {len(TAGS)} rows")
        return Trunk(sound_layers(), tensors), tags
    except KeyError as error:
        raise EncoderError(f"{path} lacks {error.args[0]}; {remedy}") from error


TAGS_OF_CLASS = {
    "rain": ("Rain", "Raindrop", "Rain on surface", "Patter"),
    "thunder": ("Thunderstorm", "Thunder"),
    "ocean": ("Ocean", "Waves, surf"),
    "river": ("Stream", "Trickle, dribble"),
    "splashing_water": ("Splash, splatter", "Slosh", "Squish", "Drip", "Pour", "Liquid", "Plop"),
    "waterfall": ("Waterfall",),
    "underwater": ("Gurgling",),
    "wind": ("Wind", "Wind noise (microphone)", "Howl"),
    "fire": ("Fire", "Crackle", "Sizzle"),
    "forest": ("Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet", "Rustling leaves", "Bird flight, flapping wings"),
    "night": ("Insect", "Cricket", "Owl", "Frog", "Croak"),
    "snow": ("Walk, footsteps", "Crunch", "Rustle"),
    "explosion": ("Explosion", "Burst, pop", "Eruption", "Boom", "Gunshot, gunfire", "Artillery fire"),
}  # fmt: skip
"""AudioSet's classes that mean a class of the pair."""
TAGS = tuple(tag for tags in TAGS_OF_CLASS.values() for tag in tags)


def prepared_picture(frame_HW3: NDArray[np.uint8]) -> Tensor:
    """(1, 3, PICTURE_SIDE_PX, PICTURE_SIDE_PX), 0..255, of an RGB frame of any size."""
    size = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    way = cv2.INTER_AREA if min(frame_HW3.shape[:2]) > PICTURE_SIDE_PX else cv2.INTER_LINEAR
    small = np.ascontiguousarray(cv2.resize(frame_HW3, size, interpolation=way))
    return torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0).float()


def prepared_pictures(pictures_NCHW: Tensor) -> Tensor:
    """(N, 3, PICTURE_SIDE_PX, PICTURE_SIDE_PX) of square pictures: :func:`prepared_picture` with gradients and without rounding."""
    size = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    if pictures_NCHW.shape[2:] == size:
        return pictures_NCHW
    way = "area" if min(pictures_NCHW.shape[2:]) > PICTURE_SIDE_PX else "bilinear"
    return functional.interpolate(pictures_NCHW, size, mode=way)


def band_means(network: Trunk, pictures_NCHW: Tensor) -> Tensor:
    """(N, F): means of all channels that are read over each of three bands of prepared pictures, 0..255."""
    layers = network((pictures_NCHW - 127) / 128)
    means = [functional.adaptive_avg_pool2d(activations, (NUM_ROWS, 1)).flatten(1) for activations in layers]
    return torch.cat(means, dim=1)


@torch.inference_mode()
def picture_features(frame_HW3: NDArray[np.uint8]) -> Floats:
    """(F,) float32 of an RGB frame of any size: its :func:`band_means`."""
    return np.asarray(band_means(trunk("picture")[0], prepared_picture(frame_HW3))[0].numpy())


@functools.cache
def _filters() -> Tensor:
    provide_numba_cache()
    import librosa  # noqa: PLC0415 (slow to import)

    bank = librosa.filters.mel(
        sr=RATE_HZ, n_fft=FFT_SIZE, n_mels=NUM_MELS, fmin=LOW_HZ, fmax=HIGH_HZ, htk=True, norm=None
    )
    return torch.tensor(
        np.ascontiguousarray(bank.T)
    )  # not NumPy's memory: MKL's last digits may follow where a matrix begins


def magnitude_mel(sound: Floats) -> Floats:
    """(T, M) float32, T at least one patch: YAMNet's mel of magnitudes, before its logarithm, of a mono sound at 16 kHz."""
    shortest = WINDOW + (PATCH_FRAMES - 1) * HOP
    padded = functional.pad(torch.from_numpy(sound), (0, max(0, shortest - len(sound))))
    spectrum = torch.fft.rfft(padded.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW), FFT_SIZE)
    return np.asarray((spectrum.abs() @ _filters()).numpy())


def sound_features(mel_TM: Floats) -> tuple[Floats, Floats]:
    """((F,), (K,)) float32 of a ``magnitude_mel``: the features' mean and their maximum over patches, and a score for every class of
    ``TAGS_OF_CLASS``, in its order: the logarithm of how likely one of its tags is, on average over patches."""
    network, tags = trunk("sound")
    assert tags is not None
    logarithm = torch.from_numpy(mel_TM * np.float32(PEAK / max(float(mel_TM.max()), 1e-12))).add(LOG_OFFSET).log()
    with torch.inference_mode():
        seen_PF = network(_patches(logarithm))[-1].mean((2, 3))
        likely_PA = functional.linear(seen_PF, tags.weight_AF, tags.bias_A).sigmoid()
    counts = [len(names) for names in TAGS_OF_CLASS.values()]
    groups = torch.split(likely_PA, counts, dim=1)
    scores_K = torch.stack([group.amax(1).mean() for group in groups]).add(SMALLEST_SHARE).log()
    features_F = torch.cat([seen_PF.mean(0), seen_PF.amax(0)])
    return np.asarray(features_F.numpy()), np.asarray(scores_K.numpy())


def _patches(logarithm_TM: Tensor) -> Tensor:
    """(P, 1, PATCH_FRAMES, M)"""
    return logarithm_TM.unfold(0, PATCH_FRAMES, PATCH_HOP).transpose(1, 2).unsqueeze(1)


def num_features(side: Side) -> int:
    """F of a side."""
    channels = trunk(side)[0].num_channels
    return channels * (NUM_ROWS if side == "picture" else 2)
