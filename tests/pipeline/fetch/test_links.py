"""What links lead to: pages, redirects, names and types that lie, local files, other protocols, and hosts that want to be spared."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import fsspec
import pytest

from pipeline.errors import TransientDownloadError
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.hosts import HostGate, host_of
from pipeline.runtime.hashing import sha256_of
from tests.faulty_server import Answer, FaultyServer
from tests.pipeline.fetch.fetching import HTML, ONCE, QUICK, Get, failure, leftovers


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (
            Answer(body=HTML, content_type="text/html; charset=utf-8"),
            "not_media",
            "not a video but a web page, and yt-dlp finds no video in it",
        ),
        (
            Answer(body=HTML),
            "not_media",
            f"not a video but a web page, beginning with {HTML.decode()[:60]!r}",
        ),
        (
            Answer(body=b"hello\n" * 500, content_type="text/plain"),
            "not_media",
            f"not a video but a text, beginning with {('hello ' * 10)!r}",
        ),
        (
            Answer(body=b'{"error": "gone"}', content_type="application/json"),
            "not_media",
            """not a video but a JSON text, beginning with '{"error": "gone"}'""",
        ),
        (Answer(body=b"PK\x03\x04" + bytes(500)), "not_media", "not a video but a zip archive"),
        (Answer(body=b""), "empty", "the server sent zero bytes"),
        (Answer(body=b"", content_type="text/plain"), "empty", "the server sent zero bytes"),
    ],
)
def test_what_is_no_video(server: FaultyServer, get: Get, answer: Answer, code: str, message: str) -> None:
    error = failure(get, server.serve("/a.mp4", answer))
    assert (error.code, str(error)) == (code, message)
    assert not isinstance(error, TransientDownloadError)


def test_redirects(server: FaultyServer, get: Get, video: bytes) -> None:
    def redirect(path: str, target: str) -> str:
        return server.serve(path, Answer(status=302, headers={"Location": target}))

    server.serve("/page", Answer(body=HTML, content_type="text/html"))
    server.serve("/good.mp4", Answer(body=video))
    assert get(redirect("/moved.mp4", "/good.mp4")).num_bytes == len(video)
    assert failure(get, redirect("/a.mp4", "/page")).code == "not_media"
    to_file = failure(get, redirect("/b.mp4", "file:///etc/passwd"))
    assert to_file.code == "unsupported_url"
    assert "file:///etc/passwd" in str(to_file)
    circle = failure(get, redirect("/c.mp4", "/c.mp4"))
    assert (circle.code, str(circle)) == ("redirect_loop", "the server redirects in a circle")


def test_a_page_with_a_video(server: FaultyServer, get: Get, video: bytes) -> None:
    server.serve("/good.mp4?token=1", Answer(body=video))
    page = b"<html><title>Rain</title><body><video src='/good.mp4?token=1'></video></body></html>"
    fetched = get(server.serve("/watch", Answer(body=page, content_type="text/html")))
    assert fetched.num_bytes == len(video)
    assert fetched.provenance["extractor"] == "html5"
    assert fetched.provenance["webpage_url"] == server.url("/watch")
    bad = b"<html><body><video src='file:///etc/passwd'></video></body></html>"
    error = failure(get, server.serve("/bad", Answer(body=bad, content_type="text/html")))
    assert error.code == "unsupported_url"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/a.bin", "application/octet-stream"),
        ("/a", "text/plain"),
        ("/b", None),
        ("/a.mp4?sig=1", "video/mp4"),
        ("/a.MOV", "video/quicktime"),
        ("/get.php?f=a", "video/mp4"),
        ("/a.exe", "video/mp4"),
        ("/a.txt", "text/html; charset=utf-8"),
    ],
)
def test_names_and_content_types_may_lie(
    server: FaultyServer, get: Get, video: bytes, path: str, content_type: str | None
) -> None:
    fetched = get(server.serve(path, Answer(body=video, content_type=content_type)))
    assert fetched.num_bytes == len(video)
    assert Path(fetched.path).suffix == ".mp4"


@pytest.mark.parametrize(
    "name",
    [
        "a b.mp4",
        "a\"b'c`$HOME;|.mp4",
        "a\nb.mp4",
        "../../../etc/cron.mp4",
        "-rf.mp4",
        "%(title)s.mp4",
        "x" * 300 + ".mp4",
        "\0.mp4",
        "\N{SNOWMAN}\N{RIGHT-TO-LEFT OVERRIDE}4pm.mp4",
        "~.mp4",
    ],
)
def test_hostile_names_do_not_become_paths(
    server: FaultyServer, get: Get, store: DownloadStore, video: bytes, name: str
) -> None:
    fetched = get(server.serve("/" + quote(name, safe=""), Answer(body=video)))
    assert Path(fetched.path).read_bytes() == video
    assert Path(fetched.path).name == f"{fetched.content_sha256}.mp4"
    assert {path.name for path in store.root.parent.iterdir()} == {"store"}
    assert leftovers(store) == []


def test_no_more_at_once_than_a_host_allows(server: FaultyServer, get: Get, video: bytes) -> None:
    settings = QUICK.model_copy(update={"max_per_host": 2})
    hosts = settings.host_gate()
    urls = [server.serve(f"/{n}.mp4", Answer(body=video + bytes([n]), delay_seconds=0.05)) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda url: get(url, settings, hosts), urls))
    assert [Path(one.path).read_bytes() for one in found] == [video + bytes([n]) for n in range(8)]
    assert server.max_concurrent == 2


def test_two_that_want_the_same_link_share_one_download(server: FaultyServer, get: Get, video: bytes) -> None:
    hosts = QUICK.host_gate()
    url = server.serve("/a.mp4", Answer(body=video, delay_seconds=0.05))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: get(url, QUICK, hosts), range(4)))
    assert found == [found[0]] * 4
    assert server.hits() == 2


def test_downloads_are_spaced(server: FaultyServer, get: Get, video: bytes) -> None:
    hosts = HostGate(spacing_seconds=0.8)
    for n in range(4):
        get(server.serve(f"/{n}.mp4", Answer(body=video)), QUICK, hosts)
    starts = [hit.started for hit in server.requests[2::2]]  # the first one waits for yt-dlp to be set up
    assert all(later - earlier > 0.4 for earlier, later in itertools.pairwise(starts))


def test_a_host_that_says_429_again_and_again_is_paused_and_tried_later(
    server: FaultyServer, get: Get, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = HostGate(pause_after=3, pause_seconds=1000.0)
    now = 0.0
    monkeypatch.setattr("pipeline.fetch.hosts.time", SimpleNamespace(monotonic=lambda: now))
    refused = [server.serve(f"/{n}.mp4", Answer(status=429)) for n in range(5)]
    good = server.serve("/good.mp4", Answer(body=video))

    def code(url: str) -> str:
        with pytest.raises(TransientDownloadError) as caught:
            get(url, ONCE, hosts)
        if caught.value.code == "host_paused":
            said = r"127.0.0.1:\d+ is paused for another 1000 s, because it answered: the server answered 429 Too Many"
            assert re.match(said, str(caught.value))
        return caught.value.code

    assert [code(url) for url in refused] == ["http_429", "http_429", "http_429", "host_paused", "host_paused"]
    assert server.hits() == 3
    assert code(good) == "host_paused"
    now = 1001.0
    assert code(refused[0]) == "http_429"  # the first after the pause: a new pause
    assert code(good) == "host_paused"
    now = 2002.0
    assert get(good, ONCE, hosts).num_bytes == len(video)
    assert code(refused[0]) == "http_429"
    assert code(refused[1]) == "http_429"


def test_after_a_pause_one_goes_first() -> None:
    hosts = HostGate(pause_after=1, pause_seconds=0.1)
    with hosts.visit("http://x/1") as visit:
        assert visit.refused("no") is True
    time.sleep(0.15)
    inside = []

    def enter() -> None:
        with hosts.visit("http://www.X/2") as later:
            inside.append(1)
            assert len(inside) == 1 or answered.is_set()
            time.sleep(0.05)
            answered.set()
            later.answered()

    answered = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(enter) for _ in range(3)]:
            done.result()
    assert len(inside) == 3


def test_hosts_are_told_apart() -> None:
    assert host_of("https://user:pw@www.Example.com:8080/x") == "example.com:8080"
    assert host_of("https://youtu.be/abc") == host_of("https://m.youtube.com/watch?v=abc") == "youtube.com"
    hosts = HostGate(pause_after=1)
    with hosts.visit("http://a/1") as visit:
        visit.refused("no")
    with hosts.visit("http://b/1"):
        pass


def test_a_local_file_is_used_where_it_lies(
    get: Get, store: DownloadStore, video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my video 100%25.MP4"
    path.write_bytes(video)
    fetched = get(str(path))
    assert fetched == get(f"file://{path}")
    assert (fetched.path, fetched.num_bytes, fetched.content_sha256) == (str(path), len(video), sha256_of(path))
    assert store.total_bytes() == 0
    monkeypatch.chdir(tmp_path)
    assert get(path.name).path == str(path)
    monkeypatch.setattr("pipeline.fetch.passthrough.sha256_of", lambda path: "hashed again")
    assert get(str(path)).content_sha256 == fetched.content_sha256
    path.write_bytes(video + b"\0")
    assert get(str(path)).content_sha256 == "hashed again"


def test_local_paths_that_cannot_be_used(get: Get, tmp_path: Path) -> None:
    page, empty, pipe = tmp_path / "page.mp4", tmp_path / "empty.mp4", tmp_path / "pipe.mp4"
    page.write_bytes(HTML)
    empty.touch()
    os.mkfifo(pipe)
    found = [failure(get, str(path)) for path in (tmp_path / "none.mp4", tmp_path, page, empty, pipe)]
    assert [error.code for error in found] == ["missing_file", "is_folder", "not_media", "empty", "not_a_file"]
    assert str(found[0]) == f"there is no file '{tmp_path}/none.mp4'"


def test_a_file_of_fsspec_is_copied(get: Get, store: DownloadStore, video: bytes) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/box/rain.mp4", video)
    memory.pipe("/box/large.mp4", video + bytes(3_000_000))
    try:
        fetched = get("memory://box/rain.mp4")
        assert Path(fetched.path).read_bytes() == video
        assert fetched.provenance == {"title": "rain", "extractor": "fsspec", "fetched_url": "memory://box/rain.mp4"}
        memory.rm("/box/rain.mp4")
        assert get("memory://box/rain.mp4") == fetched
        codes = [failure(get, f"memory://{name}").code for name in ("box/none.mp4", "box", "box/large.mp4")]
        assert codes == ["missing_file", "is_folder", "too_large"]
    finally:
        memory.rm("/box", recursive=True)
    assert leftovers(store) == []


def test_links_that_nothing_can_fetch(get: Get) -> None:
    for url in ("gopher://host/a", "http://", "http://[::1/a.mp4"):
        assert failure(get, url).code == "unsupported_url", url


def test_a_full_disk_is_told(server: FaultyServer, video: bytes, tmp_path: Path) -> None:
    script = """
import resource, sys
from pipeline.fetch.download import fetch
from pipeline.fetch.settings import DownloadSettings
from pipeline.errors import DownloadError
from pipeline.schema import Source
from pipeline.fetch.download_store import DownloadStore
settings = DownloadSettings(backoff_seconds=0)
with DownloadStore(sys.argv[2]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        fetch(Source("s", sys.argv[1]), store, settings, settings.host_gate())
    except DownloadError as error:
        print(type(error).__name__, error.code, error)
"""
    url = server.serve("/a.mp4", Answer(body=video))
    command = [sys.executable, "-c", script, url, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stdout == "TransientDownloadError disk_full the download could not be written: File too large\n"
    assert server.hits() == 2
