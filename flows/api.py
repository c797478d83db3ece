"""Checks before any work whether a Prefect API can be used; Prefect itself reports most such faults with long tracebacks.

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
"""How much of an answer is read. The expected answer is a version in quotes."""


@dataclass(frozen=True, slots=True)
class ApiProblem:
    """Why an API cannot be used."""

    what: str
    """The problem."""
    remedy: str
    """What the user can do. Empty: start a server there."""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy or 'start one there'}"


def authorization(auth_string: str | None, api_key: str | None) -> str | None:
    """The header ``Authorization`` that Prefect's client sends for these settings. None: neither is set."""
    if auth_string:
        return f"Basic {base64.b64encode(auth_string.encode()).decode()}"
    return f"Bearer {api_key}" if api_key else None


def api_problem(url: str, authorized_by: str | None = None) -> ApiProblem | None:
    """Why the API at ``url`` cannot be used; None: it can. ``authorized_by``: the header ``Authorization``.

    Also None if its certificate cannot be verified here, since Prefect's own settings may accept the certificate.
    """
    try:
        shown_url = bare_url(url)
    except ValueError as error:  # such as brackets that do not close
        return ApiProblem(f"{url} cannot be the address of a Prefect server ({error})", "correct it")
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("it is no http address")
        request = urllib.request.Request(f"{shown_url.rstrip('/')}/admin/version")
        if authorized_by or parts.username:
            credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            request.add_header("Authorization", authorized_by or str(authorization(credentials, None)))
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            answer, content_type = response.read(MAX_ANSWER_BYTES), response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        return _problem_of_status(error.code, shown_url)
    except ssl.SSLError:
        return None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None
        detail = "" if isinstance(reason, ConnectionRefusedError) else f" ({reason})"
        return ApiProblem(f"no Prefect server answers at {shown_url}{detail}", "")
    except ValueError as error:
        return ApiProblem(f"{shown_url} cannot be the address of a Prefect server ({error})", "correct it")
    return _problem_of_answer(answer, content_type, shown_url)


def _problem_of_status(status: int, shown_url: str) -> ApiProblem:
    if status in (401, 403):
        return ApiProblem(
            f"the Prefect server at {shown_url} refuses this client (HTTP {status})",
            "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING to the credentials that it expects",
        )
    if status >= 500:
        return ApiProblem(
            f"the Prefect server at {shown_url} fails (HTTP {status})", "look into its log, or try again later"
        )
    return ApiProblem(f"what answers at {shown_url} is no Prefect API (HTTP {status})", "correct the address")


def _problem_of_answer(answer: bytes, content_type: str, shown_url: str) -> ApiProblem | None:
    try:
        server_version = json.loads(answer)
        server_major = int(server_version.partition(".")[0])
    except (ValueError, AttributeError, RecursionError):
        return ApiProblem(
            f"what answers at {shown_url} is no Prefect API (it sends {content_type} instead of a version)",
            "correct the address, or log in to the proxy in front of it",
        )
    own_version = version("prefect")
    if server_major != int(own_version.partition(".")[0]):
        return ApiProblem(
            f"the Prefect server at {shown_url} has version {server_version}, and this program works with {own_version}",
            f"start a server of version {own_version} there",
        )
    return None


def bare_url(url: str) -> str:
    """The address without user name and password. Raises ValueError for one that cannot be parsed."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
