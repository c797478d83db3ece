"""Choosing classes of a published list by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence

from pipeline.errors import SourceListError
from pipeline.sources.class_names import normalised_name


def choose_classes(wanted: Iterable[str], known: Collection[str], *, missing_ok: bool = False) -> frozenset[str]:
    """Those of the ``known`` names that are wanted.

    Each text is a name, a glob, or several of them with commas between; the longest stretch that is a name is taken,
    so that ``thunder,waves, surf,rain*`` finds the class "Waves, surf". Raises :class:`SourceListError` with
    the nearest names for what is not there, unless ``missing_ok``.
    """
    by_plain: dict[str, list[str]] = {}
    for name in known:
        by_plain.setdefault(normalised_name(name), []).append(name)
    chosen: set[str] = set()
    unknown: list[str] = []
    for text in wanted:
        pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
        while pieces:
            found, taken = _longest(pieces, by_plain)
            if not found:
                unknown.append(pieces[0])
            chosen.update(found)
            pieces = pieces[taken:]
    if unknown and not missing_ok:
        each = [f"no class {name!r}: {_nearest(name, by_plain)}" for name in unknown]
        raise SourceListError("\n".join(each))
    return frozenset(chosen)


def _longest(pieces: Sequence[str], by_plain: dict[str, list[str]]) -> tuple[list[str], int]:
    """The names that the longest possible beginning of ``pieces`` means, and how many pieces that takes."""
    for taken in range(len(pieces), 0, -1):
        pattern = normalised_name(", ".join(pieces[:taken]))
        if pattern in by_plain:
            return by_plain[pattern], taken
        if found := [name for each in fnmatch.filter(by_plain, pattern) for name in by_plain[each]]:
            return found, taken
    return [], 1


def _nearest(name: str, by_plain: dict[str, list[str]]) -> str:
    text = normalised_name(name)
    near = difflib.get_close_matches(text, by_plain, n=3)
    near += [each for each in sorted(by_plain) if text.strip("*?") in each and each not in near][:5]
    if not near:
        return "nothing is like it (names are compared whole: use *word* to find a word)"
    return "did you mean " + ", ".join(repr(by_plain[each][0]) for each in near) + "?"
