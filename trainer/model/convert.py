"""``python -m trainer.model.convert IN OUT.safetensors``: converts a generator from any supported format into ours.

Prints the format of the file and its contents. ``--generator-only`` leaves the discriminator out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.runtime.commands import DONE, REFUSED, Command, run_command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="path or URL: official .pkl, rosinality's .pt, or .safetensors")
    parser.add_argument("target", metavar="OUT.safetensors", type=Path, help="the file to write")
    parser.add_argument("--sha256", help="of IN; a URL needs it")
    parser.add_argument("--generator-only", action="store_true", help="leave the discriminator out")
    parser.add_argument(
        "--half", action="store_true", help="store 16-bit floats: half the size, for a file that training starts from"
    )


def _run(options: argparse.Namespace, _: str) -> int:
    from trainer.model.conversion import convert  # noqa: PLC0415 (after --help)

    try:
        lines = convert(
            options.source, options.target, options.sha256, generator_only=options.generator_only, half=options.half
        )
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return REFUSED
    print("\n".join([*lines, f"written: {options.target}"]))  # noqa: T201
    return DONE


CONVERT = Command(
    summary="convert a published StyleGAN into this project's format",
    add_options=_add_options,
    run=_run,
    details="Prints the format of the file and its contents. No code in a pickle is run.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 when the file cannot be converted."""
    return run_command(CONVERT, "python -m trainer.model.convert", arguments)


if __name__ == "__main__":
    sys.exit(main())
