"""Which pairs of fingerprints are worth comparing: locality-sensitive hashing over sorted numpy arrays.

Two frames are a candidate pair when two of the four 16-bit bands of their hashes are equal. Two sounds are a candidate pair
when 24 bits taken from two words 0.4 s apart are equal. These equal bits are the bucket of an entry. Work is bounded: in a large
bucket each entry is compared only with the entries next to it, in the order of the remaining bits. Rows are in the order of the
clips' keys, so the order of the input does not matter.

Shape suffixes: P pairs of clips, N words.
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
"""Distance in words of the two words that give a bucket: 0.4 s."""
_LOCAL_WORDS = 16
"""Words that are compared around two equal entries, before the sounds as a whole are."""
_LOCAL_SHARE = 0.36
"""Largest share of differing bits in these words."""
_SHARE_MARGIN = 0.05
"""Added to the limit where sounds are compared at one shift only: the best shift may be a neighbouring one."""
_PASS_ENTRIES = 1 << 21
"""Sound entries that are in memory at once."""
_READ_WORDS = 1 << 20
_BLOCK = 1 << 18
_PAIR_BLOCK = 1 << 12


@dataclass(frozen=True)
class ClipHashes:
    """The fingerprints of n clips, in the order of their keys."""

    frames: NDArray[np.uint64]
    """Frame hashes, shape (n, frames). 0: no hash."""
    words: NDArray[np.uint16]
    """The sound words of all clips, concatenated. 0: no information."""
    offsets: NDArray[np.int64]
    """Clip i has ``words[offsets[i]:offsets[i + 1]]``. Shape (n + 1,)."""
    sources: NDArray[np.int32]
    """Number of each clip's source, shape (n,)."""

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: NDArray[np.int64]) -> ClipHashes:
        """The fingerprints of these rows, in their order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        words = np.empty(offsets[-1], np.uint16)
        for row, start, length in zip(rows, offsets[:-1], lengths, strict=True):
            words[start : start + length] = self.words[self.offsets[row] : self.offsets[row] + length]
        return ClipHashes(self.frames[rows], words, offsets, self.sources[rows])

    def sounds(self, rows: Array, skip: Array | int = 0) -> NDArray[np.uint16]:
        """The words of these clips from word ``skip`` on, shape (P, N), padded with zeros."""
        starts, ends = self.offsets[rows] + skip, self.offsets[np.asarray(rows) + 1]
        length = max(int((ends - starts).max(initial=0)), 1)
        index_PN = starts[:, None] + np.arange(length)
        inside = index_PN < ends[:, None]
        index_PN[~inside] = 0
        return np.where(inside, self.words[index_PN] if len(self.words) else np.uint16(0), np.uint16(0))


@dataclass
class CappedBuckets:
    """Number of buckets that were too large to compare all pairs in them, and of the entries in these buckets."""

    num_buckets: int = 0
    num_entries: int = 0


def picture_candidates(hashes: ClipHashes, max_share: float, cap: int, capped: CappedBuckets) -> NDArray[np.uint64]:
    """Pairs of clips of different sources that share a frame, packed by :func:`pack` and sorted.

    Two frames are the same if at most ``max_share`` of their bits differ. Of equal frames of one source only the first is used:
    pairs within a source come from :func:`sound_candidates`. ``cap``: the number of entries that each entry is compared with.
    ``capped`` is counted up.
    """
    rows, columns = np.nonzero(hashes.frames)
    frames = hashes.frames[rows, columns]
    sources = hashes.sources[rows]
    first = _first_of_each(frames, sources)
    frames, sources, rows = frames[first], sources[first], rows[first]
    max_bits = int(max_share * 64)
    pairs = [np.zeros(0, np.uint64)]
    for high, low in _BAND_PAIRS:
        mixed = _bands_first(frames, high, low)
        order = np.argsort(mixed, kind="stable")
        buckets = (mixed[order] >> np.uint64(32)).astype(np.uint32)
        for i, j in _pairs_in_buckets(buckets, cap, capped):
            a, b = order[i], order[j]
            near = np.bitwise_count(frames[a] ^ frames[b]) <= max_bits
            near &= sources[a] != sources[b]
            pairs.append(np.unique(pack(rows[a[near]], rows[b[near]])))
    return np.unique(np.concatenate(pairs))


def sound_candidates(
    hashes: ClipHashes, max_share: float, *, max_shift: int, min_words: int, cap: int, capped: CappedBuckets
) -> NDArray[np.uint64]:
    """Pairs of clips whose sounds likely differ in at most ``max_share`` of their bits, packed by :func:`pack` and sorted.

    ``max_shift``: largest shift of the two sounds, in words. ``min_words``: shortest overlap. ``cap`` and ``capped``: as in
    :func:`picture_candidates`.
    """
    num_passes = -(-len(hashes.words) // _PASS_ENTRIES)
    pairs = [np.zeros(0, np.uint64)]
    for part in range(num_passes):
        entries = _SoundEntries.of(hashes, part, num_passes)
        for i, j in _pairs_in_buckets(entries.buckets, cap, capped):
            near = entries.are_near(i, j, max_shift)
            a, b, shift = entries.rows[i[near]], entries.rows[j[near]], (entries.places[j] - entries.places[i])[near]
            limit = max_share + _SHARE_MARGIN
            pairs.append(np.unique(_alike_at_shift(hashes, a, b, shift, max_share=limit, min_words=min_words)))
        del entries  # before the next pass makes its own
    return np.unique(np.concatenate(pairs))


def pack(a: Array, b: Array) -> NDArray[np.uint64]:
    """Pairs of row numbers as one number each: the smaller row in the upper 32 bits."""
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
    """The words of one part of the buckets, sorted by bucket and then by the remaining bits."""

    buckets: NDArray[np.uint32]
    rows: Array
    """Row of the clip that holds the word."""
    places: Array
    """Index of the word in its clip."""
    num_groups: Array
    """Whole groups of four words from there to the end of the clip, at most four."""
    windows: NDArray[np.uint64]
    """The sixteen words from there on, four to a number, shape (entries, 4)."""

    @classmethod
    def of(cls, hashes: ClipHashes, part: int, num_parts: int) -> _SoundEntries:
        entries = _sorted_entries(hashes, part, num_parts)
        positions = (entries & np.uint64(0xFFFFFFFF)).astype(np.int64)
        rows = np.searchsorted(hashes.offsets, positions, side="right") - 1
        num_groups = np.minimum((hashes.offsets[rows + 1] - positions) // 4, 4)
        padded = np.concatenate([hashes.words, np.zeros(_LOCAL_WORDS, np.uint16)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, _LOCAL_WORDS)[positions].view(np.uint64)
        buckets = (entries >> np.uint64(40)).astype(np.uint32)
        return cls(buckets, rows, positions - hashes.offsets[rows], num_groups, windows)

    def are_near(self, i: Array, j: Array, max_shift: int) -> Array:
        """Whether the pairs (i, j) of entries are of two clips, shifted by at most ``max_shift`` words, with similar windows.

        A fast test that lets more pairs pass than the comparison of the whole sounds.
        """
        num_groups = np.minimum(self.num_groups[i], self.num_groups[j])
        num_differing = np.bitwise_count(self.windows[i] ^ self.windows[j])
        num_differing[np.arange(4) >= num_groups[:, None]] = 0
        near: Array = num_differing.sum(axis=1, dtype=np.int32) <= _LOCAL_SHARE * 64 * num_groups
        near &= (self.rows[i] != self.rows[j]) & (np.abs(self.places[j] - self.places[i]) <= max_shift)
        return near


def _sorted_entries(hashes: ClipHashes, part: int, num_parts: int) -> NDArray[np.uint64]:
    """Entries of one part of the buckets, sorted. Each has the bucket in its upper 24 bits, then 8 of the remaining bits, which order
    the entries of a bucket, then the position of the word in 32 bits."""
    blocks = [np.zeros(0, np.uint64)]
    ends = hashes.offsets[1:]
    for start in range(0, len(hashes.words) - _WORD_GAP, _READ_WORDS):
        stop = min(start + _READ_WORDS, len(hashes.words) - _WORD_GAP)
        first = hashes.words[start:stop].astype(np.uint64)
        second = hashes.words[start + _WORD_GAP : stop + _WORD_GAP].astype(np.uint64)
        middle = (second >> np.uint64(4)) & np.uint64(0xFF)
        rest = ((second >> np.uint64(8)) & np.uint64(0xF0)) | (second & np.uint64(0xF))
        bucket = (first << np.uint64(8)) | middle
        usable = (first != 0) & (second != 0) & (bucket % np.uint64(num_parts) == part)
        # The last words of a clip must not be paired with the first words of the next clip.
        near_end = ends[(ends > start) & (ends - _WORD_GAP < stop)]
        across = (near_end[:, None] - 1 - np.arange(_WORD_GAP)).ravel() - start
        usable[across[(across >= 0) & (across < stop - start)]] = False
        where = np.flatnonzero(usable)
        position = (where + start).astype(np.uint64)
        blocks.append((bucket[where] << np.uint64(40)) | (rest[where] << np.uint64(32)) | position)
    entries = np.concatenate(blocks)
    entries.sort()
    return entries


def _pairs_in_buckets(buckets: NDArray[np.uint32], cap: int, capped: CappedBuckets) -> Iterator[tuple[Array, Array]]:
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
    capped.num_buckets += len(common)
    capped.num_entries += int(np.isin(buckets, common).sum()) if len(common) else 0


def _alike_at_shift(
    hashes: ClipHashes, a: Array, b: Array, shift: Array, *, max_share: float, min_words: int
) -> NDArray[np.uint64]:
    """Those of the pairs (a, b) of clips whose sounds are alike when b is shifted by ``shift`` words against a, packed."""
    pairs = [np.zeros(0, np.uint64)]
    for start in range(0, len(a), _PAIR_BLOCK):
        block = slice(start, start + _PAIR_BLOCK)
        sound_a = hashes.sounds(a[block], np.maximum(-shift[block], 0))
        sound_b = hashes.sounds(b[block], np.maximum(shift[block], 0))
        length = min(sound_a.shape[1], sound_b.shape[1])
        share, _ = sound_distance(sound_a[:, :length], sound_b[:, :length], 0, min_words)
        near = share <= max_share
        pairs.append(pack(a[block][near], b[block][near]))
    return np.concatenate(pairs)
