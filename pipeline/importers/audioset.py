"""Reads AudioSet's published lists: segments of YouTube videos with class ids, and the ontology with the names of the classes.

Verified on published copies: ``class_labels_indices.csv`` is ``index,mid,display_name`` (527 classes), ``ontology.json`` is a list of
``{"id", "name", "child_ids", ...}``, and a segments file has three lines of ``#``, then
``-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"``. Changed copies are read as well: without spaces, with a header, with
underscores in the names, or with one id per cell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import SourceListError
from pipeline.importers.classes import choose_classes
from pipeline.importers.defaults import AUDIOSET_EXCLUDE, AUDIOSET_NATURE
from pipeline.sources.rows import Row, read_delimited_rows

_CLASS_ID = re.compile(r"/[a-z]/[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Ontology:
    """Names and, if known, children of AudioSet's classes, by id (``/m/0jb2l``)."""

    names: dict[str, str] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def ids(self, names: Collection[str]) -> frozenset[str]:
        return frozenset(class_id for class_id, name in self.names.items() if name in names)

    def with_descendants(self, ids: Iterable[str]) -> frozenset[str]:
        """The classes and all classes below them."""
        classes: set[str] = set()
        waiting = list(ids)
        while waiting:
            if (class_id := waiting.pop()) not in classes:
                classes.add(class_id)
                waiting += self.children.get(class_id, ())
        return frozenset(classes)


def read_ontology(paths: Sequence[str | Path]) -> Ontology:
    """Reads ``class_labels_indices.csv`` (names), ``ontology.json`` (names and tree), or both. Raises SourceListError."""
    ontology = Ontology()
    for path in paths:
        if Path(path).suffix.lower() == ".json":
            _read_tree(Path(path), ontology)
            continue
        for record in read_delimited_rows(path, "\t" if str(path).lower().endswith(".tsv") else ","):
            cells = [cell.strip() for cell in record.cells]
            place = next((at for at, cell in enumerate(cells) if _CLASS_ID.fullmatch(cell)), None)
            if place is not None:
                ontology.names.setdefault(cells[place], ",".join(cells[place + 1 :]).replace("_", " ").strip(", "))
    if not ontology.names:
        raise SourceListError(f"{', '.join(map(str, paths))}: no class ids (/m/...): is it class_labels_indices.csv?")
    return ontology


def _read_tree(path: Path, ontology: Ontology) -> None:
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        for node in nodes:
            ontology.names.setdefault(str(node["id"]), str(node["name"]))
            ontology.children[str(node["id"])] = tuple(map(str, node.get("child_ids", ())))
    except OSError as error:
        raise SourceListError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceListError(f"{path}: is not AudioSet's ontology.json ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class ClassChoice:
    """Which segments are wanted: those with one of the ``classes`` and none of the ``excluded``, all by id."""

    classes: frozenset[str]
    excluded: frozenset[str]
    names: dict[str, str]

    @classmethod
    def of(cls, ontology: Ontology, classes: Sequence[str] | None, exclude: Sequence[str] | None) -> ClassChoice:
        """Chooses classes by name or glob, with all classes below them.

        ``classes`` None: :data:`AUDIOSET_NATURE`, without the classes below. ``exclude`` None: :data:`AUDIOSET_EXCLUDE`. Raises
        SourceListError for an unknown class.
        """
        known = frozenset(ontology.names.values())
        if classes is None:
            chosen = ontology.ids(choose_classes(AUDIOSET_NATURE, known, missing_ok=True))
        else:
            chosen = ontology.with_descendants(ontology.ids(choose_classes(classes, known)))
        unwanted = choose_classes(AUDIOSET_EXCLUDE if exclude is None else exclude, known, missing_ok=exclude is None)
        excluded = ontology.with_descendants(ontology.ids(unwanted))
        return cls(chosen, excluded - chosen if exclude is None else excluded, ontology.names)

    def labels(self, ids: Sequence[str]) -> list[str]:
        """Names of the chosen classes among those of a segment. Empty if the segment is not wanted."""
        if not self.excluded.isdisjoint(ids):
            return []
        return [self.names[class_id] for class_id in ids if class_id in self.classes and class_id in self.names]


def split_of(path: str | Path) -> str | None:
    """The split of a segments file, by its published name."""
    name = Path(path).name.lower()
    return "test" if "eval" in name else "train" if "train" in name else None


def segments(path: str | Path, choice: ClassChoice) -> Iterator[tuple[Row, str] | None]:
    """The wanted rows of a segments file as ``(row, YouTube id)``, and None for each row that is not wanted."""
    split = split_of(path)
    for record in read_delimited_rows(path):
        cells = [cell.strip().strip('"') for cell in record.cells]
        if record.problem is None and cells[0].lower() == "ytid":
            continue
        if record.problem is None and len(cells) < 4:
            record.problem = f"{len(cells)} cells, not the 4 of AudioSet (YTID, start, end, labels)"
        if record.problem is not None:
            yield Row(record.line, record.text, {}, record.problem), ""
            continue
        ids = [each.strip() for each in ",".join(cells[3:]).split(",")]
        if labels := choice.labels(ids):
            values = {"start": cells[1], "end": cells[2], "labels": labels, "split": split}
            yield Row(record.line, record.text, values), cells[0]
        else:
            yield None
