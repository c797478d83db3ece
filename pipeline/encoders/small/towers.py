"""The packaged pair of encoders: a picture tower and a sound tower, small networks on the features of two published ones.

Each tower maps features (:mod:`pipeline.encoders.small.trunks`) to shares (class probabilities, sum 1), averaged over a few small
networks. Every class has a direction in the embedding space; related classes, such as clouds and wind, are less than 90 degrees
apart. An embedding is the sum of the class directions weighted by the shares. Where a tower is unsure this sum is shorter than 1;
a component along an axis that only pictures, or only sounds, have brings it to length 1. So a picture and a sound have a high
cosine only if both towers are sure of the same or related classes. The embedding of a text is the sum of the directions of the
classes that it names, at length 1.

Shape suffixes: N rows, F features, E networks, H hidden units, K classes, D width of the space, G classes with tags.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.device import one_thread, side_by_side
from pipeline.encoders.mel import check_sound, resampled
from pipeline.encoders.small.trunks import (
    RATE_HZ,
    SMALLEST_SHARE,
    TAGS_OF_CLASS,
    band_means,
    magnitude_mel,
    num_features,
    prepared_picture,
    sound_features,
    trunk,
)
from pipeline.encoders.weights import read_state_dict, reason
from pipeline.errors import EncoderError
from pipeline.schema import stable_hash
from pipeline.settings import Settings

Floats = NDArray[np.float32]

MODEL_NAME = "hearscape-small"
FOLDER = Path(__file__).parent
PACKAGED = {"picture": FOLDER / "picture.safetensors", "sound": FOLDER / "sound.safetensors"}

FEATURES_VERSION = 2
"""Raised with every change of the features: the weights of a tower fit one version only."""
CLIP_AT = 5.0
"""Standardised features are limited to this many standard deviations."""
WINDOW_SECONDS = 10.0
"""A longer sound is cut into equal parts of about this length, and their shares are averaged."""
SMALLEST_UNKNOWN = 1e-12
"""Lower limit of the squared component along a tower's own axis: the square root has no finite gradient at 0."""
_METADATA_KEY = "hearscape_small"

WORDS: Mapping[str, str] = {
    "rain": "rain", "raining": "rain", "rainfall": "rain", "drizzle": "rain",
    "thunder": "thunder", "thunderstorm": "thunder", "lightning": "thunder", "storm": "thunder",
    "ocean": "ocean", "sea": "ocean", "waves": "ocean", "surf": "ocean", "beach": "ocean", "coast": "ocean",
    "river": "river", "stream": "river", "brook": "river", "creek": "river",
    "splashing": "splashing_water", "splashing water": "splashing_water", "splash": "splashing_water",
    "squishing water": "splashing_water", "dripping": "splashing_water", "drops": "splashing_water",
    "waterfall": "waterfall", "waterfall burbling": "waterfall", "cascade": "waterfall",
    "underwater": "underwater", "underwater bubbling": "underwater", "bubbles": "underwater",
    "wind": "wind", "wind noise": "wind", "gusts": "wind", "breeze": "wind",
    "fire": "fire", "fire crackling": "fire", "campfire": "fire", "fireplace": "fire", "bonfire": "fire",
    "forest": "forest", "woods": "forest", "birds": "forest", "birdsong": "forest", "trees": "forest",
    "night": "night", "crickets": "night",
    "snow": "snow", "snowfall": "snow",
    "explosion": "explosion",
    "clouds": "clouds", "sky": "clouds",
    "sunset": "sunset", "sunrise": "sunset",
    "night sky": "night_sky", "aurora": "night_sky", "stars": "night_sky",
    "mountain": "mountain", "mountains": "mountain",
    "volcano": "volcano", "lava": "volcano",
    "geyser": "geyser",
    "hot spring": "hot_spring",
    "canyon": "canyon", "valley": "canyon",
    "lake": "lake", "pond": "lake",
    "fog": "fog", "mist": "fog",
}  # fmt: skip
"""Words and phrases that a text may contain, and the class of each."""


class SmallConfig(Settings):
    """The config of a tower, in the header of its file."""

    version: Literal[1] = 1
    """Version of this format."""
    side: Literal["picture", "sound"]
    """Whether it is the picture tower or the sound tower."""
    features: int = FEATURES_VERSION
    """Version of the features that it was trained on."""
    classes: tuple[str, ...] = Field(min_length=1)
    """All classes of the space, including those that this tower never predicts."""
    trained_with: str | None = None
    """SHA-256 of the picture tower's file (sound tower only). None: a picture tower."""

    @property
    def width(self) -> int:
        """Width of the space: an axis for each class, one that only pictures have, and one that only sounds have."""
        return len(self.classes) + 2


def save_tower(path: Path, state: Mapping[str, NDArray[np.floating]], config: SmallConfig) -> None:
    """Writes a tower in half precision, with its config in the header; equal input gives equal bytes."""
    from safetensors.numpy import save  # noqa: PLC0415

    half = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in sorted(state.items())}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(save(half, metadata={_METADATA_KEY: config.model_dump_json()}))
    partial.replace(path)


def read_config(path: Path, side: str) -> SmallConfig:
    """Reads the config in the header of a tower's file. ``side``: the tower that is expected.

    Raises EncoderError for a file without a config, with a damaged one, or of the other tower, and for another version of the features.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"{path} is no safetensors file, or a damaged one: {reason(error)}{_advice(path)}"
        ) from error
    if text is None:
        raise EncoderError(f"{path} is no tower of a small pair{_advice(path)}")
    try:
        config = SmallConfig.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'config'}: {problem['msg']}" for problem in error.errors()
        )
        raise EncoderError(f"{path} has a config that cannot be used: {problems}{_advice(path)}") from error
    if config.side != side:
        raise EncoderError(f"{path} is the {config.side} tower, wanted the {side} tower; the two files are swapped")
    if config.features != FEATURES_VERSION:
        raise EncoderError(
            f"{path} was trained on features of version {config.features}, this is version {FEATURES_VERSION}; "
            f"train it again with python -m trainer.small_pair"
        )
    return config


def _advice(path: Path) -> str:
    """The end of an error message: what to do about a file that cannot be used."""
    if path.parent == FOLDER:
        return "; it is part of the package: install hearscape again"
    return "; write it again with python -m trainer.small_pair, or name another file"


class Tower(nn.Module):
    """(N, F) features and (N, K) scores -> (N, D) embeddings of length 1. Gradients pass through it; its weights are buffers."""

    def __init__(self, path: Path, side: Literal["picture", "sound"], num_features: int) -> None:
        """Raises EncoderError for a file that is damaged, or whose tensors have other shapes."""
        super().__init__()
        self.config = read_config(path, side)
        num_classes = len(self.config.classes)
        self.width = self.config.width
        state = {name: tensor.float() for name, tensor in read_state_dict(path).items()}
        first_bias = state.get("first.bias", torch.zeros(()))
        num_networks, num_hidden = (len(first_bias), first_bias.shape[-1]) if first_bias.ndim else (0, 0)
        expected_shapes = {
            "mean": (num_features,),
            "scale": (num_features,),
            "first.weight": (num_networks, num_features, num_hidden),
            "first.bias": (num_networks, num_hidden),
            "second.weight": (num_networks, num_hidden, num_classes),
            "second.bias": (num_networks, num_classes),
            "directions": (num_classes, num_classes),
        }
        problems = [
            f"{name} is {'missing' if name not in state else tuple(state[name].shape)}, wanted {shape}"
            for name, shape in expected_shapes.items()
            if name not in state or tuple(state[name].shape) != shape
        ]
        problems += [f"{name} is not part of a tower" for name in state if name not in expected_shapes]
        problems += [f"{name} holds NaN or infinity" for name, values in state.items() if not values.isfinite().all()]
        if not problems and not state["directions"].any(dim=1).all():
            problems.append("directions has a class without a direction")
        if problems or not num_networks:
            raise EncoderError(f"{path} is no {side} tower: {'; '.join(problems[:3])}{_advice(path)}")
        for name, values in state.items():
            if name != "directions":
                self.register_buffer(name.replace(".", "_"), values)
        unit_KK = functional.normalize(state["directions"].double(), dim=1)
        self.register_buffer("_directions_KD", functional.pad(unit_KK, (0, 2)))
        self.directions_KD: Floats = self.get_buffer("_directions_KD").numpy().astype(np.float32)
        """The direction of each class, of length 1."""
        own_axis = num_classes + (0 if side == "picture" else 1)
        self.register_buffer("_own_axis_D", torch.eye(self.width, dtype=torch.float64)[own_axis])

    def shares(self, features_NF: Tensor, scores_NK: Tensor | None = None) -> Tensor:
        """The probabilities of the classes, (N, K); each row's sum is 1.

        ``scores_NK`` are added to the logits: what YAMNet's own classifier says of the classes. None: nothing is added.
        """
        buffer = self.get_buffer
        standard_NF = ((features_NF - buffer("mean")) * buffer("scale")).clamp(-CLIP_AT, CLIP_AT)
        hidden_NEH = torch.einsum("nf,efh->neh", standard_NF, buffer("first_weight")) + buffer("first_bias")
        hidden_NEH = functional.gelu(hidden_NEH, approximate="tanh")
        logits_NEK = torch.einsum("neh,ehk->nek", hidden_NEH, buffer("second_weight")) + buffer("second_bias")
        if scores_NK is not None:
            logits_NEK = logits_NEK + scores_NK[:, None]
        return logits_NEK.softmax(2).mean(1)

    def rows(self, shares_NK: Tensor) -> Tensor:
        """Embeddings (N, D) of length 1: the directions of the classes weighted by their shares, and the rest on the tower's own axis."""
        rows_ND = shares_NK.double() @ self.get_buffer("_directions_KD")
        unknown_N = (1.0 - rows_ND.square().sum(1)).clamp_min(SMALLEST_UNKNOWN).sqrt()
        rows_ND = functional.normalize(rows_ND + unknown_N[:, None] * self.get_buffer("_own_axis_D"), dim=1)
        return rows_ND.to(shares_NK.dtype)

    def forward(self, features_NF: Tensor, scores_NK: Tensor | None = None) -> Tensor:
        """Features (N, F), and scores (N, K) as in :meth:`shares` -> embeddings (N, D)."""
        return self.rows(self.shares(features_NF, scores_NK))


def small_id(side: str, sha256: str) -> str:
    """The ``encoder_id`` of a tower. ``sha256``: that of its file, which holds both weights and config."""
    return f"{MODEL_NAME}-{stable_hash('small', side, sha256, FEATURES_VERSION, length=12)}"


class PictureNetwork(nn.Module):
    """The picture encoder as one differentiable network: the trunk, the means of its channels over bands, and the tower."""

    def __init__(self, path: Path) -> None:
        """``path``: the tower's file. Raises what :class:`Tower` raises."""
        super().__init__()
        self.trunk = copy.deepcopy(trunk("picture")[0])  # a copy, since a caller may move this network to a device
        self.tower = Tower(path, "picture", num_features("picture"))

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        """(N, 3, PICTURE_SIDE_PX, PICTURE_SIDE_PX) RGB, 0..255 -> embeddings (N, D) of length 1."""
        rows_ND: Tensor = self.tower(band_means(self.trunk, pictures_NCHW))
        return rows_ND


class SmallPictureEncoder:
    """Embeds pictures and texts. Always runs on the CPU, since its networks are small.

    ``num_threads``: number of clips that are embedded at the same time. None: as many as torch has threads.
    """

    def __init__(self, path: Path, sha256: str, num_threads: int | None = None) -> None:
        self.num_threads = num_threads
        self.network = PictureNetwork(path).eval()
        self.tower = self.network.tower
        self.encoder_id = small_id("picture", sha256)
        self.width = self.tower.width
        self.classes = self.tower.config.classes

    def embed_pictures(self, frames: NDArray[np.uint8]) -> Floats:
        """RGB frames (N, H, W, 3) uint8 of any size -> (N, D) float32, rows of length 1; each depends on its own frame only.

        Raises ValueError for another shape or dtype.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}")
        with one_thread(), torch.inference_mode():
            return np.concatenate([self.network(prepared_picture(frame)).numpy() for frame in frames])

    def embed_groups(self, groups: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """``embed_pictures`` of every clip's frames."""
        return side_by_side(self.embed_pictures, groups, self.num_threads)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """(len(texts), D) float32, rows of length 1: the sum of the directions of the classes that a text names.

        Raises EncoderError for a text that names none.
        """
        rows_ND = np.zeros((len(texts), self.width), np.float32)
        for index, text in enumerate(texts):
            names = [name for name in classes_named(text) if name in self.classes]
            if not names:
                raise EncoderError(
                    f"{MODEL_NAME} knows no class in the text {text!r}; it knows: {', '.join(sorted(WORDS))}"
                )
            sum_D = sum(self.tower.directions_KD[self.classes.index(name)] for name in names)
            rows_ND[index] = sum_D / np.linalg.norm(sum_D)
        return rows_ND


_PHRASE = re.compile(
    r"\b(?:" + "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


def classes_named(text: str) -> tuple[str, ...]:
    """The classes that a text names, each once, in the text's order. The longest phrase counts: "night sky" does not name "night"."""
    names = (WORDS[match.group().lower()] for match in _PHRASE.finditer(text.replace("_", " ")))
    return tuple(dict.fromkeys(names))


class SmallSoundEncoder:
    """Embeds sounds. The embedding of digital silence is the sounds' own axis, so its cosine with every picture is 0.

    ``num_threads``: as for :class:`SmallPictureEncoder`.
    """

    def __init__(self, path: Path, sha256: str, num_threads: int | None = None) -> None:
        self.num_threads = num_threads
        self.tower = Tower(path, "sound", num_features("sound"))
        self.encoder_id = small_id("sound", sha256)
        self.width = self.tower.width
        trained_with = self.tower.config.trained_with
        self.partner_id: str | None = None if trained_with is None else small_id("picture", trained_with)

    def embed_sounds(self, sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int) -> Floats:
        """Mono sounds of any lengths -> (len(sounds), D) float32, rows of length 1; each depends on its own sound only.

        Raises MediaError for a sound without samples, or with NaN or infinity.
        """
        if not sounds:
            return np.zeros((0, self.width), np.float32)
        for index, sound in enumerate(sounds):
            check_sound(sound, index)
        return np.stack(side_by_side(lambda sound: self._row(sound, sample_rate_hz), sounds, self.num_threads))

    @torch.inference_mode()
    def _row(self, sound: NDArray[np.float32], sample_rate_hz: int) -> Floats:
        """The embedding (D,) of a sound, from the mean of the shares of its parts."""
        shares_K = torch.zeros(len(self.tower.config.classes))
        if sound.any():
            samples = resampled(sound, sample_rate_hz, RATE_HZ)
            parts = np.array_split(samples, max(1, round(len(samples) / (RATE_HZ * WINDOW_SECONDS))))
            features, scores = zip(*(sound_features(magnitude_mel(part)) for part in parts), strict=True)
            scores_NK = torch.from_numpy(known_scores(np.stack(scores), self.tower.config.classes))
            shares_K = self.tower.shares(torch.from_numpy(np.stack(features)), scores_NK).mean(0)
        return np.asarray(self.tower.rows(shares_K[None])[0].numpy())


def known_scores(scores_NG: Floats, classes: Sequence[str]) -> Floats:
    """(N, K): the scores of the classes in ``TAGS_OF_CLASS``, put in the order of ``classes``; all others get the lowest score."""
    scores_of_class = dict(zip(TAGS_OF_CLASS, scores_NG.T, strict=True))
    lowest_N = np.full(len(scores_NG), np.log(SMALLEST_SHARE), np.float32)
    return np.stack([scores_of_class.get(name, lowest_N) for name in classes], axis=1)
