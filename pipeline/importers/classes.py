"""Chooses classes of a published list by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence

from pipeline.errors import SourceListError
from pipeline.sources.class_names import normalised_name


def choose_classes(wanted: Iterable[str], known: Collection[str], *, missing_ok: bool = False) -> frozenset[str]:
    """The names in ``known`` that ``wanted`` asks for.

    Each text in ``wanted`` is a name, a glob pattern, or several of them separated by commas. Names may contain commas: the longest
    part that is a name counts, so that ``thunder,waves, surf,rain*`` includes the class "Waves, surf". Raises SourceListError, with
    similar names, for a name that is not known, unless ``missing_ok``.
    """
    by_normalised: dict[str, list[str]] = {}
    for name in known:
        by_normalised.setdefault(normalised_name(name), []).append(name)
    chosen: set[str] = set()
    unknown: list[str] = []
    for text in wanted:
        pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
        while pieces:
            names, num_pieces = _longest_match(pieces, by_normalised)
            if not names:
                unknown.append(pieces[0])
            chosen.update(names)
            pieces = pieces[num_pieces:]
    if unknown and not missing_ok:
        raise SourceListError("\n".join(f"no class {name!r}: {_suggestion(name, by_normalised)}" for name in unknown))
    return frozenset(chosen)


def _longest_match(pieces: Sequence[str], by_normalised: dict[str, list[str]]) -> tuple[list[str], int]:
    """The names that match as many of the first ``pieces`` as possible, and the number of these pieces."""
    for num_pieces in range(len(pieces), 0, -1):
        pattern = normalised_name(", ".join(pieces[:num_pieces]))
        if pattern in by_normalised:
            return by_normalised[pattern], num_pieces
        if matches := fnmatch.filter(by_normalised, pattern):
            return [name for match in matches for name in by_normalised[match]], num_pieces
    return [], 1


def _suggestion(name: str, by_normalised: dict[str, list[str]]) -> str:
    """The end of an error message: up to three names of similar spelling, and up to five that contain ``name``."""
    text = normalised_name(name)
    similar = difflib.get_close_matches(text, by_normalised, n=3)
    similar += [known for known in sorted(by_normalised) if text.strip("*?") in known and known not in similar][:5]
    if not similar:
        return "no class is similar (whole names are compared: use *word* to find a word)"
    return "did you mean " + ", ".join(repr(by_normalised[known][0]) for known in similar) + "?"
