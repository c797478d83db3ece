"""Commands: the options and the work of each in one place, for ``python -m MODULE`` and for the program ``hearscape``.

What defines a command must be quick to import, since ``hearscape --help`` imports every one: the work imports what it needs.
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
"""Of a command, with the space before it: argparse measures without that space, and breaks the line."""
DONE, FAILED, REFUSED = 0, 1, 2
"""Exit codes. Refused: the message says what to put right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Options, and what is done with them."""

    summary: str
    """One line, which a list of commands shows."""
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, str], int]
    """Takes the options and the command line as it was typed; returns the exit code. Raises UserError for what is refused."""
    details: str = ""
    """More lines, which follow the options in the command's own help."""
    logs_warnings: bool = False
    """Whether warnings that are logged appear on standard error; the flows show theirs with the progress."""
    variants: Mapping[str, Command] = field(default_factory=dict)
    """Commands of their own that a first word chooses, such as ``report serve`` beside ``report``."""

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Adds description and options to a parser."""
        _describe(parser, self)
        self.add_options(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Commands that are chosen by a word."""

    summary: str
    commands: Mapping[str, Command | Group]
    details: str = ""
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    """Options that stand in place of a command, such as ``--version``."""

    @property
    def variants(self) -> Mapping[str, Command | Group]:
        return self.commands

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Adds description, options, and the commands with their own options to a parser."""
        _describe(parser, self)
        self.add_options(parser)
        chosen = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for name, command in self.commands.items():
            command.fill(chosen.add_parser(name, help=command.summary))


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
    """Runs a command on ``arguments``, or on those of this process; returns its exit code.

    0 done, 1 failed, 2 refused (the message says what to put right), 130 interrupted. A command may have others, and says so.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    while words and words[0] in command.variants:
        command, program, words = command.variants[words[0]], f"{program} {words[0]}", words[1:]
    options = parser_of(command, program).parse_args(words)
    assert isinstance(command, Command)  # the parser of a group ends the process where no command was chosen
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
