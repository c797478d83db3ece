"""Sets Prefect's environment variables. Prefect reads them when it is imported, so import this module first.

They turn off Prefect's usage reports and its plugins. The only plugin, ``flows.short_names``, is for the command
``prefect``; and if Prefect is imported in an event loop, as in Dask's workers, it cannot load plugins and logs an error.
Variables that the user has set are kept.
"""

from __future__ import annotations

import os
import warnings

import pipeline.runtime.processor  # noqa: F401 - sets the variables of numerical libraries

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_PLUGINS_ENABLED", "false")
# flows.server.check_home reports this problem, with advice
warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")

DEFAULT_PORT = 4200
"""The port in ``[tool.prefect.api]`` of pyproject.toml, to which `prefect` commands in this folder connect."""
