"""A complete build from the synthetic sources: ``python -m flows.demo [--keep-server]``.

Renders the sources, serves them on loopback, so that they are downloaded like any other source, and builds the demo recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceListError
from pipeline.runtime.commands import Command, run_command

if TYPE_CHECKING:
    from pipeline.synthetic.catalogue import SyntheticSpec

RECIPE = "demo"
PORT = 8765
"""The port is part of the sources' links, which the dataset stores: with another port, the dataset has other bytes."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one setting of the build's recipe"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        help="port on loopback at which the synthetic sources are served (%(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="build these synthetic sources only, such as fire_camp rain_lake"
    )
    parser.add_argument("--keep-server", action="store_true", help="keep serving the sources when the build is done")


def _free_port(preferred: int) -> int:
    """``preferred``, or if it is in use any free port, after printing that the links contain another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            print(f"Port {preferred} is in use: the sources' links, and so the dataset, will contain another one.")  # noqa: T201
        return int(probe.getsockname()[1])


def _chosen(names: Sequence[str] | None) -> list[SyntheticSpec]:
    """The synthetic sources with these names; None: all. Raises SourceListError for an unknown name."""
    from pipeline.synthetic.catalogue import catalogue  # noqa: PLC0415 (not needed for --help)

    specs = {spec.name: spec for spec in catalogue()}
    if unknown := [name for name in names or () if name not in specs]:
        raise SourceListError(f"--only {unknown[0]}: there is no such source; the names are {', '.join(specs)}")
    return [spec for name, spec in specs.items() if names is None or name in names]


def _run(options: argparse.Namespace, command_line: str) -> int:
    # Imported here, since each process that renders or decodes imports this module again, and does not use Prefect.
    from rich.console import Console  # noqa: PLC0415

    from flows import direct  # noqa: PLC0415
    from flows.server import check_prefect  # noqa: PLC0415
    from pipeline.build.recipe import load_recipe  # noqa: PLC0415
    from pipeline.starter import recipe_path  # noqa: PLC0415
    from pipeline.synthetic.render import render_catalogue, sources_locked  # noqa: PLC0415
    from pipeline.synthetic.serve import serve_folder  # noqa: PLC0415

    def work() -> None:
        specs = _chosen(options.only)
        recipe = load_recipe(recipe_path(RECIPE), options.set)
        check_prefect()
        console = Console(stderr=True)
        folder = Path(recipe.sources[0]).parent
        with sources_locked(folder), serve_folder(folder, _free_port(options.port)) as url:
            with console.status(f"Rendering the synthetic sources in {folder}"):
                paths = render_catalogue(folder, specs=specs, base_url=url)
            print(f"{len(paths)} synthetic sources in {folder}, served at {url}", flush=True)  # noqa: T201
            direct.check(recipe)
            print(direct.summary_text(direct.run_now(recipe, console)), flush=True)  # noqa: T201
            if options.keep_server:
                print(f"Serving the synthetic sources at {url} until Ctrl-C", flush=True)  # noqa: T201
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()

    return direct.exit_code(work, command_line)


DEMO = Command(summary="build a dataset from synthetic sources", add_options=_add_options, run=_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: those of ``flows.build_dataset``."""
    return run_command(DEMO, "python -m flows.demo", arguments)


if __name__ == "__main__":
    sys.exit(main())
