"""Starts the Prefect server and the runner of the deployments: ``python -m flows.serve [--port 4200]``.

A server on this machine that answers at that port is used instead of a new one. Ctrl-C ends the runner, and the server if this
command started it. If PREFECT_API_URL is set, it names the server to use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flows.environment import DEFAULT_PORT
from pipeline.runtime.commands import DONE, Command, run_command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port of the server, on loopback (%(default)s)")
    parser.add_argument("--limit", type=int, default=1, help="runs at the same time (%(default)s)")


def _run(options: argparse.Namespace, _: str) -> int:
    from flows.deployments import serve  # noqa: PLC0415 (imports Prefect)

    serve(options.port, options.limit)
    return DONE


SERVE = Command(summary="start Prefect's server and UI, and offer the builds there", add_options=_add_options, run=_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ended by Ctrl-C, 1 the server failed, 2 refused."""
    return run_command(SERVE, "python -m flows.serve", arguments)


if __name__ == "__main__":
    sys.exit(main())
