"""The commands of the program ``hearscape``. ``python -m MODULE`` runs the same commands from a checkout."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flows import build_dataset, demo, new, serve
from pipeline import ledger, manifest
from pipeline.agreement import __main__ as agreement
from pipeline.errors import UserError
from pipeline.importers import __main__ as importers
from pipeline.report import __main__ as report
from pipeline.runtime.commands import DONE, Command, Group, parser_of
from pipeline.runtime.installed import installed_version
from trainer import evaluate, fit, generate
from trainer.model import convert

PROGRAM = "hearscape"
FIRST_STEPS = """\
first steps:
  hearscape demo --no-fit                           build a small dataset of painted videos, to see what comes out
  hearscape new my-videos                           write recipes and a source list
  hearscape build my-videos/manifests/recipes/landscape.toml --dry-run
                                                    check the recipe, and see what would be done
hearscape COMMAND --help explains a command. Datasets go to manifests/, models to runs/, below the current folder.
"""
SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES = {"FILE", "IN", "LIST", "OUT", "OUT.safetensors", "R.toml", "RECIPE", "SEGMENTS", "SHEET.png", "runs/NAME"}
"""Names of arguments (metavars) that are completed with the names of files."""
FOLDERS = {"DATASET", "FOLDER"}
"""Names of arguments that are completed with the names of folders."""


class _PrintVersion(argparse.Action):
    """Prints the version. It is read only on demand, since the metadata of packages is slow to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(PROGRAM, installed_version(PROGRAM))  # noqa: T201
        parser.exit()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and end")


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    demo.DEMO.add_options(parser)
    parser.add_argument("--no-fit", action="store_true", help="end when the dataset is built, a minute or two")


def _run_demo(options: argparse.Namespace, command_line: str) -> int:
    """Runs ``python -m flows.demo``, then ``python -m trainer.demo``."""
    if options.keep_server and not options.no_fit:
        raise UserError("--keep-server serves until Ctrl-C: give --no-fit with it, and fit with python -m trainer.demo")
    code = demo.DEMO.run(options, command_line)
    return code if code or options.no_fit else _run_fit()


def _run_fit() -> int:
    """Runs ``python -m trainer.demo`` in a process of its own, without Prefect, and returns its exit code."""
    fit = subprocess.Popen([sys.executable, "-m", "trainer.demo"])
    with _signals_handled_by(fit):
        code = fit.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals_handled_by(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Leaves Ctrl-C, which the terminal sends to ``process`` too, to that process, and forwards SIGTERM to it."""

    def ignore(*_: object) -> None: ...

    def forward(number: int, _: object) -> None:
        process.send_signal(number)

    previous_handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, ignore), (signal.SIGTERM, forward))
    }
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


DEMO = Command(
    summary="build a small synthetic dataset, and fit a tiny model to it",
    add_options=_add_demo_options,
    run=_run_demo,
    details="The fit takes about twenty-five minutes on two cores. The same command continues what was interrupted.",
)


def _add_completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def _print_completion(options: argparse.Namespace, _: str) -> int:
    import shtab  # noqa: PLC0415 (not needed for --help)

    parser = parser_of(HEARSCAPE, PROGRAM)
    complete_paths(parser)
    print(shtab.complete(parser, options.shell))  # noqa: T201
    return DONE


COMPLETION = Command(
    summary="print a script that completes these commands in your shell",
    add_options=_add_completion_options,
    run=_print_completion,
    details="""\
bash:  hearscape completion bash > ~/.local/share/bash-completion/completions/hearscape
zsh:   hearscape completion zsh > FOLDER/_hearscape, where FOLDER is one of $fpath
fish:  hearscape completion fish > ~/.config/fish/completions/hearscape.fish
tcsh:  hearscape completion tcsh > ~/.hearscape.csh, and source that file in ~/.tcshrc
""",
)


def complete_paths(parser: argparse.ArgumentParser) -> None:
    """Makes arguments that are paths complete to the names of files or folders, in the parsers of all commands."""
    import shtab  # noqa: PLC0415 (not needed for --help)

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                complete_paths(subparser)
        elif action.metavar in FILES:
            vars(action)["complete"] = shtab.FILE
        elif action.metavar in FOLDERS:
            vars(action)["complete"] = shtab.DIRECTORY


HEARSCAPE = Group(
    summary="builds datasets of landscape videos, and fits models that turn sound into video",
    add_options=_add_options,
    details=FIRST_STEPS,
    commands={
        "new": new.NEW,
        "demo": DEMO,
        "build": build_dataset.BUILD,
        "serve": serve.SERVE,
        "report": report.REPORT,
        "verify": manifest.VERIFY,
        "ledger": ledger.SHOW,
        "withdraw": manifest.WITHDRAW,
        "calibrate": agreement.CALIBRATE,
        "import": importers.IMPORT,
        "fit": fit.FIT,
        "generate": generate.GENERATE,
        "evaluate": evaluate.EVALUATE,
        "convert": convert.CONVERT,
        "completion": COMPLETION,
    },
)
"""The commands are in the order in which a new user needs them."""
