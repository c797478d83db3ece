"""Measures a small pair: accuracy and agreement on pictures and sounds that it was not trained on, with intervals.

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
    MIN_SECONDS,
    RATE_HZ,
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
"""Resamples of a bootstrap over sources."""


@dataclass(frozen=True, slots=True)
class EmbeddedClips:
    """Embeddings of clips that have pictures and sound: unit rows."""

    picture_ND: Floats
    sound_ND: Floats
    sources: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N,): the agreement of each clip, the cosine of its picture and its sound."""
        return np.asarray(np.einsum("nd,nd->n", self.picture_ND, self.sound_ND, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers, with its 95 % interval."""

    share: float
    low: float
    high: float
    num_sources: int
    per_class: dict[str, tuple[int, int]]
    """Label -> number of right answers, number of answers."""


class Towers:
    """Both encoders of a pair."""

    def __init__(self, picture: SmallPictureEncoder, sound: SmallSoundEncoder) -> None:
        self.picture, self.sound = picture, sound

    def embed_frames(self, frames: Sequence[NDArray[np.uint8]]) -> Floats:
        """(D,): the mean embedding of up to eight frames spread over a clip, as in a build."""
        indices = np.linspace(0, len(frames) - 1, min(FRAMES_PER_CLIP, len(frames))).round().astype(int)
        rows = [self.picture.embed_pictures(frames[index][np.newaxis])[0] for index in indices]
        return mean_embedding(np.stack(rows))

    def embed_sound(self, sound: Floats) -> Floats:
        """(D,): the embedding of a mono sound at ``RATE_HZ``."""
        return np.asarray(self.sound.embed_sounds([sound], RATE_HZ)[0])


TowersOf = Callable[[str], Towers]
"""Maps a source to a pair that was not trained on it."""


def embed_clips(towers_of: TowersOf, clips: Sequence[LabelledSpan]) -> EmbeddedClips:
    """Embeds each clip with the pair that was not trained on its source."""
    return EmbeddedClips(
        np.stack([towers_of(clip.source).embed_frames(clip.frames) for clip in clips]),
        np.stack([towers_of(clip.source).embed_sound(clip.sound) for clip in clips]),
        tuple(clip.source for clip in clips),
        tuple((clip.label,) for clip in clips),
    )


def natural_clips(items: Sequence[Item]) -> list[LabelledSpan]:
    """The clips of videos whose sound was recorded with the picture, with at least ``MIN_SECONDS`` of sound."""
    videos = (item for item in items if item.kind == "landscape" and item.natural)
    return [clip for item in videos for clip in read_video_clips(item) if len(clip.sound) >= MIN_SECONDS * RATE_HZ]


def embed_pairs(towers_of: TowersOf, material: Material, *, match: bool) -> EmbeddedClips | None:
    """The pairs of pairs.csv that match, or those that do not. None: there are none."""
    pairs = [pair for pair in material.pairs if pair.match == match]
    if not pairs:
        return None
    pictures = [towers_of(pair.video.source).embed_frames(read_video_clips(pair.video)[0].frames) for pair in pairs]
    sounds = [towers_of(pair.sound.source).embed_sound(read_sound(pair.sound.path)[: 10 * RATE_HZ]) for pair in pairs]
    return EmbeddedClips(
        np.stack(pictures),
        np.stack(sounds),
        tuple(pair.video.source for pair in pairs),
        tuple(tuple({pair.video.label, pair.sound.label}) for pair in pairs),
    )


def together(*parts: EmbeddedClips | None) -> EmbeddedClips:
    """The clips of all parts that are not None."""
    given = [part for part in parts if part is not None]
    return EmbeddedClips(
        np.concatenate([part.picture_ND for part in given]),
        np.concatenate([part.sound_ND for part in given]),
        tuple(source for part in given for source in part.sources),
        tuple(labels for part in given for labels in part.labels),
    )


def calibrated(clips: EmbeddedClips, encoder_id: str) -> Calibration | None:
    """The calibration of clips with their own sounds against those with sounds of other sources and classes. None: too few sources."""
    pair_scores = draw_scores(clips.picture_ND, clips.sound_ND, clips.sources, clips.labels)
    try:
        return calibration_of(pair_scores, encoder_id)
    except CalibrationError:
        return None


def accuracy(
    rows_ND: Floats, directions_KD: Floats, classes: Sequence[int], labels: Sequence[str], sources: Sequence[str]
) -> Share:
    """How often the nearest of ``classes`` (indices of directions) is the label's class. Each source has the same weight."""
    nearest_N = np.asarray(classes)[(rows_ND @ directions_KD[list(classes)].T).argmax(1)]
    is_right_N = np.asarray(
        [class_of(label) == nearest for label, nearest in zip(labels, nearest_N, strict=True)], np.float64
    )
    names, source_N = np.unique(np.asarray(sources), return_inverse=True)
    share_of_source = np.bincount(source_N, is_right_N) / np.bincount(source_N)
    num_sources = len(names)
    rng = np.random.default_rng(0)
    resampled = [share_of_source[rng.integers(0, num_sources, num_sources)].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    per_class = {}
    for label in sorted(set(labels)):
        is_label_N = np.asarray(labels) == label
        per_class[label] = (round(is_right_N[is_label_N].sum()), int(is_label_N.sum()))
    return Share(float(share_of_source.mean()), float(low), float(high), num_sources, per_class)


Embedded = tuple[Floats, list[str], list[str]]
"""Embeddings (N, D), labels and sources of photographs or recordings."""


def crossed(pictures: Embedded, sounds: Embedded) -> tuple[float, float, float]:
    """AUC of pairs of one class against pairs of two classes, among all pictures with all sounds, and its 95 % interval (low, high).

    Pictures whose class no sound has are left out. Pictures' and sounds' sources are resampled independently.
    """
    (picture_rows_ND, picture_labels, picture_sources), (sound_rows_ND, sound_labels, sound_sources) = pictures, sounds
    scores = picture_rows_ND.astype(np.float64) @ sound_rows_ND.T
    is_same_class = np.asarray(picture_labels)[:, None] == np.asarray(sound_labels)[None]
    has_sounds = np.isin(np.asarray(picture_labels), np.asarray(sound_labels))
    rng = np.random.default_rng(0)

    def resample(source_of_row: NDArray[np.intp]) -> NDArray[np.intp]:
        """Indices of rows, from whole sources that are drawn with replacement."""
        num_sources = source_of_row.max() + 1
        num_drawn = np.bincount(rng.integers(0, num_sources, num_sources), minlength=num_sources)
        return np.repeat(np.arange(len(source_of_row)), num_drawn[source_of_row])

    picture_source_N = np.unique(np.asarray(picture_sources), return_inverse=True)[1]
    sound_source_N = np.unique(np.asarray(sound_sources), return_inverse=True)[1]
    areas = []
    for _ in range(NUM_RESAMPLES // 4):
        rows, columns = resample(picture_source_N), resample(sound_source_N)
        chosen = np.ix_(rows[has_sounds[rows]], columns)
        chosen_scores, is_matched = scores[chosen], is_same_class[chosen]
        if is_matched.any() and not is_matched.all():
            areas.append(auc(chosen_scores[is_matched], chosen_scores[~is_matched]))
    low, high = np.quantile(areas, (0.025, 0.975))
    usable_scores, is_matched = scores[has_sounds], is_same_class[has_sounds]
    return auc(usable_scores[is_matched], usable_scores[~is_matched]), float(low), float(high)


def embed_photos(towers_of: TowersOf, items: Sequence[Item]) -> Embedded:
    """The photographs of known classes, each embedded by the pair that was not trained on its source."""
    photos = [item for item in items if item.kind == "photo" and class_of(item.label) is not None]
    rows_ND = np.stack([towers_of(item.source).embed_frames([read_photo(item.path)]) for item in photos])
    return rows_ND, [item.label for item in photos], [item.source for item in photos]


def embed_recordings(towers_of: TowersOf, items: Sequence[Item]) -> Embedded:
    """The first 10 s of the recordings of known classes, each embedded by the pair that was not trained on its source."""
    sounds = [item for item in items if item.kind == "sound" and class_of(item.label) is not None]
    rows_ND = np.stack([towers_of(item.source).embed_sound(read_sound(item.path)[: 10 * RATE_HZ]) for item in sounds])
    return rows_ND, [item.label for item in sounds], [item.source for item in sounds]
