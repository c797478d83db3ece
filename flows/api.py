"""Checks before any work whether a Prefect API can be used: Prefect itself reports most such faults as long traces.

Imports only the standard library, so that ``flows.short_names`` can use it while Prefect is being imported.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 10_000
"""How much of an answer is read; the expected one is a version in quotes."""


@dataclass(frozen=True, slots=True)
class ApiProblem:
    """Why an API cannot be used."""

    what: str
    remedy: str
    """What the user can do. Empty: start a server there."""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy or 'start one there'}"


def authorization(auth_string: str | None, api_key: str | None) -> str | None:
    """The header that Prefect's client sends for these settings. None: they are not set."""
    if auth_string:
        return f"Basic {base64.b64encode(auth_string.encode()).decode()}"
    return f"Bearer {api_key}" if api_key else None


def api_problem(url: str, authorized_by: str | None = None) -> ApiProblem | None:
    """Why the API at ``url`` cannot be used; None: it can. ``authorized_by``: the header ``Authorization``.

    Also None where its certificate cannot be verified here: Prefect's own settings may allow it.
    """
    try:
        shown = bare_url(url)
    except ValueError as error:  # such as brackets that do not close
        return ApiProblem(f"{url} cannot be the address of a Prefect server ({error})", "correct it")
    try:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname or place.port == 0:
            raise ValueError("it is no http address")
        request = urllib.request.Request(f"{shown.rstrip('/')}/admin/version")
        if authorized_by or place.username:
            credentials = f"{unquote(place.username or '')}:{unquote(place.password or '')}"
            request.add_header("Authorization", authorized_by or str(authorization(credentials, None)))
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            answer, kind = response.read(MAX_ANSWER_BYTES), response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        return _of_status(error.code, shown)
    except ssl.SSLError:
        return None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None
        because = "" if isinstance(reason, ConnectionRefusedError) else f" ({reason})"
        return ApiProblem(f"no Prefect server answers at {shown}{because}", "")
    except ValueError as error:
        return ApiProblem(f"{shown} cannot be the address of a Prefect server ({error})", "correct it")
    return _of_answer(answer, kind, shown)


def _of_status(status: int, shown: str) -> ApiProblem:
    if status in (401, 403):
        return ApiProblem(
            f"the Prefect server at {shown} refuses this client (HTTP {status})",
            "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING to what it wants",
        )
    if status >= 500:
        return ApiProblem(
            f"the Prefect server at {shown} fails (HTTP {status})", "look into its log, or try again later"
        )
    return ApiProblem(f"what answers at {shown} is no Prefect API (HTTP {status})", "correct the address")


def _of_answer(answer: bytes, kind: str, shown: str) -> ApiProblem | None:
    try:
        server_version = json.loads(answer)
        server_major = int(server_version.partition(".")[0])
    except (ValueError, AttributeError, RecursionError):
        return ApiProblem(
            f"what answers at {shown} is no Prefect API (it sends {kind} in place of a version)",
            "correct the address, or log in to the proxy that stands before it",
        )
    own_version = version("prefect")
    if server_major != int(own_version.partition(".")[0]):
        return ApiProblem(
            f"the Prefect server at {shown} has version {server_version}, and this program works with {own_version}",
            f"start a server of version {own_version} there",
        )
    return None


def bare_url(url: str) -> str:
    """The address without the user name and password."""
    place = urlsplit(url)
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()
