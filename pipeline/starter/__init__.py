"""The packaged recipes, source lists and batch script, and the folder that ``hearscape new`` makes from them.

In a checkout, ``recipes``, ``sources`` and ``slurm`` are symbolic links to the folders in ``manifests/``; in an installed package they are
folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import OutputError

_PACKAGED = Path(__file__).parent
MAX_NAMED = 3
"""How many files an error message names."""


def recipe_path(name: str) -> str:
    """The path of the packaged recipe ``name`` (without ``.toml``)."""
    return str(_PACKAGED / "recipes" / f"{name}.toml")


def new_folder(folder: Path) -> list[Path]:
    """Writes the packaged recipes, source lists and batch script to ``folder/manifests``, and returns the paths of the files.

    Paths in the recipes become absolute, so that the recipes work from any folder; if ``folder`` is the current folder, they
    stay relative. Raises OutputError if one of the files exists, before anything is written, or if one cannot be written.
    """
    texts = {folder / "manifests" / relative: text for relative, text in _packaged_files()}
    present = [path for path in texts if path.exists() or path.is_symlink()]
    if present:
        more = f" and {len(present) - MAX_NAMED} more" if len(present) > MAX_NAMED else ""
        raise OutputError(
            f"{', '.join(map(str, present[:MAX_NAMED]))}{more}: there already; name another folder, or remove what is there"
        )
    prefix = _path_prefix(folder)
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_recipe = path.suffix == ".toml"
            path.write_text(text.replace('"manifests/', f'"{prefix}manifests/') if is_recipe else text, "utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return list(texts)


def _packaged_files() -> Iterator[tuple[Path, str]]:
    """The path relative to ``manifests/`` and the text of each packaged file."""
    for kind in ("recipes", "sources", "slurm"):
        for path in sorted((_PACKAGED / kind).rglob("*")):
            if path.is_file():
                yield path.relative_to(_PACKAGED), path.read_text("utf-8")


def _path_prefix(folder: Path) -> str:
    """What is put before the paths in a recipe, escaped for a TOML string; empty for the current folder.

    Raises OutputError for a folder whose path is not UTF-8, which TOML requires.
    """
    if folder.resolve() == Path.cwd():
        return ""
    prefix = f"{folder.resolve()}/"
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{folder}: the path is not UTF-8, and a recipe is; name another folder") from error
    return json.dumps(prefix, ensure_ascii=False)[1:-1]
