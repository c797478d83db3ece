"""The documentation against the code: links, settings, commands and quoted messages are those that are there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from flows.commands import HEARSCAPE
from pipeline.runtime.commands import parser_of

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
CODE = ("pipeline", "trainer", "flows")
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(
    r"""(?:<script[^>]*\ssrc|<link[^>]*\shref|<img[^>]*\ssrc|url\()=?["'(]*(?:https?:)?//[^"')>\s]+"""
)
MOST_LINES = 160
LARGEST_PICTURE_BYTES = 200_000


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """The hook that makes the reference, imported as mkdocs imports it."""
    sys.path.insert(0, str(DOCS / "hooks"))
    try:
        yield importlib.import_module("reference")
    finally:
        sys.path.remove(str(DOCS / "hooks"))


def test_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_pictures_are_small() -> None:
    large = [str(path) for path in (DOCS / "pictures").iterdir() if path.stat().st_size > LARGEST_PICTURE_BYTES]
    assert large == []


@pytest.mark.parametrize("page", [PROJECT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(PROJECT)))
def test_relative_links_lead_to_files(page: Path, reference: ModuleType) -> None:
    generated = {(DOCS / path).resolve() for path in reference.generated_pages()}
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
    wanted = [(page.parent / target).resolve() for target in targets if target]
    assert [str(path) for path in wanted if not path.exists() and path not in generated] == []


def _settings(kind: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a recipe with its field, by its whole name; those of tables inside, too."""
    for name, field in kind.model_fields.items():
        inner = _class_in(field.annotation)
        if inner is None:
            yield f"{path}{name}", field
        else:
            yield from _settings(inner, f"{path}{name}.")


def _class_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((kind for part in typing.get_args(annotation) if (kind := _class_in(part))), None)


def test_every_setting_of_every_recipe_is_in_the_reference(reference: ModuleType) -> None:
    for kind, intro in reference.RECIPES.values():
        page = reference.settings_page(kind, intro)
        names = [name for name, _ in _settings(kind)]
        assert len(names) > 10
        assert [name for name in names if f"{{#setting-{name}}}" not in page] == []


def test_every_setting_has_a_meaning(reference: ModuleType) -> None:
    recipes = [kind for kind, _ in reference.RECIPES.values()]
    assert [name for kind in recipes for name, field in _settings(kind) if not field.description] == []


def test_a_setting_that_may_be_none_says_what_that_means(reference: ModuleType) -> None:
    silent = [
        f"{kind.__name__}.{name}"
        for kind, _ in reference.RECIPES.values()
        for name, field in _settings(kind)
        if type(None) in typing.get_args(field.annotation) and "none" not in field.description.lower()
    ]
    assert silent == []


def _commands() -> Iterator[str]:
    """Every module that `python -m` runs and that reads arguments."""
    for path in (path for folder in CODE for path in (PROJECT / folder).rglob("*.py")):
        text = path.read_text()
        if ("ArgumentParser(" in text or "run_command(" in text) and '__name__ == "__main__"' in text:
            parts = path.relative_to(PROJECT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__main__" else parts)


def test_every_command_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.commands_text()
    assert [name for name in _commands() if f"python -m {name}" not in page] == ["flows.command"]  # hearscape itself
    for command in (*HEARSCAPE.commands, "report serve", "import audioset"):
        assert f"usage: hearscape {command} " in page
    assert "The same command: `python -m pipeline.manifest verify`." in page


def _command_lines(page: Path) -> list[list[str]]:
    """The words of each line of a page's blocks that calls ``hearscape``, continued ones joined."""
    text = page.read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (hearscape .+)$", text, re.MULTILINE)]


def test_the_command_lines_of_the_pages_can_be_read() -> None:
    lines = [words for page in (PROJECT / "README.md", *PAGES) for words in _command_lines(page)]
    assert len(lines) > 20
    parser = parser_of(HEARSCAPE, "hearscape")
    for _, *words in lines:
        if words[:2] == ["report", "serve"]:
            parser_of(HEARSCAPE.commands["report"].variants["serve"], "hearscape report serve").parse_args(words[2:])
        else:
            parser.parse_args(words)  # ends the test where a word is not known


def _text(node: ast.expr) -> str:
    """A string of the code, with … for what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    assert isinstance(node, ast.Constant)
    return str(node.value)


def _strings() -> str:
    """All strings of the code, one after the other."""
    found = []
    for path in (path for folder in CODE for path in (PROJECT / folder).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        found += [
            _text(node)
            for node in nodes
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        ]
    return "\0".join(found)


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^``` { .text .message }\n(.+)\n```$", page, re.MULTILINE)
    assert len(messages) >= 20
    strings = _strings()
    missing = [message for message in messages if message.removeprefix("…: ").removesuffix(" …") not in strings]
    assert missing == []


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {"PATH": "", "PYTHONPATH": str(PROJECT), "NO_MKDOCS_2_WARNING": "1", "HOME": str(tmp_path)}
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [(page.name, found) for page in pages if (found := ELSEWHERE.findall(page.read_text()))] == []
    demo = (tmp_path / "site" / "tutorial" / "demo.html").read_text()
    assert "17 kept, 14 rejected, 4 failed" in demo
    assert "<!-- " not in demo.partition("<article")[2].partition("</article>")[0]
