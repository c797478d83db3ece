"""Searches for clips from the page: filters, order, offset. Every value goes to DuckDB as a parameter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline.report.catalogue import MEASURE_OF
from pipeline.report.tables import Tables
from pipeline.settings import Settings


class Query(Settings):
    """A search for clips. An empty text filters nothing."""

    state: str = ""
    """``kept``, ``rejected`` or ``failed``."""
    reason: str = ""
    """Why it was rejected."""
    label: str = ""
    """One of its classes."""
    split: str = ""
    """Its split."""
    text: str = ""
    """Part of its id, caption or link, in any case."""
    measure: str = ""
    """The measure that ``low`` and ``high`` bound."""
    low: float | None = None
    """Minimum of the measure. None: no minimum."""
    high: float | None = None
    """Maximum of the measure. None: no maximum."""
    sort: str = ""
    """A measure, or ``key``. Empty: a fixed random order."""
    order: Literal["rising", "falling"] = "falling"
    """The order of ``sort``."""
    offset: int = Field(0, ge=0)
    """Number of clips to skip."""
    limit: int = Field(48, ge=1, le=500)
    """Maximum number of clips to return."""

    @field_validator("measure", "sort")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ("", "key") and name not in MEASURE_OF:
            raise ValueError(f"there is no measure {name!r}")
        return name


def find(tables: Tables, query: Query) -> tuple[int, list[str]]:
    """The number of clips that match, and the keys of those from ``offset`` on, at most ``limit``."""
    where, values = ["true"], []
    for column in ("state", "reason", "split"):
        if wanted := getattr(query, column):
            where.append(f"{column} = ?")
            values.append(wanted)
    if query.label:
        where.append("list_contains(labels, ?)")
        values.append(query.label)
    if query.text.strip():
        where.append(
            "(contains(lower(key), ?) OR contains(lower(coalesce(caption, '')), ?) OR contains(lower(coalesce(url, '')), ?))"
        )
        values += [query.text.strip().lower()] * 3
    if query.measure in MEASURE_OF:
        for bound, sign in ((query.low, ">="), (query.high, "<=")):
            if bound is not None:
                where.append(f'"{query.measure}" {sign} ?')
                values.append(bound)
    direction = "ASC" if query.order == "rising" else "DESC"
    order = f'"{query.sort}" {direction} NULLS LAST, key' if query.sort else "hash(key), key"
    condition = " AND ".join(where)
    total = tables.one(f"SELECT count(*) AS num FROM clips WHERE {condition}", values)["num"]
    keys = tables.rows(
        f"SELECT key FROM clips WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?",
        [*values, query.limit, query.offset],
    )
    return total, [row["key"] for row in keys]
