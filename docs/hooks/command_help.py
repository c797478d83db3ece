"""The help of every command, as its own parser prints it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from unittest import mock

COMMANDS: dict[str, Sequence[tuple[str, ...]]] = {
    "flows.demo": [()],
    "flows.build_dataset": [()],
    "flows.serve": [()],
    "pipeline.report": [(), ("serve",)],
    "pipeline.manifest": [()],
    "pipeline.ledger": [()],
    "pipeline.agreement": [()],
    "pipeline.importers": [()],
    "pipeline.synthetic": [()],
    "trainer.demo": [()],
    "trainer.fit": [()],
    "trainer.generate": [()],
    "trainer.evaluate": [()],
    "trainer.model.convert": [()],
    "trainer.model.sample": [()],
    "trainer.model.parity": [()],
    "trainer.small_pair": [()],
    "trainer.small_pair.trunks": [()],
}
"""Modules that `python -m` runs, and the words after which each shows another help."""

WIDTH = "96"
"""Columns of the help."""


class _ParserReachedError(Exception):
    """The command has come to its parser."""


def _imported(module: str) -> ModuleType:
    """What `python -m MODULE` runs: the module, or the ``__main__`` of the package."""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if is_package else module)


def parser_of(module: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a command: its ``main`` runs up to the point where it reads its arguments."""
    command = _imported(module)
    parsers: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parsers.append(parser)
        raise _ParserReachedError

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(_ParserReachedError):
        command.main(list(words))
    return parsers[0]


def help_texts(module: str, words: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Command line and help of a command, then of each of its subcommands."""
    parser = parser_of(module, words)
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}):
        for each in _with_subcommands(parser):
            yield each.prog, each.format_help()


def _with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _with_subcommands(inner)


def exit_codes(module: str) -> str | None:
    """What the command's ``main`` says of its exit codes."""
    text = inspect.getdoc(_imported(module).main) or ""
    return re.sub(r"\s+", " ", text) if re.search(r"\b[01]\b", text) else None


def commands_text() -> str:
    """The page of all commands."""
    lines = [
        "# Commands",
        "",
        "Made from the commands' own help. `python` is the one of the environment: `.venv/bin/python` after `make demo`.",
    ]
    for module, forms in COMMANDS.items():
        lines += ["", f"## python -m {module}"]
        for words in forms:
            for number, (prog, text) in enumerate(help_texts(module, words)):
                if number or words:
                    lines += ["", f"### {prog.removeprefix('python -m ')}"]
                lines += ["", "```text", text.strip(), "```"]
        if codes := exit_codes(module):
            lines += ["", codes]
    return "\n".join(lines) + "\n"
