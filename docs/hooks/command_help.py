"""The help of every command, as its own parser prints it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

from flows.command import PROGRAM
from flows.commands import HEARSCAPE
from pipeline.runtime.commands import Command, Group, parser_of

MODULES = ("flows.demo", "pipeline.synthetic", "pipeline.synthetic.frames", "trainer.demo", "trainer.model.sample", "trainer.model.parity",
           "trainer.small_pair", "trainer.small_pair.trunks")  # fmt: skip
"""Modules that `python -m` runs and that are no command of the program `hearscape`."""

PROGRAM_MODULE = "flows.commands"
"""What it defines is a command of the program alone."""
WIDTH = "96"
"""Columns of the help."""


class _ParserReachedError(Exception):
    """The command has come to its parser."""


def _imported(module: str) -> ModuleType:
    """What `python -m MODULE` runs: the module, or the ``__main__`` of the package."""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if is_package else module)


def parser_in(module: str) -> argparse.ArgumentParser:
    """The parser of a module: its ``main`` runs up to the point where it reads its arguments."""
    command = _imported(module)
    parsers: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parsers.append(parser)
        raise _ParserReachedError

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(_ParserReachedError):
        command.main([])
    return parsers[0]


def help_of(parser: argparse.ArgumentParser) -> str:
    """The help as a terminal of ``WIDTH`` columns shows it, without colours."""
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}):
        return parser.format_help().strip()


def commands_of(group: Group, *words: str) -> Iterator[tuple[str, Command]]:
    """The words that choose a command, and the command; those that are chosen within another follow it."""
    for word, command in group.commands.items():
        if isinstance(command, Group):
            yield from commands_of(command, *words, word)
        else:
            yield " ".join((*words, word)), command
            yield from ((" ".join((*words, word, own)), variant) for own, variant in command.variants.items())


def module_form(command: Command) -> str | None:
    """What follows ``python -m`` to run a command. None: it has no module of its own."""
    module = command.run.__module__
    for value in vars(importlib.import_module(module)).values():
        if isinstance(value, Command | Group):
            for word, inner in value.variants.items():
                if inner is command and module != PROGRAM_MODULE:
                    return f"{module.removesuffix('.__main__')} {word}"
    return module.removesuffix(".__main__") if hasattr(importlib.import_module(module), "main") else None


def exit_codes(module: str) -> str | None:
    """What the command's ``main`` says of its exit codes."""
    text = inspect.getdoc(_imported(module).main) or ""
    return re.sub(r"\s+", " ", text) if re.search(r"\b[01]\b", text) else None


def commands_text() -> str:
    """The page of all commands."""
    lines = [
        "# Commands",
        "",
        "Made from the commands' own help. `make demo` installs `hearscape` and `python` in `.venv/bin`.",
        *_section("hearscape", parser_of(HEARSCAPE, PROGRAM)),
    ]
    for words, command in commands_of(HEARSCAPE):
        lines += _section(f"hearscape {words}", parser_of(command, f"{PROGRAM} {words}"))
        if module := module_form(command):
            lines += ["", f"The same command: `python -m {module}`."]
            if codes := exit_codes(module.partition(" ")[0]):
                lines += ["", codes]
    for module in MODULES:
        lines += _section(f"python -m {module}", parser_in(module))
        if codes := exit_codes(module):
            lines += ["", codes]
    return "\n".join(lines) + "\n"


def _section(title: str, parser: argparse.ArgumentParser) -> list[str]:
    return ["", f"## {title}", "", "```text", help_of(parser), "```"]
