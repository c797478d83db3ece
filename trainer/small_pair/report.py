"""Quality of a small pair: accuracy and agreement on pictures and sounds that it has not learned from, with intervals.

Shape suffixes: N clips or files, D width of the space, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.calibration import calibration_of
from pipeline.agreement.pairs import draw_scores
from pipeline.agreement.roc import auc
from pipeline.encoders.small.towers import SmallPictureEncoder, SmallSoundEncoder
from pipeline.encoders.vectors import mean_embedding
from pipeline.errors import CalibrationError
from pipeline.judge.agreement_rule import Calibration
from trainer.small_pair.fit import class_of
from trainer.small_pair.material import (
    RATE_HZ,
    SHORTEST_SECONDS,
    Item,
    LabelledSpan,
    Material,
    read_photo,
    read_sound,
    read_video_clips,
)

Floats = NDArray[np.float32]

FRAMES_PER_CLIP = 8
NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class EmbeddedClips:
    """Clips with pictures and sound, embedded."""

    picture_ND: Floats
    sound_ND: Floats
    sources: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def scores(self) -> NDArray[np.float64]:
        return np.asarray(np.einsum("nd,nd->n", self.picture_ND, self.sound_ND, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers with its 95 % interval. ``per_class``: numbers of right answers and of all answers."""

    share: float
    low: float
    high: float
    count: int
    per_class: dict[str, tuple[int, int]]


class Towers:
    """Both encoders of a pair."""

    def __init__(self, picture: SmallPictureEncoder, sound: SmallSoundEncoder) -> None:
        self.picture, self.sound = picture, sound

    def see(self, frames: Sequence[NDArray[np.uint8]]) -> Floats:
        """(D,): up to eight frames spread over a clip, as a build takes them."""
        places = np.linspace(0, len(frames) - 1, min(FRAMES_PER_CLIP, len(frames))).round().astype(int)
        rows = [self.picture.embed_pictures(frames[place][np.newaxis])[0] for place in places]
        return mean_embedding(np.stack(rows))

    def hear(self, sound: Floats) -> Floats:
        return np.asarray(self.sound.embed_sounds([sound], RATE_HZ)[0])


TowersOf = Callable[[str], Towers]
"""The pair that never learned from a source."""


def embed_clips(towers_of: TowersOf, clips: Sequence[LabelledSpan]) -> EmbeddedClips:
    return EmbeddedClips(
        np.stack([towers_of(clip.source).see(clip.frames) for clip in clips]),
        np.stack([towers_of(clip.source).hear(clip.sound) for clip in clips]),
        tuple(clip.source for clip in clips),
        tuple((clip.label,) for clip in clips),
    )


def natural_clips(items: Sequence[Item]) -> list[LabelledSpan]:
    """The clips of videos whose sound is of what is seen."""
    videos = (item for item in items if item.kind == "landscape" and item.natural)
    return [clip for item in videos for clip in read_video_clips(item) if len(clip.sound) >= SHORTEST_SECONDS * RATE_HZ]


def embed_pairs(towers_of: TowersOf, material: Material, *, match: bool) -> EmbeddedClips | None:
    """The pairs of pairs.csv that match, or those that do not. None: there are none."""
    pairs = [pair for pair in material.pairs if pair.match == match]
    if not pairs:
        return None
    sounds = [towers_of(pair.sound.source).hear(read_sound(pair.sound.path)[: 10 * RATE_HZ]) for pair in pairs]
    return EmbeddedClips(
        np.stack([towers_of(pair.video.source).see(read_video_clips(pair.video)[0].frames) for pair in pairs]),
        np.stack(sounds),
        tuple(pair.video.source for pair in pairs),
        tuple(tuple({pair.video.label, pair.sound.label}) for pair in pairs),
    )


def together(*parts: EmbeddedClips | None) -> EmbeddedClips:
    """The clips of all parts that are not None."""
    clips = [part for part in parts if part is not None]
    return EmbeddedClips(
        np.concatenate([part.picture_ND for part in clips]),
        np.concatenate([part.sound_ND for part in clips]),
        tuple(source for part in clips for source in part.sources),
        tuple(labels for part in clips for labels in part.labels),
    )


def calibrated(clips: EmbeddedClips, encoder_id: str) -> Calibration | None:
    """Calibration of own sounds against sounds of other sources and classes. None: too few sources."""
    drawn = draw_scores(clips.picture_ND, clips.sound_ND, clips.sources, clips.labels)
    try:
        return calibration_of(drawn, encoder_id)
    except CalibrationError:
        return None


def accuracy(
    rows_ND: Floats, directions_KD: Floats, places_K: Sequence[int], labels: Sequence[str], sources: Sequence[str]
) -> Share:
    """How often the nearest of the classes ``places_K`` is the label's; resampled over sources, each weighing the same."""
    nearest = np.asarray(places_K)[(rows_ND @ directions_KD[list(places_K)].T).argmax(1)]
    right = np.asarray([class_of(label) == place for label, place in zip(labels, nearest, strict=True)], np.float64)
    names, of_source = np.unique(np.asarray(sources), return_inverse=True)
    each = np.bincount(of_source, right) / np.bincount(of_source)
    rng = np.random.default_rng(0)
    drawn = [each[rng.integers(0, len(each), len(each))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    per_class = {
        label: (round(sum(r for r, own in zip(right, labels, strict=True) if own == label)), list(labels).count(label))
        for label in sorted(set(labels))
    }
    return Share(float(each.mean()), float(low), float(high), len(names), per_class)


def crossed(
    pictures: tuple[Floats, Sequence[str], Sequence[str]], sounds: tuple[Floats, Sequence[str], Sequence[str]]
) -> tuple[float, float, float]:
    """AUC, low and high end, of all pictures against all sounds: of one class against of two; (rows, labels, sources) each."""
    scores = pictures[0].astype(np.float64) @ sounds[0].T
    same = np.asarray(pictures[1])[:, None] == np.asarray(sounds[1])[None]
    named = np.isin(np.asarray(pictures[1]), np.asarray(sounds[1]))
    rng = np.random.default_rng(0)
    groups = [np.unique(np.asarray(side[2]), return_inverse=True)[1] for side in (pictures, sounds)]
    found = []
    for _ in range(NUM_RESAMPLES // 4):
        chosen = []
        for group in groups:
            count = np.bincount(rng.integers(0, group.max() + 1, group.max() + 1), minlength=group.max() + 1)
            chosen.append(np.repeat(np.arange(len(group)), count[group]))
        rows = chosen[0][named[chosen[0]]]
        some, own = scores[np.ix_(rows, chosen[1])], same[np.ix_(rows, chosen[1])]
        if own.any() and not own.all():
            found.append(auc(some[own], some[~own]))
    low, high = np.quantile(found, (0.025, 0.975))
    return auc(scores[named][same[named]], scores[named][~same[named]]), float(low), float(high)


def held_out_photos(towers_of: TowersOf, items: Sequence[Item]) -> tuple[Floats, list[str], list[str]]:
    photos = [item for item in items if item.kind == "photo" and class_of(item.label) is not None]
    rows = np.stack([towers_of(item.source).see([read_photo(item.path)]) for item in photos])
    return rows, [item.label for item in photos], [item.source for item in photos]


def held_out_sounds(towers_of: TowersOf, items: Sequence[Item]) -> tuple[Floats, list[str], list[str]]:
    sounds = [item for item in items if item.kind == "sound" and class_of(item.label) is not None]
    rows = np.stack([towers_of(item.source).hear(read_sound(item.path)[: 10 * RATE_HZ]) for item in sounds])
    return rows, [item.label for item in sounds], [item.source for item in sounds]
