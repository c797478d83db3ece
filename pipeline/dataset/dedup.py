"""Near-duplicates across the dataset, by perceptual fingerprints of picture and sound.

*Duplicates* are alike in picture and sound: the better one stays. *Related* clips are very alike in picture or in sound
(the same recording with another picture, the same scene with another sound): both may stay, in one split.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.dataset.neighbours import CappedBuckets, ClipHashes, pack, picture_candidates, sound_candidates, unpack
from pipeline.measure.fingerprint import STEP_SECONDS, parse_picture, parse_sound, picture_distance, sound_distance
from pipeline.schema import Reason, Verdict
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

_PAIR_BLOCK = 1 << 12
_MIN_DURATION_RATIO = 0.5
_SOUND_SPAN_STEPS = 11
"""A sound of n words spans n + 10.5 steps: its last word is computed from two windows."""


class DedupSettings(Settings):
    """When two clips are the same. A share is that of differing bits: 0 is identical, unrelated clips are near 0.45."""

    reject_duplicates: bool = True
    """Reject the worse one of two clips that are alike in picture and sound. False: both stay, in one split."""
    relate_by_picture: bool = True
    """Keep clips in one split when their pictures alone are very alike."""
    relate_by_sound: bool = True
    """Keep clips in one split when their sounds alone are very alike."""
    picture_share: float = Field(default=0.18, ge=0, le=0.5)
    """Largest share of differing bits in the pictures of duplicates. Re-encoded: below 0.05; unrelated: above 0.21."""
    sound_share: float = Field(default=0.30, ge=0, le=0.5)
    """Largest share of differing bits in the sounds of duplicates. Re-encoded: below 0.25; unrelated: above 0.32."""
    strong_picture_share: float = Field(default=0.13, ge=0, le=0.5)
    """Clips whose pictures differ in at most this share of bits are related, whatever their sounds are."""
    strong_sound_share: float = Field(default=0.25, ge=0, le=0.5)
    """Clips whose sounds differ in at most this share of bits are related, whatever their pictures are."""
    max_shift_seconds: float = Field(default=5.0, ge=0)
    """Largest shift of two sounds against each other when they are compared. Half a clip finds every re-cut copy."""
    min_overlap_seconds: float = Field(default=3.0, ge=1.2)
    """Sounds that overlap by less than this do not match. Silent parts do not count."""
    max_neighbours: int = Field(default=64, ge=1)
    """Each hash is compared with at most this many similar ones. This bounds the work where many clips are alike."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A clip as :func:`find_duplicates` compares it."""

    key: str
    source_id: str
    picture_hash: str
    sound_hash: str
    duration_ms: int
    quality: tuple[float, ...] = ()
    """Of two duplicates the one with the larger tuple stays; if equal, the one with the smaller key. Of equal length for all clips."""
    stretch: str = ""
    """Identifies the file and the stretch of it that the clip is cut from. Clips of equal stretch are duplicates, whatever their hashes
    are. Empty: unknown."""


@dataclass(frozen=True)
class Duplicates:
    """Result of :func:`find_duplicates`."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The rejected clips, by key, in the order of the keys."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Groups of two or more clips that must share a split: their keys, sorted. Rejected clips are included."""


@dataclass(frozen=True)
class _Clips:
    keys: list[str]
    hashes: ClipHashes
    durations_ms: NDArray[np.int64]
    ranks: NDArray[np.int64]
    """Rank of each clip by quality: 0 for the best one."""
    stretches: list[str]


@dataclass(frozen=True)
class _Edges:
    """Pairs (a, b) of rows that are alike: one entry per pair."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    picture: NDArray[np.float32]
    """Share of differing bits in the pictures. NaN: not comparable."""
    sound: NDArray[np.float32]
    """Share of differing bits in the sounds. NaN: not comparable."""
    duplicate: NDArray[np.bool_]
    """Whether one of the two is to be rejected."""


def find_duplicates(fingerprints: Iterable[Fingerprint], settings: DedupSettings) -> Duplicates:
    """Compare every clip with every candidate of a match. The order of the input does not matter.

    Raises ValueError if a key occurs twice or a hash is not hexadecimal.
    """
    if not (settings.reject_duplicates or settings.relate_by_picture or settings.relate_by_sound):
        return Duplicates()
    clips = _read(fingerprints)
    rejected, copies = _reject_copies(clips) if settings.reject_duplicates else ({}, np.zeros(0, np.uint64))
    related = [copies]
    rows = np.setdiff1d(np.arange(len(clips.keys)), np.fromiter(rejected, np.int64))
    cap = settings.max_neighbours
    while True:
        capped = CappedBuckets()
        edges = _find_edges(clips, rows, settings, capped)
        related.append(pack(edges.a, edges.b))
        if not settings.reject_duplicates:
            break
        losers = _reject(clips, edges, settings)
        rejected |= losers
        # A clip with `cap` matches may have more copies than were compared with it: compare the remaining clips again.
        max_matches = np.bincount(np.concatenate([edges.a, edges.b])).max(initial=0)
        if not losers or max_matches < cap:
            break
        rows = rows[~np.isin(rows, np.fromiter(losers, np.int64))]
    return Duplicates(
        verdicts={clips.keys[row]: rejected[row] for row in sorted(rejected)},
        groups=_groups(clips.keys, np.unique(np.concatenate(related))),
    )


def _read(fingerprints: Iterable[Fingerprint]) -> _Clips:
    keys: list[str] = []
    qualities: list[tuple[float, ...]] = []
    stretches: list[str] = []
    durations, source_numbers, num_frames, num_words = [], [], [], []
    numbers: dict[str, int] = {}
    picture, sound = bytearray(), bytearray()
    for clip in fingerprints:
        frames, words = parse_picture(clip.picture_hash), parse_sound(clip.sound_hash)
        picture += frames.tobytes()
        sound += words.tobytes()
        num_frames.append(len(frames))
        num_words.append(len(words))
        keys.append(clip.key)
        qualities.append(clip.quality)
        stretches.append(clip.stretch)
        durations.append(clip.duration_ms)
        source_numbers.append(numbers.setdefault(clip.source_id, len(numbers)))
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    sorted_keys = [keys[row] for row in order]
    for a, b in itertools.pairwise(sorted_keys):
        if a == b:
            raise ValueError(f"clip {a} comes twice")
    # sorted() is stable: of equal qualities the smaller key comes first
    best_first = sorted(range(len(keys)), key=lambda i: qualities[order[i]], reverse=True)
    ranks = np.empty(len(keys), np.int64)
    ranks[best_first] = np.arange(len(keys))
    hashes = ClipHashes(
        frames=_rectangular(np.frombuffer(picture, np.uint64), np.array(num_frames, np.int64)),
        words=np.frombuffer(sound, np.uint16),
        offsets=np.concatenate([[0], np.cumsum(num_words)]).astype(np.int64),
        sources=np.array(source_numbers, np.int32),
    )
    stretches = [stretches[row] for row in order]
    return _Clips(sorted_keys, hashes.take(order), np.array(durations, np.int64)[order], ranks, stretches)


def _rectangular(flat: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The values cut into rows of these lengths, each padded with zeros: shape (rows, longest)."""
    width = int(lengths.max(initial=0))
    rows = np.zeros((len(lengths), width), np.uint64)
    rows[np.arange(width) < lengths[:, None]] = flat
    return rows


def _find_edges(clips: _Clips, rows: NDArray[np.int64], settings: DedupSettings, capped: CappedBuckets) -> _Edges:
    """All pairs among ``rows`` that are duplicates or related."""
    hashes = clips.hashes if len(rows) == len(clips.keys) else clips.hashes.take(rows)
    picture_limit = max(settings.picture_share, settings.strong_picture_share)
    sound_limit = max(settings.sound_share, settings.strong_sound_share)
    max_shift, min_words = _steps(settings)
    cap = settings.max_neighbours
    by_picture = picture_candidates(hashes, picture_limit, cap, capped)
    by_sound = sound_candidates(hashes, sound_limit, max_shift=max_shift, min_words=min_words, cap=cap, capped=capped)
    if capped.num_buckets:
        logger.warning(
            "%d hashes are so common that each of their %d entries was compared with the %d nearest entries only",
            *(capped.num_buckets, capped.num_entries, cap),
        )
    a, b = unpack(np.union1d(by_picture, by_sound))
    edges = _compare(hashes, clips.durations_ms[rows], a, b, settings)
    return _Edges(rows[edges.a], rows[edges.b], edges.picture, edges.sound, edges.duplicate)


def _steps(settings: DedupSettings) -> tuple[int, int]:
    """The longest shift and the shortest overlap, in sound words."""
    min_words = round(settings.min_overlap_seconds / STEP_SECONDS) - _SOUND_SPAN_STEPS
    return round(settings.max_shift_seconds / STEP_SECONDS), max(min_words, 1)


def _compare(
    hashes: ClipHashes,
    durations_ms: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    settings: DedupSettings,
) -> _Edges:
    """Those of the pairs (a, b) that are alike."""
    parts = [_Edges(a[:0], b[:0], np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, bool))]
    max_shift, min_words = _steps(settings)
    for start in range(0, len(a), _PAIR_BLOCK):
        i, j = a[start : start + _PAIR_BLOCK], b[start : start + _PAIR_BLOCK]
        picture = picture_distance(hashes.frames[i], hashes.frames[j])
        sound_i, sound_j = hashes.sounds(i), hashes.sounds(j)
        length = max(sound_i.shape[1], sound_j.shape[1])
        sound, _ = sound_distance(_widen(sound_i, length), _widen(sound_j, length), max_shift, min_words)
        duplicate = (picture <= settings.picture_share) & (sound <= settings.sound_share)
        lengths = np.sort(np.stack([durations_ms[i], durations_ms[j]]), axis=0)
        reject = duplicate & settings.reject_duplicates & (lengths[0] >= _MIN_DURATION_RATIO * lengths[1])
        alike = duplicate.copy()
        if settings.relate_by_picture:
            alike |= picture <= settings.strong_picture_share
        if settings.relate_by_sound:
            alike |= sound <= settings.strong_sound_share
        parts.append(_Edges(i[alike], j[alike], picture[alike], sound[alike], reject[alike]))
    return _Edges(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("a", "b", "picture", "sound", "duplicate"))
    )


def _widen(words_PN: NDArray[np.uint16], length: int) -> NDArray[np.uint16]:
    return np.pad(words_PN, ((0, 0), (0, length - words_PN.shape[1])))


def _reject(clips: _Clips, edges: _Edges, settings: DedupSettings) -> dict[int, Verdict]:
    """Goes through the clips from the best to the worst and rejects each clip that is a duplicate of one that stays.

    Keeping one clip of each connected group would be wrong: windows of two copies of a video, cut at different times, overlap in a
    chain that connects all clips of both.
    """
    which = np.flatnonzero(edges.duplicate)
    others: dict[int, list[tuple[int, int]]] = {}
    for edge in which.tolist():
        a, b = int(edges.a[edge]), int(edges.b[edge])
        others.setdefault(a, []).append((b, edge))
        others.setdefault(b, []).append((a, edge))
    verdicts: dict[int, Verdict] = {}
    for row in sorted(others, key=lambda r: int(clips.ranks[r])):
        if row in verdicts:
            continue
        for other, edge in others[row]:
            if clips.ranks[other] > clips.ranks[row] and other not in verdicts:
                verdicts[other] = Verdict(
                    Reason.DUPLICATE,
                    f"like {clips.keys[row]}: picture differs in {edges.picture[edge]:.1%} of bits"
                    f" (duplicate up to {settings.picture_share:.1%}), sound in {edges.sound[edge]:.1%}"
                    f" (up to {settings.sound_share:.1%})",
                )
    return verdicts


def _reject_copies(clips: _Clips) -> tuple[dict[int, Verdict], NDArray[np.uint64]]:
    """Rejects all but the best of the clips that are the same stretch of the same file. The hashes are not needed for that, so sounds
    that are too short, steady or quiet for a hash are no exception.

    Returns the verdicts by row, and the pairs (staying row, rejected row), packed.
    """
    best: dict[str, int] = {}
    for row in np.argsort(clips.ranks).tolist():
        best.setdefault(clips.stretches[row], row)
    pairs = [(best[name], row) for row, name in enumerate(clips.stretches) if name and best[name] != row]
    verdicts = {
        row: Verdict(Reason.DUPLICATE, f"like {clips.keys[first]}: the same stretch of the same file")
        for first, row in pairs
    }
    return verdicts, pack(*np.array(pairs, np.int64).reshape(-1, 2).T)


def _groups(keys: list[str], pairs: NDArray[np.uint64]) -> tuple[tuple[str, ...], ...]:
    """Connected components of the pairs, as sorted tuples of keys."""
    a, b = unpack(pairs)
    if len(a) == 0:
        return ()
    members, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    i, j = index[: len(a)], index[len(a) :]
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(len(members), len(members)))
    num_groups, group_of = connected_components(graph, directed=False)
    groups: list[list[str]] = [[] for _ in range(num_groups)]
    for row, group in zip(members.tolist(), group_of.tolist(), strict=True):
        groups[group].append(keys[row])
    largest = max(map(len, groups))
    if largest > max(1000, len(keys) // 100):
        logger.warning("%d clips are related through one another and share one split", largest)
    return tuple(sorted(tuple(group) for group in groups))
