"""The packaged pair: a picture tower and a sound tower, small networks of our own on the features of two published ones; a few MB.

Each tower turns features (:mod:`pipeline.encoders.small.trunks`) into shares of classes, by a few small networks whose
shares are averaged. A class is a direction of the space; classes that go together (clouds and wind) lie at an angle. A row is
the sum of the class directions by their shares; what is missing to length 1, because the tower is not sure, goes to an axis
that only pictures or only sounds have. So the cosine of a picture and a sound is how much of one class both are sure of, and
two towers that are sure of nothing do not agree. A text is the direction of the classes it names.

Shape suffixes: N rows, F features, E networks, H hidden units, K classes, D width of the space, T frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from pipeline.encoders.device import one_thread, side_by_side
from pipeline.encoders.mel import check_sound, resampled
from pipeline.encoders.small.trunks import (
    RATE_HZ,
    SMALLEST_SHARE,
    TAGS_OF_CLASS,
    magnitude_mel,
    num_features,
    picture_features,
    sound_features,
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
"""Raised with every change of the features: weights belong to one version of them."""
CLIP_AT = 5.0
"""Standard deviations: a feature further out than this says no more than this."""
WINDOW_SECONDS = 10.0
"""A longer sound is cut into equal parts of about this length, and their shares are averaged."""
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
"""Words and phrases that a text may use, and the class that each means."""


class SmallConfig(Settings):
    """What a tower needs besides its tensors; written into the header of its file."""

    version: Literal[1] = 1
    """Version of this format."""
    side: Literal["picture", "sound"]
    """Which tower it is."""
    features: int = FEATURES_VERSION
    """Version of the features that its networks take in."""
    classes: tuple[str, ...] = Field(min_length=1)
    """All classes of the space, those that this tower never gives included."""
    trained_with: str | None = None
    """SHA-256 of the picture tower's file (sound tower only). None: a picture tower."""

    @property
    def width(self) -> int:
        """Width of the space: an axis for each class, and one for what only pictures have, one for sounds."""
        return len(self.classes) + 2


def save_tower(path: Path, state: Mapping[str, NDArray[np.floating]], config: SmallConfig) -> None:
    """Write a tower in half precision, its config in the header: the same bytes for the same numbers."""
    from safetensors.numpy import save  # noqa: PLC0415

    half = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in sorted(state.items())}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(save(half, metadata={_METADATA_KEY: config.model_dump_json()}))
    partial.replace(path)


def read_config(path: Path, side: str) -> SmallConfig:
    """A tower's config, without its tensors. Raises EncoderError when it has none, a damaged one, or is the other tower."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, framework="np") as opened:
            text = (opened.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"{path} is no safetensors file, or a damaged one: {reason(error)}{_advice(path)}"
        ) from error
    if text is None:
        raise EncoderError(f"{path} is no tower of a small pair{_advice(path)}")
    try:
        config = SmallConfig.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'config'}: {one['msg']}" for one in error.errors())
        raise EncoderError(f"{path} has a config that cannot be used: {wrong}{_advice(path)}") from error
    if config.side != side:
        raise EncoderError(f"{path} is the {config.side} tower, wanted the {side} tower; the two files are swapped")
    if config.features != FEATURES_VERSION:
        raise EncoderError(
            f"{path} was trained on features of version {config.features}, this is version {FEATURES_VERSION}; "
            f"train it again with python -m trainer.small_pair"
        )
    return config


def _advice(path: Path) -> str:
    if path.parent == FOLDER:
        return "; it is part of the package: install hearscape again"
    return "; write it again with python -m trainer.small_pair, or name another file"


class Tower:
    """(N, F) features and (N, K) scores -> (N, D) rows of length 1."""

    def __init__(self, path: Path, side: Literal["picture", "sound"], num_features: int) -> None:
        """Raises EncoderError when the file is damaged or of another shape."""
        self.config = read_config(path, side)
        num_classes = len(self.config.classes)
        self.width = self.config.width
        state = {name: tensor.float().numpy() for name, tensor in read_state_dict(path).items()}
        num_networks = len(state["first.bias"]) if state.get("first.bias", np.zeros(())).ndim else 0
        num_hidden = state["first.bias"].shape[-1] if num_networks else 0
        wanted = {
            "mean": (num_features,),
            "scale": (num_features,),
            "first.weight": (num_networks, num_features, num_hidden),
            "first.bias": (num_networks, num_hidden),
            "second.weight": (num_networks, num_hidden, num_classes),
            "second.bias": (num_networks, num_classes),
            "directions": (num_classes, num_classes),
        }
        problems = [
            f"{name} is {'missing' if name not in state else state[name].shape}, wanted {shape}"
            for name, shape in wanted.items()
            if name not in state or state[name].shape != shape
        ]
        problems += [f"{name} is not part of a tower" for name in state if name not in wanted]
        problems += [f"{name} holds NaN or infinity" for name, values in state.items() if not np.isfinite(values).all()]
        if not problems and not state["directions"].any(axis=1).all():
            problems.append("directions has a class without a direction")
        if problems or not num_networks:
            raise EncoderError(f"{path} is no {side} tower: {'; '.join(problems[:3])}{_advice(path)}")
        self._state = state
        self.directions_KD = self._unit_directions(state["directions"])
        self._own_axis = num_classes + (0 if side == "picture" else 1)

    def _unit_directions(self, directions_KK: Floats) -> Floats:
        unit = directions_KK / np.linalg.norm(directions_KK, axis=1, keepdims=True)
        return np.pad(unit, ((0, 0), (0, 2))).astype(np.float32)

    def shares(self, features_NF: Floats, scores_NK: Floats | None = None) -> Floats:
        """(N, K), each row's sum 1: how much of each class. Row by row, so that no row depends on the others.

        ``scores_NK``: what is known of the classes without having learned it here; None: nothing.
        """
        if scores_NK is None:
            scores_NK = np.zeros((len(features_NF), len(self.config.classes)), np.float32)
        return np.stack([self._shares_of_one(*row) for row in zip(features_NF, scores_NK, strict=True)])

    def _shares_of_one(self, features_F: Floats, scores_K: Floats) -> Floats:
        state = self._state
        standard_F = np.clip((features_F - state["mean"]) * state["scale"], -CLIP_AT, CLIP_AT)
        hidden_EH = np.einsum("f,efh->eh", standard_F, state["first.weight"], optimize=False) + state["first.bias"]
        hidden_EH = hidden_EH * 0.5 * (1 + np.tanh(0.7978845608 * (hidden_EH + 0.044715 * hidden_EH**3)))  # GELU
        logits_EK = np.einsum("eh,ehk->ek", hidden_EH, state["second.weight"], optimize=False) + state["second.bias"]
        logits_EK = logits_EK + scores_K
        raised_EK = np.exp(logits_EK - logits_EK.max(1, keepdims=True))
        return np.asarray((raised_EK / raised_EK.sum(1, keepdims=True)).mean(0), np.float32)

    def rows(self, shares_NK: Floats) -> Floats:
        """(N, D) of length 1: the classes' directions by their shares, and the axis of what is not known."""
        directions_KD = self.directions_KD.astype(np.float64)
        rows_ND = np.stack([share_K @ directions_KD for share_K in shares_NK.astype(np.float64)])
        known_N = np.minimum((rows_ND**2).sum(1), 1.0)
        rows_ND[:, self._own_axis] = np.sqrt(1.0 - known_N)
        return np.asarray(rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), np.float32)


def small_id(side: str, sha256: str) -> str:
    """``encoder_id`` of a tower: its config lies in the same file as its weights."""
    return f"{MODEL_NAME}-{stable_hash('small', side, sha256, FEATURES_VERSION, length=12)}"


class SmallPictureEncoder:
    """The picture tower, and the text side. Runs on a CPU whatever the device: its networks are small.

    ``num_threads``: clips that are embedded side by side. None: as many as torch has threads.
    """

    def __init__(self, path: Path, sha256: str, num_threads: int | None = None) -> None:
        self.num_threads = num_threads
        self.tower = Tower(path, "picture", num_features("picture"))
        self.encoder_id = small_id("picture", sha256)
        self.width = self.tower.width
        self.classes = self.tower.config.classes

    def embed_pictures(self, frames: NDArray[np.uint8]) -> Floats:
        """RGB frames (N, H, W, 3) uint8 of any size -> (N, D) float32, rows of length 1."""
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}")
        with one_thread():
            features_NF = np.stack([picture_features(frame) for frame in frames])
        return self.tower.rows(self.tower.shares(features_NF))

    def embed_groups(self, groups: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """``embed_pictures`` of every clip's frames."""
        return side_by_side(self.embed_pictures, groups, self.num_threads)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """(len(texts), D) float32, rows of length 1: the direction of the classes that a text names.

        Raises EncoderError for a text that names none.
        """
        rows_ND = np.zeros((len(texts), self.width), np.float32)
        for index, text in enumerate(texts):
            named = [name for name in classes_named(text) if name in self.classes]
            if not named:
                raise EncoderError(
                    f"{MODEL_NAME} knows no class in the text {text!r}; it knows: {', '.join(sorted(WORDS))}"
                )
            total = sum(self.tower.directions_KD[self.classes.index(name)] for name in named)
            rows_ND[index] = total / np.linalg.norm(total)
        return rows_ND


_PHRASE = re.compile(
    r"\b(?:" + "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


def classes_named(text: str) -> tuple[str, ...]:
    """The classes that a text names, in its order, each once; the longest phrase wins: "night sky" is not "night"."""
    found = (WORDS[match.group().lower()] for match in _PHRASE.finditer(text.replace("_", " ")))
    return tuple(dict.fromkeys(found))


class SmallSoundEncoder:
    """The sound tower. Digital silence has a share of no class: it lies on the sounds' own axis, at 0 to every picture.

    ``num_threads``: as of :class:`SmallPictureEncoder`.
    """

    def __init__(self, path: Path, sha256: str, num_threads: int | None = None) -> None:
        self.num_threads = num_threads
        self.tower = Tower(path, "sound", num_features("sound"))
        self.encoder_id = small_id("sound", sha256)
        self.width = self.tower.width
        trained_with = self.tower.config.trained_with
        self.partner_id: str | None = None if trained_with is None else small_id("picture", trained_with)

    def embed_sounds(self, sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int) -> Floats:
        """Mono sounds of any lengths -> (len(sounds), D) float32, rows of length 1, none depending on another.

        Raises MediaError for a sound without samples, or with NaN or infinity.
        """
        if not sounds:
            return np.zeros((0, self.width), np.float32)
        for index, sound in enumerate(sounds):
            check_sound(sound, index)
        shares_NK = side_by_side(lambda sound: self._shares(sound, sample_rate_hz), sounds, self.num_threads)
        return self.tower.rows(np.stack(shares_NK))

    def _shares(self, sound: NDArray[np.float32], sample_rate_hz: int) -> Floats:
        if not sound.any():
            return np.zeros(len(self.tower.config.classes), np.float32)
        own_rate = resampled(sound, sample_rate_hz, RATE_HZ)
        parts = np.array_split(own_rate, max(1, round(len(own_rate) / (RATE_HZ * WINDOW_SECONDS))))
        heard = [sound_features(magnitude_mel(part)) for part in parts]
        features_NF, scores_NK = (np.stack(rows) for rows in zip(*heard, strict=True))
        return np.asarray(
            self.tower.shares(features_NF, known_scores(scores_NK, self.tower.config.classes)).mean(0), np.float32
        )


def known_scores(scores_NT: Floats, classes: Sequence[str]) -> Floats:
    """(N, K): the scores of the classes that tags mean, and the lowest one for all others."""
    known = dict(zip(TAGS_OF_CLASS, scores_NT.T, strict=True))
    nothing_N = np.full(len(scores_NT), np.log(SMALLEST_SHARE), np.float32)
    return np.stack([known.get(name, nothing_N) for name in classes], axis=1)
