"""Which pairs of fingerprints are worth comparing: locality-sensitive hashing over sorted numpy arrays.

Two frames are a candidate pair when two of the four 16-bit bands of their hashes are equal; two sounds, when 24 bits of
two words 0.4 s apart are. Work is bounded: in a bucket that is too common, each entry meets only the entries next to it
in the order of the remaining bits. Rows are in the order of the clips' keys: the order of the input does not matter.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.measure.fingerprint import sound_distance

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_BAND_PAIRS = tuple(itertools.combinations(range(4), 2))
_WORD_GAP = 4
_LOCAL_WORDS = 16
_LOCAL_SHARE = 0.36
_HINT_SLACK = 0.05
_PASS_ENTRIES = 1 << 21
_READ_WORDS = 1 << 20
_BLOCK = 1 << 18
_PAIR_BLOCK = 1 << 12


@dataclass(frozen=True)
class ClipHashes:
    """The fingerprints of n clips, in the order of their keys."""

    frames: NDArray[np.uint64]
    """Frame hashes, shape (n, frames). 0: no hash."""
    words: NDArray[np.uint16]
    """The sound words of all clips, one after the other. 0: says nothing."""
    offsets: NDArray[np.int64]
    """Clip i has ``words[offsets[i]:offsets[i + 1]]``."""
    sources: NDArray[np.int32]
    """A number for each clip's source."""

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: NDArray[np.int64]) -> ClipHashes:
        """The library of these rows, in their order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        words = np.empty(offsets[-1], np.uint16)
        for row, start, length in zip(rows, offsets[:-1], lengths, strict=True):
            words[start : start + length] = self.words[self.offsets[row] : self.offsets[row] + length]
        return ClipHashes(self.frames[rows], words, offsets, self.sources[rows])

    def sounds(self, rows: Array, skip: Array | int = 0) -> NDArray[np.uint16]:
        """The words of these clips from word ``skip`` on, (P, N), filled up with zeros."""
        starts, ends = self.offsets[rows] + skip, self.offsets[np.asarray(rows) + 1]
        length = max(int((ends - starts).max(initial=0)), 1)
        index_PN = starts[:, None] + np.arange(length)
        inside = index_PN < ends[:, None]
        index_PN[~inside] = 0
        return np.where(inside, self.words[index_PN] if len(self.words) else np.uint16(0), np.uint16(0))


@dataclass
class CappedBuckets:
    """How often a bucket was too common to compare everything in it."""

    capped_buckets: int = 0
    capped_entries: int = 0


def picture_candidates(library: ClipHashes, max_share: float, cap: int, tally: CappedBuckets) -> NDArray[np.uint64]:
    """Pairs of clips of different sources with a frame in common, as :func:`pack` makes them, sorted.

    Equal frames of one source count once here: pairs within a source come from :func:`sound_candidates`.
    """
    rows, columns = np.nonzero(library.frames)
    frames = library.frames[rows, columns]
    sources = library.sources[rows]
    first = _first_of_each(frames, sources)
    frames, sources, rows = frames[first], sources[first], rows[first]
    max_bits = int(max_share * 64)
    found = [np.zeros(0, np.uint64)]
    for high, low in _BAND_PAIRS:
        mixed = _bands_first(frames, high, low)
        order = np.argsort(mixed, kind="stable")
        buckets = (mixed[order] >> np.uint64(32)).astype(np.uint32)
        for i, j in _pairs(buckets, cap, tally):
            a, b = order[i], order[j]
            near = np.bitwise_count(frames[a] ^ frames[b]) <= max_bits
            near &= sources[a] != sources[b]
            found.append(np.unique(pack(rows[a[near]], rows[b[near]])))
    return np.unique(np.concatenate(found))


def sound_candidates(
    library: ClipHashes, max_share: float, *, max_shift: int, min_words: int, cap: int, tally: CappedBuckets
) -> NDArray[np.uint64]:
    """Pairs of clips whose sounds are likely within ``max_share`` of each other, as :func:`pack` makes them, sorted."""
    num_passes = -(-len(library.words) // _PASS_ENTRIES)
    found = [np.zeros(0, np.uint64)]
    for part in range(num_passes):
        entries = _SoundEntries.of(library, part, num_passes)
        for i, j in _pairs(entries.buckets, cap, tally):
            near = entries.meet(i, j, max_shift)
            a, b, shift = entries.rows[i[near]], entries.rows[j[near]], (entries.places[j] - entries.places[i])[near]
            limit = max_share + _HINT_SLACK
            pairs = _alike_where_they_met(library, a, b, shift, max_share=limit, min_words=min_words)
            found.append(np.unique(pairs))
        del entries
    return np.unique(np.concatenate(found))


def pack(a: Array, b: Array) -> NDArray[np.uint64]:
    """Two row numbers as one number, the smaller row first."""
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return (low << np.uint64(32)) | high


def unpack(pairs: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse of :func:`pack`."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _first_of_each(frames: NDArray[np.uint64], sources: NDArray[np.int32]) -> Array:
    """Positions of the first entry of each (frame, source), ascending."""
    order = np.lexsort((sources, frames))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(frames[order]) != 0) | (np.diff(sources[order]) != 0)
    return np.sort(order[new])


def _bands_first(frames: NDArray[np.uint64], high: int, low: int) -> NDArray[np.uint64]:
    """The hashes with bands ``high`` and ``low`` moved to the top 32 bits."""
    mixed = np.zeros_like(frames)
    for place, band in enumerate((high, low, *(b for b in range(4) if b not in (high, low)))):
        bits = (frames >> np.uint64(48 - 16 * band)) & np.uint64(0xFFFF)
        mixed |= bits << np.uint64(48 - 16 * place)
    return mixed


@dataclass(frozen=True)
class _SoundEntries:
    """The meeting places of one part of the buckets, sorted by bucket and then by what else is alike."""

    buckets: NDArray[np.uint32]
    rows: Array
    """The clip."""
    places: Array
    """The number of the word in the clip."""
    left: Array
    """Groups of four words from there to the end of the clip, at most four."""
    windows: NDArray[np.uint64]
    """The sixteen words from there on, shape (entries, 4)."""

    @classmethod
    def of(cls, library: ClipHashes, part: int, num_parts: int) -> _SoundEntries:
        entries = _sorted_entries(library, part, num_parts)
        positions = (entries & np.uint64(0xFFFFFFFF)).astype(np.int64)
        rows = np.searchsorted(library.offsets, positions, side="right") - 1
        left = np.minimum((library.offsets[rows + 1] - positions) // 4, 4)
        padded = np.concatenate([library.words, np.zeros(_LOCAL_WORDS, np.uint16)])
        by_four = np.ndarray((len(library.words) + 1, 4), np.uint64, padded, strides=(2, 8))
        buckets = (entries >> np.uint64(40)).astype(np.uint32)
        return cls(buckets, rows, positions - library.offsets[rows], left, by_four[positions])

    def meet(self, i: Array, j: Array, max_shift: int) -> Array:
        """Whether these pairs are of two clips, not shifted too far, and alike around the place: cheap and generous."""
        left = np.minimum(self.left[i], self.left[j])
        wrong = np.bitwise_count(self.windows[i] ^ self.windows[j])
        wrong[np.arange(4) >= left[:, None]] = 0
        near: Array = wrong.sum(axis=1, dtype=np.int32) <= _LOCAL_SHARE * 64 * left
        near &= (self.rows[i] != self.rows[j]) & (np.abs(self.places[j] - self.places[i]) <= max_shift)
        return near


def _sorted_entries(library: ClipHashes, part: int, num_parts: int) -> NDArray[np.uint64]:
    """Entries of one part of the buckets: 24 bits bucket, 8 bits that order it, 32 bits position of the word."""
    found = [np.zeros(0, np.uint64)]
    ends = library.offsets[1:]
    for start in range(0, len(library.words) - _WORD_GAP, _READ_WORDS):
        stop = min(start + _READ_WORDS, len(library.words) - _WORD_GAP)
        first = library.words[start:stop].astype(np.uint64)
        second = library.words[start + _WORD_GAP : stop + _WORD_GAP].astype(np.uint64)
        middle = (second >> np.uint64(4)) & np.uint64(0xFF)
        rest = ((second >> np.uint64(8)) & np.uint64(0xF0)) | (second & np.uint64(0xF))
        bucket = (first << np.uint64(8)) | middle
        usable = (first != 0) & (second != 0) & (bucket % np.uint64(num_parts) == part)
        # The last words of a clip would be paired with the first ones of the next.
        near_end = ends[(ends > start) & (ends - _WORD_GAP < stop)]
        across = (near_end[:, None] - 1 - np.arange(_WORD_GAP)).ravel() - start
        usable[across[(across >= 0) & (across < stop - start)]] = False
        where = np.flatnonzero(usable)
        position = (where + start).astype(np.uint64)
        found.append((bucket[where] << np.uint64(40)) | (rest[where] << np.uint64(32)) | position)
    entries = np.concatenate(found)
    entries.sort()
    return entries


def _pairs(buckets: NDArray[np.uint32], cap: int, tally: CappedBuckets) -> Iterator[tuple[Array, Array]]:
    """Blocks of index pairs ``i < j <= i + cap`` within equal values of the sorted ``buckets``."""
    active = np.arange(len(buckets))
    for distance in range(1, cap + 1):
        active = active[active < len(buckets) - distance]
        active = active[buckets[active] == buckets[active + distance]]
        for start in range(0, len(active), _BLOCK):
            block = active[start : start + _BLOCK]
            yield block, block + distance
        if len(active) == 0:
            return
    full = active[active < len(buckets) - cap - 1]
    full = full[buckets[full] == buckets[full + cap + 1]]
    common = np.unique(buckets[full])
    tally.capped_buckets += len(common)
    tally.capped_entries += int(np.isin(buckets, common).sum()) if len(common) else 0


def _alike_where_they_met(
    library: ClipHashes, a: Array, b: Array, shift: Array, *, max_share: float, min_words: int
) -> NDArray[np.uint64]:
    """The pairs of clips that are alike at the shift that their meeting told, packed."""
    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(a), _PAIR_BLOCK):
        block = slice(start, start + _PAIR_BLOCK)
        sound_a = library.sounds(a[block], np.maximum(-shift[block], 0))
        sound_b = library.sounds(b[block], np.maximum(shift[block], 0))
        length = min(sound_a.shape[1], sound_b.shape[1])
        share, _ = sound_distance(sound_a[:, :length], sound_b[:, :length], 0, min_words)
        near = share <= max_share
        found.append(pack(a[block][near], b[block][near]))
    return np.concatenate(found)
