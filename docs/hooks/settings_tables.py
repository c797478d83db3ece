"""Tables of settings, made of the settings classes: name, type, unit, default, meaning, and what None means."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

UNITS = {
    "_per_second": "a second",
    "_seconds": "seconds",
    "_ms": "milliseconds",
    "_bytes": "bytes",
    "_px": "pixels",
    "_hz": "Hz",
    "_fps": "frames a second",
    "_lufs": "LUFS",
    "_dbfs": "dB full scale",
    "_db": "dB",
    "_share": "share",
    "_degrees": "degrees",
}
"""By the end of a name. Names of other endings have no unit, or the meaning tells it."""

TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    typing.Any: "any value",
}

PATTERNS = {"^[0-9a-fA-F]{64}$": "64 hexadecimal digits", "^[0-9a-f]{64}$": "64 hexadecimal digits"}
"""Words for patterns that nobody reads."""

BOUNDS: tuple[tuple[type, str, str], ...] = (
    (annotated_types.Ge, "ge", "≥"),
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Le, "le", "≤"),
    (annotated_types.Lt, "lt", "<"),
)
"""Metadata of a field, the attribute that holds its number, and its sign."""

Model = type[BaseModel]


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a recipe."""

    path: str
    """As it stands in the recipe: ``reader.retries``; empty for what stands at the top."""
    kind: Model
    intro: str
    """What the field that holds the table says of it."""
    is_list: bool
    """Whether the recipe may hold several: ``[[cut.renditions]]``."""
    defaults: BaseModel | None
    """The values that stand where the recipe names none. None: those of the class."""


def tables_of(kind: Model) -> Iterator[Table]:
    """The tables of a recipe, in the order of its fields, each before those inside it."""
    yield from _tables("", kind, "", False, None)


def _tables(path: str, kind: Model, intro: str, is_list: bool, defaults: BaseModel | None) -> Iterator[Table]:
    yield Table(path, kind, intro, is_list, defaults)
    for name, field in kind.model_fields.items():
        inner = settings_class(field.annotation)
        if inner is not None:
            default = getattr(defaults, name) if defaults is not None else default_of(field)
            given = default if isinstance(default, BaseModel) else None
            held_in_list = typing.get_origin(_without_none(field.annotation)[0]) in (tuple, list)
            yield from _tables(f"{path}.{name}".lstrip("."), inner, field.description or "", held_in_list, given)


def settings_class(annotation: Any) -> Model | None:
    """The class of settings that a field holds, in a list or alone. None: it holds a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [settings_class(part) for part in typing.get_args(annotation)]
    return next((kind for kind in inner if kind is not None), None)


def settings_text(table: Table) -> str:
    """Markdown of one table; its heading is the caller's."""
    rows = [_row(table, name, field) for name, field in table.kind.model_fields.items()]
    head = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join(["<div class='settings' markdown>", "", *head, *rows, "", "</div>"])


def _row(table: Table, name: str, field: FieldInfo) -> str:
    path = f"{table.path}.{name}".lstrip(".")
    meaning = markdown_of(field.description or "")
    inner = settings_class(field.annotation)
    if inner is not None:
        meaning += f" Settings: [`{path}`](#{anchor(path)})."
    default = getattr(table.defaults, name) if table.defaults is not None else default_of(field)
    shown = "a table" if isinstance(default, BaseModel) else value_text(default)
    mark = "" if inner is not None else f"{{#{setting_anchor(path)}}}"  # of a table the heading has it
    return f"| `{name}`{mark} | {type_text(name, field)} | {shown} | {meaning} |"


def anchor(path: str) -> str:
    """The anchor of a table's heading."""
    return path.replace(".", "-").replace("_", "-") or "top"


def setting_anchor(path: str) -> str:
    """The anchor of a setting."""
    return f"setting-{path}"


def type_text(name: str, field: FieldInfo) -> str:
    """What may stand there, with its unit and its bounds."""
    annotation, may_be_none = _without_none(field.annotation)
    parts = [_kind_text(annotation)]
    unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), None)
    if unit is not None and _is_number(annotation):
        parts.append(unit)
    parts += _bounds([*field.metadata, *_metadata(annotation)])
    return ", ".join(parts) + (" or none" if may_be_none else "")


def _is_number(annotation: Any) -> bool:
    plain = typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return plain in (int, float) or typing.get_origin(plain) in (tuple, list)


def _metadata(annotation: Any) -> list[Any]:
    return list(getattr(annotation, "__metadata__", ()))


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without ``None``, and whether ``None`` was one of its parts."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        if len(parts) < len(typing.get_args(annotation)):
            return (parts[0] if len(parts) == 1 else typing.Union[tuple(parts)]), True  # noqa: UP007 - of a list
    return annotation, False


def _kind_text(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _kind_text(typing.get_args(annotation)[0])
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind_text(part) for part in arguments)
    if origin in (tuple, list):
        if origin is tuple and Ellipsis not in arguments:
            return "list: " + ", ".join(_kind_text(part) for part in arguments)
        return f"list of: {_kind_text(arguments[0])}"
    if origin in (dict, typing.Mapping) or "Mapping" in str(origin):
        return f"table: name = {_kind_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if annotation in TYPES:
        return TYPES[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return {"IPvAnyNetwork": "network"}.get(name, name)


def _bounds(metadata: list[Any]) -> list[str]:
    found = []
    for item in metadata:
        found += [f"{sign} {getattr(item, name):g}" for kind, name, sign in BOUNDS if isinstance(item, kind)]
        if isinstance(item, annotated_types.MultipleOf):
            found.append(f"a multiple of {item.multiple_of}")
        if isinstance(item, annotated_types.MinLen) and item.min_length:
            found.append(f"at least {item.min_length}")
        if isinstance(item, annotated_types.MaxLen):
            found.append(f"at most {item.max_length}")
        if pattern := getattr(item, "pattern", None):
            found.append(PATTERNS.get(pattern) or f"like `{pattern}`".replace("|", "\\|"))
    return found


def default_of(field: FieldInfo) -> Any:
    """The default, made where it is made anew each time; PydanticUndefined where there is none."""
    return field.get_default(call_default_factory=True, validated_data={})


def value_text(value: Any) -> str:
    """A value as a recipe has it."""
    if value is PydanticUndefined:
        return "**must be given**"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return f"`{value:_}`"
    if isinstance(value, float):
        return f"`{value:_.0f}`" if value.is_integer() and abs(value) >= 1000 else f"`{value:g}`"
    if isinstance(value, (tuple, list)):
        if value and all(isinstance(item, BaseModel) for item in value):
            return "<br>".join(f"`{_inline(item)}`" for item in value)
        return f"`{json.dumps([_plain(item) for item in value])}`"
    return f"`{json.dumps(_plain(value))}`"


def _inline(item: BaseModel) -> str:
    values = {name: _plain(getattr(item, name)) for name in type(item).model_fields}
    return (
        "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None) + " }"
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, dict)) else str(value)


def more_of(kind: Model) -> str:
    """What a class of settings says of itself behind its first paragraph, which the field that holds it says as well."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[2]
    return _plain_marks(text)


def place_of(kind: Model) -> str:
    """The class, and the file that it stands in."""
    return f"`{kind.__name__}` in `{kind.__module__.replace('.', '/')}.py`"


def _plain_marks(text: str) -> str:
    return re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def markdown_of(text: str) -> str:
    """A docstring as one line of markdown: one paragraph after the other, with the signs that a table needs."""
    text = re.sub(r"\n\s*\n", "<br><br>", _plain_marks(text).strip())
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")
