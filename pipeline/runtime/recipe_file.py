"""Reads recipes of any kind from TOML files and ``--set a.b=c``. All problems are reported at once, each with its field's name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.runtime.masking import mask_secrets
from pipeline.settings import Settings

Recipe = TypeVar("Recipe", bound=Settings)


def read_recipe(kind: type[Recipe], path: str | Path | Sequence[str] | None, changes: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, or several, each of which changes settings of those before it. Without a ``path`` all settings have defaults.

    ``changes``: such as ``clips.length_seconds=4``, with a value in TOML, or a text if it is not TOML.

    Raises RecipeError, which lists all problems, each with the name of its field.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path or ())
    name = "recipe" if not paths else f"recipe {', '.join(map(str, paths))}"
    values: dict[str, Any] = {}
    for one in paths:
        try:
            _overlay(values, tomllib.loads(Path(one).read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"recipe {one}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {one}: not TOML: {error}") from error
    for change in changes:
        _apply(values, change)
    try:
        # JSON mode: a list is accepted for a tuple, and no other type is converted
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise RecipeError("\n  ".join([f"{name}:", *problems_of(error)])) from error


def _overlay(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merges ``more`` into ``values``: tables key by key; any other value replaces the earlier one."""
    for key, value in more.items():
        earlier = values.get(key)
        if isinstance(earlier, dict) and isinstance(value, dict):
            _overlay(earlier, value)
        else:
            values[key] = value


def problems_of(error: ValidationError) -> list[str]:
    """One line for each problem: field, problem, value."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no such setting")
        elif problem["type"] == "missing":
            lines.append(f"{field}: missing")
        elif problem["type"] == "value_error" and isinstance(problem["input"], dict):  # several fields, which it names
            lines.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            value = "" if problem["loc"][-1:] == ("proxy",) else f" (got {mask_secrets(repr(problem['input']))[:200]})"
            lines.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}{value}")
    return lines


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {change!r}: write it like clips.length_seconds=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip().lower() in ("none", "null") else text
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {change!r}: {part} is a value, it has no settings inside")
        values = inner
    values[parts[-1]] = value
