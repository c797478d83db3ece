"""What Prefect must find in the environment before it is imported. Import this module first.

Prefect would otherwise report anonymous usage. Plugins are for the ``prefect`` command (``flows.short_names``): where Prefect
is imported in an event loop, as in the workers of Dask, it cannot load any and says so. What the user has set stays.
"""

from __future__ import annotations

import os
import warnings

import pipeline.runtime.processor  # noqa: F401 - for the libraries that compute

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_PLUGINS_ENABLED", "false")
warnings.filterwarnings(
    "ignore", "Failed to create the Prefect home directory"
)  # flows.server.check_home tells what to do

DEFAULT_PORT = 4200
"""The port in ``[tool.prefect.api]`` of pyproject.toml, which is what `prefect` commands in this folder talk to."""
