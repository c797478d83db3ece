"""Commands: one object holds the options and the function of a command, for ``python -m MODULE`` and for ``hearscape NAME``.

A module that defines a command must be quick to import, since ``hearscape --help`` imports all of them; the function of the
command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import HearscapeError, UserError
from pipeline.runtime.interrupts import INTERRUPTED, interruptible

LONGEST_NAME = 14
"""Length of the longest command name with its indentation of 4. argparse ignores part of that indentation, and would put the help
of the longest name on a line of its own."""
DONE, FAILED, REFUSED = 0, 1, 2
"""Exit codes. Refused: the message says what to correct."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: its options, and the function that carries it out."""

    summary: str
    """One line, shown in a list of commands."""
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, str], int]
    """Takes the options and the command line as it was typed; returns the exit code. Raises UserError for what is refused."""
    details: str = ""
    """More lines, shown below the options in the command's own help."""
    logs_warnings: bool = False
    """Whether logged warnings are written to standard error. The commands of the flows show warnings beside their progress instead."""
    variants: Mapping[str, Command] = field(default_factory=dict)
    """Other commands, selected by the first word after this one's name, such as ``report serve`` beside ``report``."""

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Adds description and options to a parser."""
        _describe(parser, self)
        self.add_options(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Several commands, of which the first word selects one."""

    summary: str
    commands: Mapping[str, Command | Group]
    details: str = ""
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    """Adds options that are given instead of a command, such as ``--version``."""

    @property
    def variants(self) -> Mapping[str, Command | Group]:
        return self.commands

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Adds description, options, and the commands with their own options to a parser."""
        _describe(parser, self)
        self.add_options(parser)
        subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for name, command in self.commands.items():
            command.fill(subparsers.add_parser(name, help=command.summary))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of ``details``, and has room for the longest name beside its explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
        self._action_max_length = LONGEST_NAME


def _describe(parser: argparse.ArgumentParser, command: Command | Group) -> None:
    parser.description = f"{command.summary[:1].upper()}{command.summary[1:]}."
    parser.epilog = command.details
    parser.formatter_class = _HelpFormatter


def parser_of(command: Command | Group, program: str) -> argparse.ArgumentParser:
    """The parser of a command that is called as ``program``, such as ``python -m trainer.fit``."""
    parser = argparse.ArgumentParser(prog=program)
    command.fill(parser)
    return parser


def run_command(command: Command | Group, program: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command on ``arguments`` (None: those of this process) and returns its exit code.

    0 done, 1 failed, 2 refused (the message says what to correct), 130 interrupted. Some commands have others, which their ``main`` lists.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    while words and words[0] in command.variants:
        command, program, words = command.variants[words[0]], f"{program} {words[0]}", words[1:]
    options = parser_of(command, program).parse_args(words)
    assert isinstance(command, Command)  # the parser of a group ends the process if no command is given
    command_line = shlex.join([*program.split(), *words])
    if command.logs_warnings:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with interruptible(command_line):
        try:
            return command.run(options, command_line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return REFUSED
        except HearscapeError as error:
            print(f"failed: {error}", file=sys.stderr)  # noqa: T201
            return FAILED
    return INTERRUPTED
