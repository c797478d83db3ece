"""The recipes and the example of a source list that come with the package, and the folder that ``hearscape new`` makes of them.

In a checkout ``recipes`` and ``sources`` are links to the folders of ``manifests/``; in an installed package they are folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import OutputError

_PACKAGED = Path(__file__).parent
MAX_NAMED = 3


def recipe_path(name: str) -> str:
    """The packaged recipe of that name, without its ``.toml``."""
    return str(_PACKAGED / "recipes" / f"{name}.toml")


def new_folder(folder: Path) -> list[Path]:
    """Writes recipes and source lists into ``folder/manifests``, as they lie in a checkout; returns the files.

    Recipes name their files by absolute paths, so that they work from any folder; below the current folder itself, by relative ones.
    Raises OutputError where one of the files is there already, before anything is written, or where one cannot be written.
    """
    texts = {folder / "manifests" / place: text for place, text in _packaged_files()}
    present = [path for path in texts if path.exists() or path.is_symlink()]
    if present:
        more = f" and {len(present) - MAX_NAMED} more" if len(present) > MAX_NAMED else ""
        raise OutputError(
            f"{', '.join(map(str, present[:MAX_NAMED]))}{more}: there already; name another folder, or remove what is there"
        )
    base = _base(folder)
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                text.replace('"manifests/', f'"{base}manifests/') if path.suffix == ".toml" else text, "utf-8"
            )
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return list(texts)


def _packaged_files() -> Iterator[tuple[Path, str]]:
    """Places below ``manifests/``, and texts."""
    for kind in ("recipes", "sources"):
        for path in sorted((_PACKAGED / kind).rglob("*")):
            if path.is_file():
                yield path.relative_to(_PACKAGED), path.read_text("utf-8")


def _base(folder: Path) -> str:
    """What a path in a recipe begins with, in TOML. Raises OutputError for a folder that TOML cannot name."""
    if folder.resolve() == Path.cwd():
        return ""
    text = f"{folder.resolve()}/"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{folder}: the path is not UTF-8, and a recipe is; name another folder") from error
    return json.dumps(text, ensure_ascii=False)[1:-1]
