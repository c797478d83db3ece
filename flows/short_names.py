"""Makes ``prefect deployment run build-dataset`` mean ``prefect deployment run build-dataset/build-dataset``.

A Prefect plugin, found by the entry point ``prefect.plugins`` and switched on in ``[tool.prefect.plugins]`` of
pyproject.toml. Prefect calls the plugin while it is imported, before its command line reads ``sys.argv``. The plugin changes
``sys.argv``, and ends the command with a short message if the server cannot be used. Every import of Prefect in this
folder loads this module, so it imports little.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from prefect.plugins import register_hook

DEPLOYMENTS = ("build-dataset", "dataset-report")
"""Every deployment of this project. Each has the name of its flow."""

FLAGS = frozenset({"--watch", "--no-watch", "--all", "--no-all", "--yes", "-y", "--prompt", "--no-prompt"})
"""Options of ``prefect`` and ``prefect deployment`` that take no value. The word after any other option is its value."""


def with_full_names(words: Sequence[str]) -> list[str]:
    """The words after ``prefect``, with the names of this project's deployments in the form FLOW/DEPLOYMENT.

    Only the arguments of ``prefect deployment COMMAND`` are changed, not other commands or the values of options.
    """
    changed: list[str] = []
    num_names = 0
    after_option = False
    for word in words:
        is_name = not after_option and not word.startswith("-")
        if is_name:
            num_names += 1
            if num_names == 1 and word not in {"deployment", "deployments"}:
                return list(words)
        changed.append(f"{word}/{word}" if is_name and num_names > 2 and word in DEPLOYMENTS else word)
        after_option = word.startswith("-") and "=" not in word and word not in FLAGS
    return changed


def is_prefect_command(program: str, original: Sequence[str]) -> bool:
    """Whether this process was started as ``prefect`` (``program`` is ``sys.argv[0]``) or as ``python -m prefect``."""
    if program == "-m":
        module = original.index("-m") + 1 if "-m" in original else len(original)
        return original[module : module + 1] == ["prefect"]
    return os.path.splitext(os.path.basename(program))[0] == "prefect"  # noqa: PTH119, PTH122 - spares the import of pathlib


def server_problem(words: Sequence[str], api_url: str | None, authorized_by: str | None = None) -> str | None:
    """An error message, if ``words`` name a deployment of this project and the API at ``api_url`` cannot be used; else None.

    Prefect itself would print a long traceback. Also None if options stand before the command, since they may name another server.
    """
    if words[:1] not in (["deployment"], ["deployments"]) or not {f"{name}/{name}" for name in DEPLOYMENTS} & {*words}:
        return None
    if not api_url:
        return None
    from flows.api import api_problem  # noqa: PLC0415 - each import of Prefect in this folder loads this file

    if (problem := api_problem(api_url, authorized_by)) is None:
        return None
    return f"{problem.what}: {problem.remedy or 'start one, in another terminal, with python -m flows.serve'}"


def _authorized_by() -> str | None:
    """The header that Prefect will send; its settings are loaded before its plugins."""
    from prefect.settings import get_current_settings  # noqa: PLC0415

    from flows.api import authorization  # noqa: PLC0415

    api_settings = get_current_settings().api
    secrets = (api_settings.auth_string, api_settings.key)
    return authorization(*(secret.get_secret_value() if secret else None for secret in secrets))


@register_hook
async def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect while it is imported. Ends a command that needs a server which cannot be used."""
    if sys.argv and is_prefect_command(sys.argv[0], sys.orig_argv):
        sys.argv[1:] = with_full_names(sys.argv[1:])
        if (problem := server_problem(sys.argv[1:], ctx.api_url, _authorized_by())) is not None:
            raise SystemExit(f"error: {problem}")
