"""``python -m pipeline.synthetic FOLDER``: render the synthetic sources, and serve them with ``--serve``."""

from __future__ import annotations

from pipeline.runtime.interrupts import end_quietly

if __name__ == "__main__":
    end_quietly()  # Ctrl-C prints no trace, not even during the imports below

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.synthetic.catalogue import catalogue
from pipeline.synthetic.render import DEFAULT_BASE_URL, render_catalogue
from pipeline.synthetic.serve import base_url, make_server


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, renders the sources and, with ``--serve``, serves them until Ctrl-C."""
    names = [spec.name for spec in catalogue()]
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go; those already there are kept")
    parser.add_argument("--base-url", help=f"what the links in sources.csv begin with (default {DEFAULT_BASE_URL})")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--workers", type=int, help="processes that render (default: one a core)")
    parser.add_argument(
        "--serve", type=int, metavar="PORT", help="then serve the folder on 127.0.0.1 (0: any free port)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = make_server(options.folder, options.serve) if options.serve is not None else None
    links = options.base_url or (base_url(server) if server else DEFAULT_BASE_URL)
    specs = [spec for spec in catalogue() if options.only is None or spec.name in options.only]
    paths = render_catalogue(options.folder, specs=specs, base_url=links, workers=options.workers)
    print(f"{len(paths)} synthetic sources in {options.folder}, listed in {options.folder / 'sources.csv'}")  # noqa: T201
    if server is not None:
        print(f"serving them at {base_url(server)} (stop with Ctrl-C)")  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        server.server_close()


if __name__ == "__main__":
    main()
