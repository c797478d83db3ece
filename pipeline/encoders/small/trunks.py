"""The features of the packaged pair: two published convolutional networks ("trunks"), whose weights are part of the package.

Pictures go through EfficientNet-Lite0 (Tan and Le, 2019; Google, 2020; trained on ImageNet), sounds through YAMNet (Google, 2019: the
MobileNet v1 of Howard et al., 2017; trained on AudioSet). Both were trained on a thousand times more data than the towers, which
only learn which features belong to which class. Weights are stored as 8-bit integers with a factor for each output channel.

Shape suffixes: H height, W width, C channels, P patches of sound, T mel frames, M mel bands, F features, A tags, G classes with tags.
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
"""Pictures are resized to a square of this side. At 224, the size EfficientNet-Lite0 was trained at, computing takes three times as
long, and accuracy rises by one percentage point."""
NUM_ROWS = 3
"""Horizontal bands of the picture (sky, middle, ground) whose features are averaged separately."""

RATE_HZ = 16_000
WINDOW, HOP, FFT_SIZE = 400, 160, 512
NUM_MELS, LOW_HZ, HIGH_HZ = 64, 125.0, 7500.0
LOG_OFFSET = 1e-3
PATCH_FRAMES, PATCH_HOP = 96, 48
"""YAMNet's own settings: windows of 25 ms every 10 ms, and patches of 0.96 s every 0.48 s."""
PEAK = 13.0
"""Every sound's mel is scaled to this maximum, which is that of an ordinary recording: features do not depend on loudness."""
SMALLEST_SHARE = 1e-4
"""Added to the tags' probabilities before their logarithm, so that scores have a lower limit."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution. Its number of groups and its kernel size follow from the shape of its weight."""

    stride: int = 1
    max_activation: float | None = None
    """The output is limited to 0..this. None: no activation. Infinity: a ReLU without upper limit."""
    opens_residual: bool = False
    """Whether its input is added to the output of the next layer that closes the residual block."""
    closes_residual: bool = False
    is_read: bool = False
    """Whether its output is also an output of the trunk."""


_BLOCKS = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6))
"""The groups of EfficientNet-Lite0 up to its 192 channels: number of blocks, stride of the first, expansion of the channels."""
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of MobileNet v1's depthwise convolutions."""


def picture_layers() -> tuple[Layer, ...]:
    """EfficientNet-Lite0 without its last block and its classifier.

    The outputs of every group of blocks are read: the first groups tell most about coarse, blurred or small pictures, the last
    about sharp ones.
    """
    layers = [Layer(2, 6.0)]
    for num_blocks, stride, expansion in _BLOCKS:
        for index in range(num_blocks):
            block_stride, is_residual = stride if index == 0 else 1, index > 0
            if expansion > 1:
                layers.append(Layer(1, 6.0, opens_residual=is_residual))
            layers.append(Layer(block_stride, 6.0))
            layers.append(Layer(closes_residual=is_residual, is_read=index == num_blocks - 1))
    return tuple(layers)


def sound_layers() -> tuple[Layer, ...]:
    """YAMNet without its classifier. Only the last output is read."""
    no_limit = float("inf")
    pairs = ((Layer(stride, no_limit), Layer(1, no_limit)) for stride in _STRIDES)
    *layers, last = (Layer(2, no_limit), *itertools.chain.from_iterable(pairs))
    return (*layers, replace(last, is_read=True))


class Trunk(nn.Module):
    """A sequence of convolutions with TensorFlow's ``SAME`` padding; batch normalisation is part of their weights."""

    def __init__(self, layers: tuple[Layer, ...], tensors: dict[str, Tensor]) -> None:
        """``tensors``: for each layer NN.weight int8 (out, in, height, width), NN.factor (out,) and NN.bias (out,), NN its number.

        Raises KeyError for a tensor that is missing.
        """
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
        """Number of channels of all layers that are read."""
        return sum(len(self._convolution(number)[1]) for number, layer in enumerate(self.layers) if layer.is_read)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the output (B, C, H, W) of every layer that is read; C, H and W differ between layers."""
        x, residual = x.contiguous(memory_format=torch.channels_last), None
        outputs = []
        for number, layer in enumerate(self.layers):
            weight, bias = self._convolution(number)
            residual = x if layer.opens_residual else residual
            rows, columns = (
                _same_padding(n, k, layer.stride) for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
            )
            padding: tuple[int, int] | int = (rows[0], columns[0])
            if rows[0] != rows[1] or columns[0] != columns[1]:
                x, padding = functional.pad(x, (*columns, *rows)), 0
            x = functional.conv2d(x, weight, bias, layer.stride, padding, 1, x.shape[1] // weight.shape[1])
            if layer.max_activation is not None:
                x = functional.hardtanh_(x, 0.0, layer.max_activation)
            x = x + residual if layer.closes_residual and residual is not None else x
            if layer.is_read:
                outputs.append(x)
        return outputs


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's ``SAME`` padding of one axis, before and after: the output has ceil(size / stride) elements."""
    num_outputs = -(-size // stride)
    total = max((num_outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True, slots=True)
class Tags:
    """The rows of YAMNet's classifier for the classes in ``TAGS``."""

    weight_AF: Tensor
    bias_A: Tensor


@functools.cache
def trunk(side: Side) -> tuple[Trunk, Tags | None]:
    """The packaged trunk and, for sounds, the classifier of its tags; read once in a process.

    Raises EncoderError for a file that is damaged or missing.
    """
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
"""For each class of the pair that AudioSet knows, the AudioSet classes ("tags") that mean it."""
TAGS = tuple(tag for tags in TAGS_OF_CLASS.values() for tag in tags)


def prepared_picture(frame_HW3: NDArray[np.uint8]) -> Tensor:
    """An RGB frame of any size -> (1, 3, PICTURE_SIDE_PX, PICTURE_SIDE_PX) float32, 0..255."""
    size = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    interpolation = cv2.INTER_AREA if min(frame_HW3.shape[:2]) > PICTURE_SIDE_PX else cv2.INTER_LINEAR
    resized = np.ascontiguousarray(cv2.resize(frame_HW3, size, interpolation=interpolation))
    return torch.from_numpy(resized).permute(2, 0, 1).unsqueeze(0).float()


def prepared_pictures(pictures_NCHW: Tensor) -> Tensor:
    """Square pictures -> (N, 3, PICTURE_SIDE_PX, PICTURE_SIDE_PX): :func:`prepared_picture` with gradients and without rounding."""
    size = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    if pictures_NCHW.shape[2:] == size:
        return pictures_NCHW
    mode = "area" if min(pictures_NCHW.shape[2:]) > PICTURE_SIDE_PX else "bilinear"
    return functional.interpolate(pictures_NCHW, size, mode=mode)


def band_means(network: Trunk, pictures_NCHW: Tensor) -> Tensor:
    """Prepared pictures, 0..255 -> (N, F): the means of all channels that are read, over each of ``NUM_ROWS`` bands."""
    layers = network((pictures_NCHW - 127) / 128)
    means = [functional.adaptive_avg_pool2d(activations, (NUM_ROWS, 1)).flatten(1) for activations in layers]
    return torch.cat(means, dim=1)


@torch.inference_mode()
def picture_features(frame_HW3: NDArray[np.uint8]) -> Floats:
    """The :func:`band_means` (F,) float32 of an RGB frame of any size."""
    return np.asarray(band_means(trunk("picture")[0], prepared_picture(frame_HW3))[0].numpy())


@functools.cache
def _filters() -> Tensor:
    """YAMNet's mel filters, (FFT_SIZE / 2 + 1, M)."""
    provide_numba_cache()
    import librosa  # noqa: PLC0415 (slow to import)

    bank = librosa.filters.mel(
        sr=RATE_HZ, n_fft=FFT_SIZE, n_mels=NUM_MELS, fmin=LOW_HZ, fmax=HIGH_HZ, htk=True, norm=None
    )
    # a copy in torch's own memory: the last digits of MKL's products may depend on the alignment of a matrix
    return torch.tensor(np.ascontiguousarray(bank.T))


def magnitude_mel(sound: Floats) -> Floats:
    """YAMNet's mel of magnitudes before its logarithm, (T, M) float32, of a mono sound at 16 kHz.

    A shorter sound is padded with zeros to the length of one patch.
    """
    patch_samples = WINDOW + (PATCH_FRAMES - 1) * HOP
    padded = functional.pad(torch.from_numpy(sound), (0, max(0, patch_samples - len(sound))))
    spectrum = torch.fft.rfft(padded.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW), FFT_SIZE)
    return np.asarray((spectrum.abs() @ _filters()).numpy())


def sound_features(mel_TM: Floats) -> tuple[Floats, Floats]:
    """The features (F,) and the class scores (G,), float32, of a ``magnitude_mel``.

    Features are YAMNet's last activations: their mean over patches, then their maximum. The score of a class of ``TAGS_OF_CLASS`` is
    the logarithm of the probability of its most probable tag, averaged over patches.
    """
    network, tags = trunk("sound")
    assert tags is not None
    log_mel_TM = torch.from_numpy(mel_TM * np.float32(PEAK / max(float(mel_TM.max()), 1e-12))).add(LOG_OFFSET).log()
    with torch.inference_mode():
        patch_features_PF = network(_patches(log_mel_TM))[-1].mean((2, 3))
        probabilities_PA = functional.linear(patch_features_PF, tags.weight_AF, tags.bias_A).sigmoid()
    tag_counts = [len(names) for names in TAGS_OF_CLASS.values()]
    by_class = torch.split(probabilities_PA, tag_counts, dim=1)
    scores_G = torch.stack([tags_PA.amax(1).mean() for tags_PA in by_class]).add(SMALLEST_SHARE).log()
    features_F = torch.cat([patch_features_PF.mean(0), patch_features_PF.amax(0)])
    return np.asarray(features_F.numpy()), np.asarray(scores_G.numpy())


def _patches(log_mel_TM: Tensor) -> Tensor:
    """(P, 1, PATCH_FRAMES, M)"""
    return log_mel_TM.unfold(0, PATCH_FRAMES, PATCH_HOP).transpose(1, 2).unsqueeze(1)


def num_features(side: Side) -> int:
    """The number of features F of a picture or a sound."""
    channels = trunk(side)[0].num_channels
    return channels * (NUM_ROWS if side == "picture" else 2)
