"""Draws true pairs (a clip's picture and its own sound) and wrong pairs (its picture and the sound of a clip of another source and
class), and scores them by the cosine of their embeddings.

Shape suffixes: N clips, D width of the space, M wrong pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.roc import Floats, Indices, PairScores
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.schema import unit_interval

MAX_CLIPS = 20_000
MAX_PAIRS = 200_000
"""Of more clips or pairs, so many are drawn: the precision of a calibration is limited by the number of sources."""

Label = str | Sequence[str] | None
"""The label of a clip, its labels, or None if it has none."""


class ClipPool:
    """Draws the clips to calibrate on: all clips, or the ``size`` clips whose keys have the smallest hashes.

    Memory does not grow with the dataset.
    """

    def __init__(self, size: int = MAX_CLIPS) -> None:
        self._size = size
        self._drawn: list[tuple[float, str, str, tuple[str, ...]]] = []
        """Hash of the key (0..1), key, source and labels."""
        self._largest_hash = 1.0
        """Clips whose hash is not below this are not drawn."""

    def add(self, key: str, source: str, labels: Sequence[str]) -> None:
        """Adds a clip. ``source`` identifies its video: clips of one video are not paired with each other."""
        key_hash = unit_interval("calibration", key)
        if key_hash < self._largest_hash:
            self._drawn.append((key_hash, key, source, tuple(labels)))
            if len(self._drawn) >= 2 * self._size:
                self._trim()

    def clips(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Source and labels of each drawn clip by its key, in the order of the keys."""
        if len(self._drawn) > self._size:
            self._trim()
        return {key: (source, labels) for _, key, source, labels in sorted(self._drawn, key=lambda clip: clip[1])}

    def _trim(self) -> None:
        self._drawn = sorted(self._drawn)[: self._size]
        self._largest_hash = self._drawn[-1][0]


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    """The scored pairs of a calibration."""

    scores: PairScores
    labels: tuple[frozenset[str], ...]
    """Labels of each clip. All are empty if no clip has a label."""
    num_left_out: int
    """Clips with an embedding of length 0, or without a label although others have one."""
    num_independent: int
    """Largest number of wrong pairs in which no source gives two pictures or two sounds."""

    @property
    def num_sources(self) -> int:
        return len(set(self.scores.sources.tolist()))


def draw_scores(
    picture_ND: NDArray[np.floating],
    sound_ND: NDArray[np.floating],
    sources: Sequence[str],
    labels: Sequence[Label],
    seed: int = 0,
) -> DrawnPairs:
    """True and wrong pairs, scored by cosine; of many wrong pairs MAX_PAIRS are drawn.

    The arguments are as in :func:`pipeline.agreement.calibration.calibrate`.

    Raises ValueError for arrays of different lengths or not finite.
    """
    if not picture_ND.shape == sound_ND.shape == (len(sources), *picture_ND.shape[1:2]) or len(labels) != len(sources):
        raise ValueError(
            f"embeddings must be (N, D) twice, with N sources and labels; got {picture_ND.shape}, {sound_ND.shape}, "
            f"{len(sources)} sources, {len(labels)} labels"
        )
    for name, rows in (("picture", picture_ND), ("sound", sound_ND)):
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            raise ValueError(f"the {name} embedding of clip {int(np.argmin(finite))} is not finite")
    picture, sound = _unit(picture_ND), _unit(sound_ND)
    label_sets = [frozenset((label,) if isinstance(label, str) else label or ()) for label in labels]
    usable = picture.any(axis=1) & sound.any(axis=1)
    if any(label_sets):
        usable &= np.asarray([bool(label_set) for label_set in label_sets])
    clips = np.flatnonzero(usable).tolist()
    numbers = {name: i for i, name in enumerate(sorted({sources[i] for i in clips}))}
    source_N = np.asarray([numbers[sources[i]] for i in clips], np.int64)
    labels_N = tuple(label_sets[i] for i in clips)
    picture, sound = picture[clips], sound[clips]
    picture_M, sound_M = _wrong_pairs(source_N, labels_N, seed)
    index_N = np.arange(len(clips))
    scores = PairScores(
        _cosines(picture, sound, index_N, index_N),
        source_N,
        _cosines(picture, sound, picture_M, sound_M),
        picture_M,
        sound_M,
    )
    return DrawnPairs(scores, labels_N, len(sources) - len(clips), _num_independent(source_N, labels_N))


def pass_shares(drawn: DrawnPairs, rule: AgreementRule) -> tuple[float | None, float | None]:
    """Shares of the true and of the wrong pairs that pass ``rule``, 0..1; None: there are no such pairs.

    A wrong pair is compared with the limit of its picture's class.
    """
    limits = np.asarray([-np.inf if (limit := rule.limit(labels)) is None else limit for labels in drawn.labels])
    scores = drawn.scores
    true = float(np.mean(scores.matched >= limits)) if len(limits) else None
    wrong = float(np.mean(scores.mismatched >= limits[scores.pictures])) if len(scores.pictures) else None
    return true, wrong


def _wrong_pairs(source_N: Indices, labels: Sequence[frozenset[str]], seed: int) -> tuple[Indices, Indices]:
    """Pairs of clips of different sources and classes, as indexes of picture and sound: all of them, or MAX_PAIRS drawn ones."""
    num_clips = len(source_N)
    if num_clips**2 <= MAX_PAIRS:
        picture, sound = (grid.ravel() for grid in np.indices((num_clips, num_clips)))
        return _admissible(picture, sound, source_N, labels)
    rng = np.random.default_rng(seed)
    parts: list[tuple[Indices, Indices]] = []
    num_pairs = 0
    for _ in range(20):  # several draws: if nearly all clips are of one class, few pairs are admissible
        drawn = rng.integers(0, num_clips, (2, MAX_PAIRS))
        parts.append(_admissible(drawn[0], drawn[1], source_N, labels))
        num_pairs += len(parts[-1][0])
        if num_pairs >= MAX_PAIRS:
            break
    picture, sound = (np.concatenate(part)[:MAX_PAIRS] for part in zip(*parts, strict=True))
    return picture, sound


def _admissible(
    picture: Indices, sound: Indices, source_N: Indices, labels: Sequence[frozenset[str]]
) -> tuple[Indices, Indices]:
    """The pairs whose sources and classes differ."""
    candidates = np.flatnonzero(source_N[picture] != source_N[sound])
    pairs = zip(picture[candidates].tolist(), sound[candidates].tolist(), strict=True)
    rows = candidates[np.fromiter((labels[i].isdisjoint(labels[j]) for i, j in pairs), bool, len(candidates))]
    return picture[rows], sound[rows]


def _num_independent(source_N: Indices, labels: Sequence[frozenset[str]]) -> int:
    """Largest number of wrong pairs in which no source gives two pictures or two sounds (by Hall's theorem).

    If no class has more than half of the sources, every source gives one picture and one sound. The sources of a larger class find
    partners only among the other sources.
    """
    label_of = {
        source: min(own_labels, default=None) for source, own_labels in zip(source_N.tolist(), labels, strict=True)
    }
    counts = Counter(label_of.values())
    if None in counts:
        return len(label_of) if len(label_of) > 1 else 0
    largest = max(counts.values(), default=0)
    return min(len(label_of), 2 * (len(label_of) - largest))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1; those shorter than 1e-6 become 0."""
    float_rows = rows.astype(np.float32)
    lengths = np.linalg.norm(float_rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, float_rows / np.maximum(lengths, 1e-6), np.float32(0))
    return unit


def _cosines(picture: NDArray[np.float32], sound: NDArray[np.float32], pictures: Indices, sounds: Indices) -> Floats:
    """Cosines of the rows ``pictures`` of ``picture`` and ``sounds`` of ``sound``, computed in blocks to limit the memory."""
    cosines = np.empty(len(pictures), np.float64)
    for start in range(0, len(pictures), 4096):
        block = slice(start, start + 4096)
        cosines[block] = np.einsum("nd,nd->n", picture[pictures[block]], sound[sounds[block]], dtype=np.float64)
    return cosines
