"""Fits the towers of the small pair: networks that map features of pictures and sounds to classes. Augmented versions are trained on, too.

Shape suffixes: N rows, F features, E networks, H hidden units, K classes, B rows of one step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.encoders.mel import resampled
from pipeline.encoders.small.towers import CLIP_AT, known_scores
from pipeline.encoders.small.trunks import RATE_HZ, magnitude_mel, picture_features, sound_features
from pipeline.settings import Settings
from trainer.small_pair.augment import changed_mel, changed_picture
from trainer.small_pair.material import CLIP_SECONDS, LabelledSpan
from trainer.small_pair.material import RATE_HZ as MATERIAL_RATE_HZ

Floats = NDArray[np.float32]
logger = logging.getLogger(__name__)

SOUND_CLASSES = (
    "rain", "thunder", "ocean", "river", "splashing_water", "waterfall", "underwater", "wind", "fire", "forest", "night",
    "snow", "explosion",
)  # fmt: skip
PICTURE_ONLY = ("clouds", "sunset", "night_sky", "mountain", "volcano", "geyser", "hot_spring", "canyon", "lake", "fog")
CLASSES = (*SOUND_CLASSES, *PICTURE_ONLY)
SAME_CLASS = {"aurora": "night_sky"}
"""Labels of the material that are synonyms of a class."""

AFFINITY = {
    ("snow", "wind"): 0.6, ("clouds", "wind"): 0.7, ("fog", "wind"): 0.6, ("mountain", "wind"): 0.6, ("canyon", "wind"): 0.6,
    ("sunset", "ocean"): 0.5, ("sunset", "wind"): 0.4, ("night_sky", "night"): 0.7, ("night_sky", "wind"): 0.4,
    ("night_sky", "thunder"): 0.3, ("fog", "rain"): 0.3, ("clouds", "thunder"): 0.3, ("clouds", "rain"): 0.2,
    ("lake", "river"): 0.5, ("lake", "ocean"): 0.5, ("lake", "splashing_water"): 0.3, ("volcano", "explosion"): 0.6,
    ("volcano", "fire"): 0.4, ("volcano", "thunder"): 0.2, ("geyser", "splashing_water"): 0.5, ("geyser", "waterfall"): 0.4,
    ("hot_spring", "splashing_water"): 0.6, ("mountain", "river"): 0.2, ("canyon", "waterfall"): 0.2, ("canyon", "river"): 0.3,
}  # fmt: skip
"""(class, class that is often heard there) -> cosine of their directions, chosen by hand from the meaning of the words. It links classes
of pictures without a sound of their own to classes of sounds. The second class of a pair has an axis of its own."""


class SmallFitSettings(Settings):
    """How a tower is fitted. The values were chosen by cross-validation on the training part."""

    num_changed_pictures: int = Field(8, ge=1)
    """Changed versions of each photograph."""
    num_changed_sounds: int = Field(30, ge=1)
    """Changed versions of each recording."""
    num_changed_painted_pictures: int = Field(6, ge=1)
    """Changed versions of each painted clip's pictures."""
    num_changed_painted_sounds: int = Field(2, ge=1)
    """Changed versions of each painted clip's sound."""
    painted_weight: float = Field(0.3, ge=0)
    """Weight of a painted source; a real one has 1."""
    balance: float = Field(0.75, ge=0, le=1)
    """0: the weight of a class is its number of sources. 1: all classes have the same weight."""
    num_networks: int = Field(4, ge=1)
    """Networks whose shares are averaged."""
    num_hidden: int = Field(64, ge=1)
    """Hidden units of each."""
    num_steps: int = Field(300, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(256, ge=1)
    """Rows of one step, drawn by weight."""
    learning_rate: float = Field(5e-4, gt=0)
    """Highest learning rate, in the middle of one cycle."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay of AdamW."""
    mixing: float = Field(0.4, gt=0)
    """Parameter of mixup: two rows and their classes are mixed by a share from Beta(mixing, mixing)."""
    input_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of features left out at each step."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of hidden units left out at each step."""
    picture_temperature: float = Field(0.8, gt=0)
    """Divisor of the fitted picture tower's logits. Mixup leaves networks underconfident (temperature scaling, Guo et al., 2017)."""


@dataclass(frozen=True, slots=True)
class Table:
    """Features of one side, a row for each version of a picture or sound."""

    features_NF: Floats
    scores_NK: Floats
    """Logits of the classes that the published sound network gives, in the order of CLASSES; zeros for pictures. The fitted network's
    logits are added to them."""
    targets_NK: Floats
    """Target probabilities of the classes."""
    classes_N: NDArray[np.intp]
    """Index of the label's class in CLASSES."""
    sources_N: NDArray[np.str_]
    source_weights_N: Floats
    """Weight of the row's source, which all rows of the source share."""

    def without(self, sources: Sequence[str]) -> Table:
        """The rows of all other sources."""
        is_kept_N = ~np.isin(self.sources_N, list(sources))
        return Table(*(getattr(self, column.name)[is_kept_N] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that one clip adds to a table: features (F,), scores (K,) and targets (K,) of each version."""

    label: str
    source: str
    features: list[Floats]
    scores: list[Floats]
    targets: list[Floats]
    weight: float = 1.0
    """Weight of the source: 1 for a real one."""


def class_of(label: str) -> int | None:
    """Index of the label's class in CLASSES. None: the pair does not know the label."""
    name = SAME_CLASS.get(label, label)
    return CLASSES.index(name) if name in CLASSES else None


def table_of(clips: Iterable[Rows]) -> Table:
    """The rows of all clips whose label the pair knows."""
    known = [(rows, index) for rows in clips if (index := class_of(rows.label)) is not None]
    counts = [len(rows.features) for rows, _ in known]
    return Table(
        np.stack([features_F for rows, _ in known for features_F in rows.features]),
        np.stack([scores_K for rows, _ in known for scores_K in rows.scores]),
        np.stack([targets_K for rows, _ in known for targets_K in rows.targets]),
        np.repeat([index for _, index in known], counts),
        np.repeat([rows.source for rows, _ in known], counts),
        np.repeat([rows.weight for rows, _ in known], counts).astype(np.float32),
    )


def picture_rows(clip: LabelledSpan, num_changed: int, rng: np.random.Generator, weight: float = 1.0) -> Rows:
    """Rows of the frames, and of ``num_changed`` changed versions of random frames."""
    changed = [changed_picture(clip.frames[rng.integers(len(clip.frames))], rng) for _ in range(num_changed)]
    features = [picture_features(frame) for frame in (*clip.frames, *changed)]
    num_rows = len(features)
    no_scores_K = np.zeros(len(CLASSES), np.float32)
    return Rows(clip.label, clip.source, features, [no_scores_K] * num_rows, [one_hot(clip.label)] * num_rows, weight)


def one_hot(label: str) -> Floats:
    """(K,): 1 for the label's class, else 0. Zeros for a label that the pair does not know."""
    shares_K = np.zeros(len(CLASSES), np.float32)
    if (index := class_of(label)) is not None:
        shares_K[index] = 1
    return shares_K


def mel_of(sound: Floats) -> Floats:
    """(T, M): the magnitude mel of a mono sound at the material's rate."""
    return magnitude_mel(resampled(sound, MATERIAL_RATE_HZ, RATE_HZ))


class SoundRows:
    """Makes rows of sounds and of changed versions of them.

    ``MIXED_SHARE`` of the changed versions are mixed with another sound of their class from ``mixable``; ``BACKGROUND_SHARE`` have a sound
    of any class from ``mixable`` in the background. ``folds`` maps sources to folds: only sounds of one fold are mixed.

    The target of a painted sound is its class. The target of a recording is YAMNet's own scores, so that the fit changes nothing for
    recordings: they are too few and too clean to improve on a network that was trained on two million sounds.
    """

    MIXED_SHARE = 0.3
    BACKGROUND_SHARE = 0.25

    def __init__(self, mixable: Sequence[LabelledSpan] = (), folds: Mapping[str, int] | None = None) -> None:
        self._folds = folds or {}
        self._powers = [(clip.label, clip.source, _power(mel_of(clip.sound))) for clip in mixable]

    def __call__(
        self,
        clip: LabelledSpan,
        num_changed: int,
        rng: np.random.Generator,
        weight: float = 1.0,
        *,
        painted: bool = False,
    ) -> Rows:
        """Rows of the clip's parts of ``CLIP_SECONDS``, and of ``num_changed`` changed versions of the whole clip."""
        length = round(CLIP_SECONDS * MATERIAL_RATE_HZ)
        starts = range(0, max(1, len(clip.sound) - length + 1), length)
        mels = [mel_of(clip.sound[start : start + length]) for start in starts]
        power_MT = _power(mel_of(clip.sound))
        fold = self._folds.get(clip.source)
        same_fold = [
            (label, other_MT)
            for label, source, other_MT in self._powers
            if source != clip.source and self._folds.get(source) == fold
        ]
        same_class = [other_MT for label, other_MT in same_fold if label == clip.label]
        for _ in range(num_changed):
            mixed_MT = background_MT = None
            if same_class and rng.random() < self.MIXED_SHARE:
                mixed_MT = same_class[rng.integers(len(same_class))]
            if same_fold and rng.random() < self.BACKGROUND_SHARE:
                _, background_MT = same_fold[rng.integers(len(same_fold))]
            mels.append(np.sqrt(changed_mel(power_MT, rng, mixed_MT, background_MT)).T.copy())
        features_and_tags = [sound_features(mel) for mel in mels]
        scores_NK = known_scores(np.stack([tag_scores for _, tag_scores in features_and_tags]), CLASSES)
        if painted:
            targets_NK = np.tile(one_hot(clip.label), (len(mels), 1))
        else:
            exp_scores_NK = np.exp(scores_NK)
            targets_NK = exp_scores_NK / exp_scores_NK.sum(1, keepdims=True)
        features = [features_F for features_F, _ in features_and_tags]
        return Rows(clip.label, clip.source, features, list(scores_NK), list(targets_NK), weight)


def _power(mel_TM: Floats) -> Floats:
    """(M, T): the power of a magnitude mel."""
    return np.asarray(mel_TM.T**2 + 1e-12, np.float32)


def directions() -> Floats:
    """(K, K): a unit vector for each class. Classes are orthogonal, except for the cosines in AFFINITY."""
    directions_KK = np.eye(len(CLASSES))
    for name in dict.fromkeys(name for name, _ in AFFINITY):
        index = CLASSES.index(name)
        cosines = {CLASSES.index(other): cosine for (linked, other), cosine in AFFINITY.items() if linked == name}
        shared_K = sum(cosine * directions_KK[other_index] for other_index, cosine in cosines.items())
        directions_KK[index] = shared_K + np.sqrt(1 - np.sum(shared_K**2)) * np.eye(len(CLASSES))[index]
    return directions_KK.astype(np.float32)


def row_weights(table: Table, settings: SmallFitSettings) -> Floats:
    """(N,), sum 1: the rows of a source share its weight, and rare classes get more weight (``balance``)."""
    _, source_N, num_rows_of_source = np.unique(table.sources_N, return_inverse=True, return_counts=True)
    weights_N = table.source_weights_N / num_rows_of_source[source_N]
    class_weights_K = np.bincount(table.classes_N, weights_N, len(CLASSES))
    weights_N = weights_N * class_weights_K[table.classes_N] ** -settings.balance
    return np.asarray(weights_N / weights_N.sum(), np.float32)


def fit_tower(table: Table, settings: SmallFitSettings, seed: int = 0, temperature: float = 1.0) -> dict[str, Floats]:
    """The tensors of a :class:`pipeline.encoders.small.towers.Tower`, with logits divided by ``temperature``. Equal arguments give equal
    tensors."""
    weights_N = row_weights(table, settings)
    mean_F = (weights_N[:, None] * table.features_NF).sum(0)
    deviation_F = np.sqrt((weights_N[:, None] * (table.features_NF - mean_F) ** 2).sum(0))
    # rounded to half precision, as the file stores them
    mean_F = mean_F.astype(np.float16).astype(np.float32)
    scale_F = (1 / np.maximum(deviation_F, 1e-3)).astype(np.float16).astype(np.float32)
    normalised_NF = np.clip((table.features_NF - mean_F) * scale_F, -CLIP_AT, CLIP_AT)
    networks = [
        _fit_network(
            torch.from_numpy(normalised_NF),
            torch.from_numpy(table.scores_NK),
            torch.from_numpy(table.targets_NK),
            torch.from_numpy(weights_N),
            settings,
            seed * 1000 + index,
        )
        for index in range(settings.num_networks)
    ]

    def stacked(name: str, factor: float = 1.0) -> Floats:
        return np.stack([network.state_dict()[name].numpy().T * np.float32(factor) for network in networks])

    return {
        "mean": mean_F,
        "scale": scale_F,
        "first.weight": stacked("1.weight"),
        "first.bias": stacked("1.bias"),
        "second.weight": stacked("4.weight", 1 / temperature),
        "second.bias": stacked("4.bias", 1 / temperature),
        "directions": directions(),
    }


def _fit_network(
    features_NF: Tensor, scores_NK: Tensor, targets_NK: Tensor, weights_N: Tensor, settings: SmallFitSettings, seed: int
) -> nn.Sequential:
    """Minimises cross-entropy on mixed rows (mixup: Zhang et al., 2018) with AdamW and one cycle of the learning rate."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Dropout(settings.input_dropout),
        nn.Linear(features_NF.shape[1], settings.num_hidden),
        nn.GELU("tanh"),
        nn.Dropout(settings.dropout),
        nn.Linear(settings.num_hidden, len(CLASSES)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.num_steps)
    beta = torch.distributions.Beta(settings.mixing, settings.mixing)
    num_rows = settings.num_steps * 2 * settings.batch_size
    rows = torch.multinomial(weights_N, num_rows, replacement=True).view(settings.num_steps, 2, settings.batch_size)
    for first_B, second_B in rows:
        share_B1 = beta.sample((settings.batch_size, 1))
        inputs_BF = share_B1 * features_NF[first_B] + (1 - share_B1) * features_NF[second_B]
        targets_BK = share_B1 * targets_NK[first_B] + (1 - share_B1) * targets_NK[second_B]
        scores_BK = share_B1 * scores_NK[first_B] + (1 - share_B1) * scores_NK[second_B]
        loss = -(targets_BK * (scores_BK + network(inputs_BF)).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return network.eval()


def single_threaded() -> None:
    """Sets torch and OpenCV to one thread, so that sums have one order and a run is reproducible."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
