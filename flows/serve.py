"""One command for the Prefect server and the runner: ``python -m flows.serve [--port 4200]``.

Starts a server on this machine unless one answers there already, and offers the deployments of this project until
Ctrl-C, which ends both. PREFECT_API_URL, where it is set, names the server to use instead.
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
