"""Chooses classes of a published list by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence

from pipeline.errors import SourceListError
from pipeline.sources.class_names import normalised_name


def choose_classes(wanted: Iterable[str], known: Collection[str], *, missing_ok: bool = False) -> frozenset[str]:
    """Those of the ``known`` names that are wanted.

    Each text of ``wanted`` is a name, a glob, or several of them separated by commas. Names may contain commas: the longest part that
    is a name is taken, so that ``thunder,waves, surf,rain*`` includes the class "Waves, surf". Raises SourceListError, with similar
    names, for a name that is not known, unless ``missing_ok``.
    """
    by_plain: dict[str, list[str]] = {}
    for name in known:
        by_plain.setdefault(normalised_name(name), []).append(name)
    chosen: set[str] = set()
    unknown: list[str] = []
    for text in wanted:
        pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
        while pieces:
            names, num_pieces = _longest(pieces, by_plain)
            if not names:
                unknown.append(pieces[0])
            chosen.update(names)
            pieces = pieces[num_pieces:]
    if unknown and not missing_ok:
        each = [f"no class {name!r}: {_nearest(name, by_plain)}" for name in unknown]
        raise SourceListError("\n".join(each))
    return frozenset(chosen)


def _longest(pieces: Sequence[str], by_plain: dict[str, list[str]]) -> tuple[list[str], int]:
    """The names that match as many of the first ``pieces`` as possible, and the number of these pieces."""
    for num_pieces in range(len(pieces), 0, -1):
        pattern = normalised_name(", ".join(pieces[:num_pieces]))
        if pattern in by_plain:
            return by_plain[pattern], num_pieces
        if names := [name for each in fnmatch.filter(by_plain, pattern) for name in by_plain[each]]:
            return names, num_pieces
    return [], 1


def _nearest(name: str, by_plain: dict[str, list[str]]) -> str:
    text = normalised_name(name)
    near = difflib.get_close_matches(text, by_plain, n=3)
    near += [each for each in sorted(by_plain) if text.strip("*?") in each and each not in near][:5]
    if not near:
        return "no class is similar (whole names are compared: use *word* to find a word)"
    return "did you mean " + ", ".join(repr(by_plain[each][0]) for each in near) + "?"
