"""A Prefect server as a child process that ends when its parent ends.

``python -m flows.server ARGS`` is ``prefect server start ARGS``, with a pipe from the parent as standard input. When
the parent ends, however it ends, the pipe closes and the server stops. The child has its own session, so that Ctrl-C
reaches only the parent, which still needs the server to record how its run ended.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import get_current_settings

from flows.api import api_problem, authorization
from pipeline.errors import HearscapeError, UserError
from pipeline.runtime.process_folder import system_folder

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 180.0
"""The first start creates the database, which takes 10 s on an idle machine and much longer on a busy one."""
STOP_TIMEOUT_SECONDS = 10.0
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b.*: ")
"""The line of a traceback that names the exception and its message."""


class ServerStartError(HearscapeError):
    """The Prefect server did not start."""


class ServerLostError(HearscapeError):
    """The Prefect server stopped answering during a run."""


def api_url(port: int) -> str:
    """The URL of the API of a server on this machine."""
    return f"http://{HOST}:{port}/api"


def is_healthy(url: str) -> bool:
    """Whether a Prefect API answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return json.load(response) is True
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """A port on loopback that no program uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises :class:`UserError` if the port cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} on {HOST} cannot be used ({error}): name another one with --port") from error


def prefect_home() -> Path:
    """The folder of Prefect's own files, such as its database."""
    return Path(get_current_settings().home)


def check_home() -> None:
    """Raises :class:`UserError` if Prefect's folder cannot be created, or it or the database in it cannot be written."""
    home = prefect_home()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        for database in home.glob("prefect.db*"):
            with database.open("r+b"):
                pass
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(
            f"PREFECT_HOME: Prefect keeps its database in {home}, which cannot be written ({why}): "
            "set PREFECT_HOME to a folder of your own"
        ) from error


def check_prefect() -> None:
    """Raises :class:`UserError` if no flow can run: TMPDIR, the API at PREFECT_API_URL or Prefect's folder cannot be used."""
    system_folder()
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        check_home()
    elif (problem := api_problem(url, authorized_by())) is not None:
        raise UserError(f"PREFECT_API_URL: {problem}, or unset it, and a server is started for this command")


def authorized_by() -> str | None:
    """The header ``Authorization`` that Prefect's client sends. None: no credentials are set."""
    secrets = (get_current_settings().api.auth_string, get_current_settings().api.key)
    return authorization(*(secret.get_secret_value() if secret else None for secret in secrets))


@contextmanager
def prefect_server(port: int | None = None, *, ui: bool = True) -> Iterator[str]:
    """A running server on loopback; yields the URL of its API.

    ``port``: None for any free one. Runs are stored in Prefect's own database. Raises :class:`ServerStartError`, or
    :class:`UserError` if the database cannot be written.
    """
    check_home()
    port = port or free_port()
    url = api_url(port)
    with tempfile.TemporaryFile("w+", prefix="prefect-server-") as log:
        server = _start(port, url, ui, log)
        try:
            _wait_until_healthy(server, url, log)
            yield url
        finally:
            _stop(server)


@contextmanager
def temporary_server() -> Iterator[None]:
    """While the block runs, Prefect uses a server that is started for this process only."""
    with prefect_server(ui=False) as url, api_url_set(url), all_sent():
        yield


_unsent: list[object] = []
"""Workers of Prefect that still had records to send when they were last waited for."""


@contextmanager
def all_sent() -> Iterator[None]:
    """At the end of the block, waits up to ``STOP_TIMEOUT_SECONDS`` for the threads that send logs and events to the server."""
    try:
        yield
    finally:
        for worker in (APILogWorker, EventsWorker):
            done_and_pending = worker.drain_all(timeout=STOP_TIMEOUT_SECONDS, at_exit=False)
            assert isinstance(done_and_pending, tuple), "called in an event loop"
            _unsent.extend(done_and_pending[1])


def is_unsent() -> bool:
    """Whether threads of Prefect still try to send to a server that does not answer; the interpreter would wait for them."""
    return bool(_unsent)


@contextmanager
def api_url_set(url: str) -> Iterator[None]:
    """While the block runs, Prefect uses the API at ``url``, in this process and in those that it starts.

    The URL is set in the environment, since settings of a context do not reach Prefect's own threads.
    """
    previous = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        if previous is not None:
            os.environ["PREFECT_API_URL"] = previous
        refresh_global_settings_context()


def _start(port: int, url: str, ui: bool, log: IO[str]) -> subprocess.Popen[bytes]:
    arguments = ["--host", HOST, "--port", str(port), "--ui" if ui else "--no-ui", "--log-level", "WARNING"]
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_SERVER_UI_API_URL": url}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.server", *arguments],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_healthy(url):
        if server.poll() is not None:
            problem = f"ended with exit code {server.returncode}"
        elif time.monotonic() > deadline:
            problem = f"did not answer within {START_TIMEOUT_SECONDS:.0f} s"
        else:
            time.sleep(0.1)
            continue
        raise ServerStartError(f"the Prefect server for {url} {problem}{_reason_in(log)}")


def _reason_in(log: IO[str]) -> str:
    """The last error in a server's log, if one is recognised, and the path of a copy of the log, for an error message."""
    log.seek(0)
    lines = log.read().splitlines()
    with tempfile.NamedTemporaryFile("w", prefix="prefect-server-", suffix=".log", delete=False) as copy:
        copy.write("\n".join(lines))
    errors = [line.strip() for line in lines if _ERROR.match(line)]
    reason = f": {errors[-1]}" if errors else ""
    return f"{reason}. Its log is {copy.name}; PREFECT_HOME=FOLDER gives it a new database (its own is in {prefect_home()})"


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        logger.debug("the Prefect server did not stop within %.0f s and is killed", STOP_TIMEOUT_SECONDS)
        server.kill()
        server.wait()
    if server.stdin is not None:
        server.stdin.close()


def _end_with_parent() -> None:
    """Reads standard input until the parent's end of the pipe closes, then stops this process."""
    while os.read(0, 1 << 10):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_SECONDS)
    os._exit(1)


def main() -> None:
    """Runs the server in this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from prefect.cli import app  # noqa: PLC0415 - only the child process needs it

    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
