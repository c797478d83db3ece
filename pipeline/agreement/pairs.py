"""True pairs (a clip's picture and its own sound) and wrong ones (its picture with the sound of a clip of another source and another
class), drawn from embeddings and scored by cosine.

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
"""Of more, so many are drawn: what limits a calibration is the number of sources, not of pairs."""

Label = str | Sequence[str] | None


class ClipPool:
    """The clips to calibrate on: all, or a sample that depends on their keys alone. Memory does not grow with the dataset."""

    def __init__(self, size: int = MAX_CLIPS) -> None:
        self._size = size
        self._chosen: list[tuple[float, str, str, tuple[str, ...]]] = []
        self._bound = 1.0

    def add(self, key: str, source: str, labels: Sequence[str]) -> None:
        """``source`` names the video, so that its clips are not paired with each other."""
        place = unit_interval("calibration", key)
        if place < self._bound:
            self._chosen.append((place, key, source, tuple(labels)))
            if len(self._chosen) >= 2 * self._size:
                self._trim()

    def clips(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Source and labels of each chosen clip by its key, in the order of the keys."""
        if len(self._chosen) > self._size:
            self._trim()
        return {key: (source, labels) for _, key, source, labels in sorted(self._chosen, key=lambda clip: clip[1])}

    def _trim(self) -> None:
        self._chosen = sorted(self._chosen)[: self._size]
        self._bound = self._chosen[-1][0]


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    """Pairs of a calibration, scored."""

    scores: PairScores
    labels: tuple[frozenset[str], ...]
    """Of each clip; all empty where classes are not known."""
    num_left_out: int
    num_independent: int
    """Wrong pairs in which no source's picture and no source's sound comes twice."""

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
    """True pairs and wrong ones (all, or a sample where they are many), scored by cosine. Raises as :func:`calibrate`."""
    if not picture_ND.shape == sound_ND.shape == (len(sources), *picture_ND.shape[1:2]) or len(labels) != len(sources):
        raise ValueError(
            f"embeddings must be (N, D) twice, with N sources and labels; got {picture_ND.shape}, {sound_ND.shape}, "
            f"{len(sources)} sources, {len(labels)} labels"
        )
    for name, rows in (("picture", picture_ND), ("sound", sound_ND)):
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            raise ValueError(f"the {name} embedding of clip {int(np.argmin(finite))} is not finite")
    picture, sound = _unit(picture_ND), _unit(sound_ND)
    named = [frozenset((each,) if isinstance(each, str) else each or ()) for each in labels]
    usable = picture.any(axis=1) & sound.any(axis=1)
    if any(named):
        usable &= np.asarray([bool(each) for each in named])
    kept = np.flatnonzero(usable).tolist()
    numbers = {name: i for i, name in enumerate(sorted({sources[i] for i in kept}))}
    source_N = np.asarray([numbers[sources[i]] for i in kept], np.int64)
    own = tuple(named[i] for i in kept)
    picture, sound = picture[kept], sound[kept]
    picture_M, sound_M = _wrong_pairs(source_N, own, seed)
    every = np.arange(len(kept))
    scores = PairScores(
        _cosines(picture, sound, every, every),
        source_N,
        _cosines(picture, sound, picture_M, sound_M),
        picture_M,
        sound_M,
    )
    return DrawnPairs(scores, own, len(sources) - len(kept), _num_independent(source_N, own))


def pass_shares(drawn: DrawnPairs, rule: AgreementRule) -> tuple[float | None, float | None]:
    """Shares of the true and of the wrong pairs that ``rule`` lets pass; a wrong pair is held against the limit of its picture's
    class. None: there are no such pairs."""
    limits = np.asarray([-np.inf if (limit := rule.limit(own)) is None else limit for own in drawn.labels])
    scores = drawn.scores
    true = float(np.mean(scores.matched >= limits)) if len(limits) else None
    wrong = float(np.mean(scores.mismatched >= limits[scores.pictures])) if len(scores.pictures) else None
    return true, wrong


def _wrong_pairs(source_N: Indices, labels: Sequence[frozenset[str]], seed: int) -> tuple[Indices, Indices]:
    """Pairs of clips of different sources and classes: all of them, or a sample of MAX_PAIRS."""
    num_clips = len(source_N)
    if num_clips**2 <= MAX_PAIRS:
        picture, sound = (grid.ravel() for grid in np.indices((num_clips, num_clips)))
        return _admissible(picture, sound, source_N, labels)
    rng = np.random.default_rng(seed)
    found: list[tuple[Indices, Indices]] = []
    num_found = 0
    for _ in range(20):  # where nearly all clips are of one class, a draw finds few
        drawn = rng.integers(0, num_clips, (2, MAX_PAIRS))
        found.append(_admissible(drawn[0], drawn[1], source_N, labels))
        num_found += len(found[-1][0])
        if num_found >= MAX_PAIRS:
            break
    picture, sound = (np.concatenate(each)[:MAX_PAIRS] for each in zip(*found, strict=True))
    return picture, sound


def _admissible(
    picture: Indices, sound: Indices, source_N: Indices, labels: Sequence[frozenset[str]]
) -> tuple[Indices, Indices]:
    other = np.flatnonzero(source_N[picture] != source_N[sound])
    pairs = zip(picture[other].tolist(), sound[other].tolist(), strict=True)
    apart = other[np.fromiter((labels[i].isdisjoint(labels[j]) for i, j in pairs), bool, len(other))]
    return picture[apart], sound[apart]


def _num_independent(source_N: Indices, labels: Sequence[frozenset[str]]) -> int:
    """The most wrong pairs in which no source gives two pictures or two sounds: each source of a class that has at most half
    of them gives one of each; those of a greater class find a partner only among the others (Hall's theorem).
    """
    label_of = {source: min(own, default=None) for source, own in zip(source_N.tolist(), labels, strict=True)}
    counts = Counter(label_of.values())
    if None in counts:
        return len(label_of) if len(label_of) > 1 else 0
    largest = max(counts.values(), default=0)
    return min(len(label_of), 2 * (len(label_of) - largest))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    exact = rows.astype(np.float32)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, exact / np.maximum(lengths, 1e-6), np.float32(0))
    return unit


def _cosines(picture: NDArray[np.float32], sound: NDArray[np.float32], left: Indices, right: Indices) -> Floats:
    """Cosines of the rows ``left`` and ``right``, a few thousand at a time."""
    found = np.empty(len(left), np.float64)
    for start in range(0, len(left), 4096):
        part = slice(start, start + 4096)
        found[part] = np.einsum("nd,nd->n", picture[left[part]], sound[right[part]], dtype=np.float64)
    return found
