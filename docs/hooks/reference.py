"""What mkdocs calls while it builds the site: the pages and tables of the reference, made from the code.

Generated pages: every setting of every recipe, every command's help, and two texts that lie beside what they are about. On other pages
a line ``<!-- table: NAME -->`` stands for a table of :mod:`file_tables`, and ``<!-- output: NAME -->`` or ``<!-- readme: HEADING -->`` for
a part of the README, which is not written twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from command_help import commands_text
from file_tables import TABLES
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from settings_tables import anchor, markdown_of, more_of, place_of, settings_text, tables_of

from pipeline.build.recipe import BuildRecipe
from trainer.proof.evaluation import EvaluateRecipe
from trainer.recipe import FitRecipe

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
COPIED = {
    "reference/source-lists.md": PROJECT / "manifests" / "sources" / "README.md",
    "explanation/packaged-pair.md": PROJECT / "pipeline" / "encoders" / "small" / "MODEL_CARD.md",
}
"""Texts that lie beside what they are about, by the page that shows them."""
MARKER = re.compile(r"^<!-- (table|output|readme): ([^>]+) -->$", re.MULTILINE)
OUTPUTS = {"dataset": "rows ", "model": "    "}
"""How the first line of a command's output in the README begins."""

RECIPES: dict[str, tuple[type[BaseModel], str]] = {
    "reference/build-recipe.md": (
        BuildRecipe,
        "# Settings of a build\n\nA recipe of a build is a TOML file. Name and output, and at least one source list, must be in it; "
        "everything else has a default. `--dry-run` prints every setting with its value.",
    ),
    "reference/fit-recipe.md": (
        FitRecipe,
        "# Settings of a fit\n\nA recipe of a fit is a TOML file, too. The stages `prior`, `align`, `invert` and `video` each "
        "have a table. A recipe names only the tables whose stages it runs.",
    ),
    "reference/evaluate-recipe.md": (
        EvaluateRecipe,
        "# Settings of an evaluation\n\nThe command has options for the most common ones; `--recipe` and `--set` reach all.",
    ),
}
"""The pages of settings: the recipe's class, and how the page begins."""

HOW_TO_READ = (
    "TOML has no word for *none*: leave the setting out where none is its default, and write `--set table.setting=none` "
    "where it is not."
)


def settings_page(kind: type[BaseModel], intro: str) -> str:
    """Every table of a recipe, each under its own heading."""
    parts = [intro, HOW_TO_READ]
    for table in tables_of(kind):
        if table.path:
            level = "#" * (2 + table.path.count("."))
            bracket = f"[[{table.path}]]" if table.is_list else f"[{table.path}]"
            parts.append(f"{level} {bracket.replace('[', chr(92) + '[')} {{#{anchor(table.path)}}}")
            parts += [markdown_of(table.intro), more_of(table.kind), f"In the code: {place_of(table.kind)}."]
        parts.append(settings_text(table))
    return "\n\n".join(part for part in parts if part) + "\n"


def generated_pages() -> dict[str, Callable[[], str]]:
    """What makes each generated page, by its path."""
    pages: dict[str, Callable[[], str]] = {"reference/commands.md": commands_text}
    for page, (kind, intro) in RECIPES.items():
        pages[page] = partial(settings_page, kind, intro)
    for page, source in COPIED.items():
        pages[page] = partial(source.read_text, encoding="utf-8")
    return pages


def filled(markdown: str) -> str:
    """A page with what its markers stand for. Raises KeyError for what there is not."""
    makers: dict[str, Callable[[str], str]] = {
        "table": lambda name: TABLES[name](),
        "output": readme_output,
        "readme": readme_section,
    }
    return MARKER.sub(lambda match: makers[match[1]](match[2]), markdown)


def readme_output(name: str) -> str:
    """A command's output, in the README's words, as a block of code."""
    blocks = re.findall(r"^```\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    block = next(block for block in blocks if block.startswith(OUTPUTS[name]))
    return f"```text\n{block}```"


def readme_section(heading: str) -> str:
    """What stands under a heading of the README, without its links, which lead from another folder."""
    sections = dict(
        re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", sections[heading].strip())


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """mkdocs: adds the generated pages."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: fills the markers."""
    return filled(markdown)
