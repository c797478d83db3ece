"""Prefect servers that are not there, not Prefect's, of another version or fail, and folders that Prefect cannot write: one line each."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_HOME, get_current_settings, temporary_settings

from flows import build_dataset, demo, serve
from flows.api import api_problem, authorization, bare_url
from flows.server import ServerStartError, check_home, free_port, prefect_server
from tests.faulty_server import Answer, Fault, FaultyServer

PROJECT = Path(__file__).parents[2]
VERSION = "/api/admin/version"
PAGE = Answer(body=b"<html>Please log in</html>", content_type="text/html")

FAULTS = [
    (Answer(body=b'"2.19.0"', content_type="application/json"), "has version 2.19.0, and this program works with 3"),
    (PAGE, "is no Prefect API (it sends text/html instead of a version): correct the address, or log in"),
    (Answer(body=b"[" * 5000), "is no Prefect API"),
    (Answer(body=b"3"), "is no Prefect API"),
    (Answer(status=404), "is no Prefect API (HTTP 404): correct the address"),
    (Answer(status=401), "refuses this client (HTTP 401): set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"),
    (Answer(status=500), "fails (HTTP 500): look into its log"),
    (Answer(body=b'"3.8.8"', fault=Fault.RESET), "no Prefect server answers at http://127.0.0.1"),
]


def refused(command: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that a command leaves which was refused."""
    capsys.readouterr()
    assert command(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(("answer", "message"), FAULTS)
def test_each_command_refuses_a_server_that_cannot_be_used(
    answer: Answer, message: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyServer() as server:
        server.serve(VERSION, answer)
        monkeypatch.setenv("PREFECT_API_URL", server.url("/api"))
        for command, words in (
            (build_dataset.main, [str(recipe)]),
            (build_dataset.main, [str(recipe), "--dry-run"]),
            (demo.main, []),
            (serve.main, []),
        ):
            line = refused(command, words, capsys)
            assert line.startswith("error: PREFECT_API_URL: ")
            assert message in line
            assert "or unset it" in line
    assert not recipe.with_name("tiny").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/api", "no Prefect server answers at http://127.0.0.1:{port}/api: start one there"),
        ("http://me:secret@127.0.0.1:{port}/api", "no Prefect server answers at http://127.0.0.1:{port}/api: start"),
        ("127.0.0.1:{port}/api", "127.0.0.1:{port}/api cannot be the address of a Prefect server"),
        ("http://[", "http://[ cannot be the address of a Prefect server"),
        ("http://127.0.0.1:{port}x/api", "cannot be the address of a Prefect server"),
    ],
)
def test_an_address_where_no_server_is(
    url: str, message: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", url.format(port=port))
    line = refused(build_dataset.main, [str(recipe)], capsys)
    assert message.format(port=port) in line
    assert "secret" not in line


def test_the_client_says_who_it_is() -> None:
    with FaultyServer() as server:
        server.serve(VERSION, Answer(body=b'"3.8.8"', content_type="application/json"))
        assert api_problem(server.url("/api/"), authorization(None, "key")) is None
        assert api_problem(server.url("/api").replace("//", "//me:a%20b@")) is None
        assert [hit.headers["Authorization"] for hit in server.requests] == ["Bearer key", "Basic bWU6YSBi"]
    assert bare_url("http://me:a@host:1/api") == "http://host:1/api"


def test_another_server_on_the_port_is_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with FaultyServer() as server:
        server.serve("/api/health", Answer(body=b"true", content_type="application/json"))
        server.serve(VERSION, FAULTS[0][0])
        line = refused(serve.main, ["--port", str(server.port)], capsys)
    assert "has version 2.19.0" in line
    assert line.endswith("or choose another port with --port")


def test_the_prefect_command_says_what_is_wrong_with_the_server(tmp_path: Path) -> None:
    with FaultyServer() as server:
        server.serve(VERSION, FAULTS[0][0])
        environment = {**os.environ, "PREFECT_API_URL": server.url("/api"), "PREFECT_HOME": str(tmp_path)}
        environment.pop("PREFECT_PLUGINS_ENABLED", None)
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "run", "build-dataset"],
            cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the Prefect server at {server.url('/api')} has version 2.19.0")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_folder_that_prefect_cannot_write_is_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    for home, why in ((file, "it is a file"), (file / "below", "Not a directory")):
        with temporary_settings({PREFECT_HOME: home}):
            for command, words in ((build_dataset.main, [str(recipe)]), (demo.main, []), (serve.main, [])):
                assert refused(command, words, capsys) == (
                    f"error: PREFECT_HOME: Prefect keeps its database in {home}, which cannot be written ({why}): "
                    "set PREFECT_HOME to a folder of your own"
                )
    with temporary_settings({PREFECT_HOME: tmp_path / "new" / "home"}):
        check_home()
    assert not recipe.with_name("tiny").exists()


def test_a_damaged_database_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefect.db").write_bytes(bytes(100_000))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ServerStartError) as failed, prefect_server(ui=False):
        pass
    message = str(failed.value)
    assert "file is not a database. Its log is " in message
    assert "PREFECT_HOME=FOLDER gives it a new database" in message
    assert "\n" not in message


@contextlib.contextmanager
def line_to(port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port that passes everything on to another one, and what cuts the line: nothing listens there any more."""
    open_sockets: list[socket.socket] = []
    is_cut = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def passed_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not is_cut.is_set():
                for ready in select.select([one, other], [], [], 0.1)[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    (other if ready is one else one).sendall(data)
        one.close()
        other.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not is_cut.is_set():
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", port))
                open_sockets.extend((here, there))
                threading.Thread(target=passed_on, args=(here, there), daemon=True).start()

    def cut() -> None:
        is_cut.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for each in open_sockets:
            each.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], cut
    finally:
        if not is_cut.is_set():
            cut()


def test_a_server_that_is_lost_on_the_way_is_told_and_the_command_ends(
    recipe: Path, tmp_path: Path, prefect_harness: None
) -> None:
    """While the only source, on a server that never answers, is waited for."""
    url = str(get_current_settings().api.url)
    with socket.create_server(("127.0.0.1", 0)) as silent, line_to(urlsplit(url).port or 0) as (port, cut):
        silent.settimeout(120)
        (tmp_path / "sources.csv").write_text(f"id,url\nslow,http://127.0.0.1:{silent.getsockname()[1]}/x.mp4\n")
        words = [str(recipe), "--set", "download.socket_timeout_seconds=2", "--set", "download.retries=0"]
        told = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
        build = subprocess.Popen(
            [sys.executable, "-m", "flows.build_dataset", *words],
            cwd=PROJECT, env={**os.environ, **told, "PREFECT_HOME": str(tmp_path / "prefect")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        asked, _ = silent.accept()
        cut()
        with asked:
            _, err = build.communicate(timeout=120)
    assert build.returncode == 1, err
    assert err.splitlines()[-1].startswith(
        f"failed: the Prefect server at http://127.0.0.1:{port}/api no longer answers"
    )
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert "--- Error logging" not in err
