"""Downloads by the real yt-dlp from a real server that misbehaves."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import av
import fsspec
import numpy as np
import pytest
from fsspec.registry import known_implementations

from pipeline.errors import DownloadError, TransientDownloadError, UserError
from pipeline.fetch import download
from pipeline.fetch.cookies import warn_once
from pipeline.fetch.download import check_requirements, fetch, fetch_key
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.errors import clean, explain
from pipeline.fetch.hosts import HostGate, host_of
from pipeline.fetch.provenance import provenance_of
from pipeline.fetch.settings import DownloadSettings
from pipeline.media.ffmpeg import ffmpeg_path
from pipeline.runtime.hashing import sha256_of
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import Fetched, Source
from pipeline.sources.links import known_schemes
from tests.faulty_server import Answer, Fault, FaultyServer

QUICK = DownloadSettings(
    retries=2,
    backoff_seconds=0.02,
    socket_timeout_seconds=60.0,  # a busy machine is no stall
    stall_seconds=60.0,
    timeout_seconds=300.0,
    max_bytes=2_000_000,
    retry_after_max_seconds=2.0,
)
ONCE = QUICK.model_copy(update={"retries": 0})
IMPATIENT = {"socket_timeout_seconds": 0.6, "stall_seconds": 0.8}
"""Where the server stalls."""
HTML = b"<!doctype html><html><head><title>Gone</title></head><body>Nothing here.</body></html>"

Get = Callable[..., Fetched]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One second of a test picture with a tone; mp4."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    inputs = ["-f", "lavfi", "-i", "testsrc=s=128x96:r=25:d=1", "-f", "lavfi", "-i", "sine=d=1"]
    subprocess.run([ffmpeg_path(), "-v", "error", *inputs, "-c:v", "libx264", "-c:a", "aac", str(path)], check=True)
    return path.read_bytes()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DownloadStore]:
    with DownloadStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def get(store: DownloadStore) -> Get:
    """Fetch a URL with quick settings; a gate of its own each time."""

    def fetched(url: str, settings: DownloadSettings = QUICK, hosts: HostGate | None = None, **more: int) -> Fetched:
        return fetch(Source("s", url, **more), store, settings, hosts or settings.host_gate())  # type: ignore[arg-type]

    return fetched


def failure(get: Get, url: str, settings: DownloadSettings = ONCE) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        get(url, settings)
    return caught.value


def leftovers(store: DownloadStore) -> list[Path]:
    return [path for path in store.root.glob("tmp/*/*") if path.name != "pins"]


def test_a_plain_link(server: FaultyServer, get: Get, store: DownloadStore, video: bytes) -> None:
    url = server.serve("/Rain%20on%20a%20lake.mp4?sig=abc&id=7", Answer(body=video))
    fetched = get(url)
    assert Path(fetched.path).read_bytes() == video
    assert fetched.content_sha256 == sha256_of(fetched.path)
    assert (fetched.num_bytes, fetched.offset_ms) == (len(video), 0)
    shown = server.url("/Rain%20on%20a%20lake.mp4?sig=***&id=7")
    assert fetched.provenance == {
        "title": "Rain on a lake",
        "webpage_url": shown,
        "extractor": "generic",
        "format": {"format_id": "mp4"},
        "fetched_url": shown,
        "content_type": "video/mp4",
    }
    assert leftovers(store) == []


def test_what_was_fetched_is_not_asked_for_again(server: FaultyServer, video: bytes, tmp_path: Path) -> None:
    url = server.serve("/a.mp4", Answer(body=video))
    found = []
    for _ in range(2):
        with DownloadStore(tmp_path) as store:
            found.append(fetch(Source("s", url), store, QUICK, QUICK.host_gate()))
            asked = server.hits()
            found.append(fetch(Source("other", f"{url}#t=5"), store, QUICK, QUICK.host_gate()))
            assert server.hits() == asked == 2
    assert found == [found[0]] * 4


def test_the_same_bytes_under_two_links_are_stored_once(
    server: FaultyServer, get: Get, store: DownloadStore, video: bytes
) -> None:
    paths = {get(server.serve(name, Answer(body=video))).path for name in ("/a.mp4", "/b.mov", "/c?x=1")}
    assert len(paths) == 1
    assert store.total_bytes() == len(video)


@pytest.mark.parametrize(
    ("status", "code", "phrase"),
    [
        (404, "http_404", "404 Not Found"),
        (403, "http_403", "403 Forbidden"),
        (410, "http_410", "410 Gone"),
        (418, "http_418", "418 I'm a Teapot"),
        (429, "http_429", "429 Too Many Requests"),
        (503, "http_5xx", "503 Service Unavailable"),
    ],
)
def test_the_status_is_told_and_only_what_may_pass_is_tried_again(
    server: FaultyServer, get: Get, status: int, code: str, phrase: str
) -> None:
    error = failure(get, server.serve("/a.mp4", Answer(status=status, body=b"no")), QUICK)
    assert (error.code, str(error)) == (code, f"the server answered {phrase}")
    assert isinstance(error, TransientDownloadError) == (status in (429, 503))
    assert server.hits() == (3 if status in (429, 503) else 1)


def test_500_then_a_good_answer(server: FaultyServer, get: Get, video: bytes) -> None:
    url = server.serve("/a.mp4", Answer(status=500), Answer(status=502), Answer(body=video))
    assert get(url).num_bytes == len(video)
    assert server.hits() == 4


def test_retry_after_is_kept(server: FaultyServer, get: Get, video: bytes) -> None:
    busy = Answer(status=429, headers={"Retry-After": "1"})
    assert get(server.serve("/a.mp4", busy, Answer(body=video))).num_bytes == len(video)
    first, second = server.requests[0].started, server.requests[1].started
    assert second - first >= 1.0


def test_a_retry_after_beyond_patience_is_not_waited_for(server: FaultyServer, get: Get) -> None:
    error = failure(get, server.serve("/a.mp4", Answer(status=503, headers={"Retry-After": "3600"})), QUICK)
    assert error.code == "http_5xx"
    assert server.hits() == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault.RESET, "connection"), (Fault.TRUNCATE, "truncated"), (Fault.STALL, "stalled")],
)
def test_a_broken_body_is_tried_again(server: FaultyServer, get: Get, video: bytes, fault: Fault, code: str) -> None:
    broken = Answer(body=video, fault=fault, fault_after=2000)
    # yt-dlp asks twice: once to see what it is, once for the body
    url = server.serve("/a.mp4", Answer(body=video), broken, Answer(body=video))
    settings = QUICK.model_copy(update={"socket_timeout_seconds": 3.0, "stall_seconds": 3.0})
    assert get(url, settings).num_bytes == len(video)
    error = failure(get, server.serve("/b.mp4", broken), ONCE.model_copy(update=IMPATIENT))
    assert isinstance(error, TransientDownloadError)
    assert error.code == code


def test_the_message_of_a_broken_body(server: FaultyServer, get: Get, video: bytes) -> None:
    truncated = failure(get, server.serve("/a.mp4", Answer(body=video, fault=Fault.TRUNCATE, fault_after=2000)))
    reset = failure(get, server.serve("/b.mp4", Answer(body=video, fault=Fault.RESET, fault_after=2000)))
    left = len(video) - 2000
    assert str(truncated) == (f"the server ended before the body was complete: 2000 bytes read, {left} more expected")
    assert str(reset) == "the connection failed: Connection reset by peer"


def test_no_server_at_all(get: Get) -> None:
    with FaultyServer() as gone:
        url = gone.url("/a.mp4")
    assert str(failure(get, url)) == "the connection failed: Connection refused"


@pytest.mark.parametrize("fault", [Fault.DRIP, Fault.STALL_BEFORE_HEADERS, Fault.DRIP_HEADERS])
def test_a_drip_is_a_stall(server: FaultyServer, get: Get, store: DownloadStore, video: bytes, fault: Fault) -> None:
    url = server.serve("/a.mp4", Answer(body=video, fault=fault, fault_after=2000))
    error = failure(get, url, ONCE.model_copy(update=IMPATIENT))
    assert error.code == "stalled"
    assert isinstance(error, TransientDownloadError)
    assert leftovers(store) == []


def test_an_endless_body_ends_at_the_limit(server: FaultyServer, get: Get, store: DownloadStore, video: bytes) -> None:
    error = failure(get, server.serve("/a.mp4", Answer(body=video, fault=Fault.ENDLESS)))
    assert error.code == "too_large"
    assert str(error).endswith("bytes or more, over download.max_bytes (2000000)")
    assert leftovers(store) == []


def test_an_endless_page_ends_too(server: FaultyServer, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fetch.transfer.MAX_TEXT_BYTES", 1 << 20)
    answer = Answer(body=HTML.replace(b"</body></html>", b"."), content_type="text/html", fault=Fault.ENDLESS)
    error = failure(get, server.serve("/a.mp4", answer), ONCE.model_copy(update={"max_bytes": None}))
    assert (error.code, str(error)) == ("not_media", f"a text of more than {1 << 20} bytes, not a video")


def test_a_large_file_is_refused_before_it_is_fetched(server: FaultyServer, get: Get, video: bytes) -> None:
    body = video + bytes(3_000_000)
    answer = Answer(body=body, fault=Fault.STALL, fault_after=100_000)
    error = failure(get, server.serve("/a.mp4", answer))
    assert str(error) == f"{len(body)} bytes or more, over download.max_bytes (2000000)"


def test_the_time_limit_holds_for_a_body_that_keeps_coming(server: FaultyServer, get: Get, video: bytes) -> None:
    settings = QUICK.model_copy(update={"timeout_seconds": 4.0, "min_bytes_per_second": 1.0})
    url = server.serve("/a.mp4", Answer(body=video, fault=Fault.DRIP, fault_after=100, drip_seconds=0.01))
    error = failure(get, url, settings)
    assert (error.code, str(error)) == ("timed_out", "not finished within download.timeout_seconds")
    assert server.hits() == 2


def test_no_wait_goes_beyond_the_time_limit(server: FaultyServer, get: Get) -> None:
    settings = QUICK.model_copy(update={"timeout_seconds": 25.0, "backoff_seconds": 60.0})
    error = failure(get, server.serve("/a.mp4", Answer(status=500)), settings)
    assert error.code == "http_5xx"
    assert server.hits() == 1


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


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """20 s whose luma is 16 + 10 t, with a burst of sound from each full second to half past; a keyframe every 2 s."""
    path = tmp_path_factory.mktemp("clock") / "clock.mp4"
    picture = "color=black:s=64x64:r=25:d=20,format=yuv420p,geq=lum='16+T*10':cb=128:cr=128"
    sound = "aevalsrc='if(gt(mod(t,1),0.5),0,0.5*sin(2*PI*440*t))':d=20:s=48000"
    codecs = ["-c:v", "libx264", "-g", "50", "-sc_threshold", "0", "-c:a", "aac", "-movflags", "+faststart"]
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    subprocess.run([ffmpeg_path(), "-v", "error", *inputs, *codecs, str(path)], check=True)
    return path.read_bytes()


def times_told_by_the_picture(path: str) -> list[tuple[float, float]]:
    """Time in the file (from its start), and the time that the luma says."""
    with av.open(path) as container:
        assert container.start_time is not None
        start = container.start_time / 1_000_000
        return [
            (float(frame.time or 0.0) - start, (float(frame.to_ndarray()[8:56, 8:56].mean()) - 16) / 10)
            for frame in container.decode(video=0)
        ]


def bursts(path: str) -> list[float]:
    """Times in the file (from its start) at which the sound begins after silence."""
    with av.open(path) as container:
        assert container.start_time is not None
        start = container.start_time / 1_000_000
        frames = list(container.decode(audio=0))
        first = float(frames[0].time or 0.0) - start
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    loud = np.abs(samples[: len(samples) // 480 * 480].reshape(-1, 480)).max(axis=1) > 0.2
    return [first + n / 100 for n in np.flatnonzero(loud[1:] & ~loud[:-1]) + 1]


def test_only_the_wanted_section_of_a_page(server: FaultyServer, get: Get, clock: bytes) -> None:
    server.serve("/clock.mp4", Answer(body=clock))
    page = b"<html><title>Clock</title><body><video src='/clock.mp4'></video></body></html>"
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    settings = QUICK.model_copy(update={"sections": True})
    fetched = get(url, settings, start_ms=5300, end_ms=9100)
    assert 3800 <= fetched.offset_ms <= 4000  # the keyframe at 4 s; the sound begins a packet earlier
    offset_seconds = fetched.offset_ms / 1000
    pictures = times_told_by_the_picture(fetched.path)
    assert max(abs(in_file + offset_seconds - told) for in_file, told in pictures) <= 0.1  # luma is in steps of 0.1 s
    assert pictures[0][0] + offset_seconds == pytest.approx(4.0, abs=0.002)
    assert pictures[-1][0] + offset_seconds >= 9.1 - 0.04
    in_source = [burst + offset_seconds for burst in bursts(fetched.path)]
    assert [round(time_) for time_ in in_source[-5:]] == [5, 6, 7, 8, 9]
    assert max(abs(burst - round(burst)) for burst in in_source) <= 0.025
    assert fetched.num_bytes < len(clock) / 2
    assert server.hits("/clock.mp4") >= 1
    whole = get(url)
    assert (whole.offset_ms, whole.num_bytes) == (0, len(clock))


@pytest.mark.parametrize("domain", ["127.0.0.1", "media.example"])
def test_a_section_that_takes_cookies_is_the_whole_file(
    server: FaultyServer, get: Get, clock: bytes, tmp_path: Path, domain: str
) -> None:
    """ffmpeg would show them on its command line."""
    (tmp_path / "cookies.txt").write_text(f"# Netscape HTTP Cookie File\n{domain}\tFALSE\t/\tFALSE\t0\tsession\tHUSH\n")
    server.serve("/clock.mp4", Answer(body=clock))
    page = b"<html><title>Clock</title><body><video src='/clock.mp4'></video></body></html>"
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    settings = QUICK.model_copy(update={"sections": True, "cookies_file": tmp_path / "cookies.txt"})
    fetched = get(url, settings, start_ms=5300, end_ms=9100)
    is_sent = domain == "127.0.0.1"
    assert [("HUSH" in hit.headers.get("Cookie", "")) for hit in server.requests] == [is_sent] * server.hits()
    assert (fetched.offset_ms == 0, fetched.num_bytes == len(clock)) == (is_sent, is_sent)


def test_a_section_of_a_plain_link_is_the_whole_file(server: FaultyServer, get: Get, clock: bytes) -> None:
    settings = QUICK.model_copy(update={"sections": True})
    url = server.serve("/clock.mp4", Answer(body=clock))
    assert get(url, settings, start_ms=5000, end_ms=6000) == get(url, settings, start_ms=7000)
    assert server.hits() == 2
    hidden = get(server.serve("/get?f=1", Answer(body=clock)), settings, start_ms=5000, end_ms=6000)
    assert (hidden.offset_ms, hidden.num_bytes) == (0, len(clock))


def test_a_section_that_stalls_is_stopped(server: FaultyServer, get: Get, store: DownloadStore, clock: bytes) -> None:
    server.serve("/clock.mp4", Answer(body=clock, fault=Fault.STALL, fault_after=len(clock) // 4))
    page = b"<html><body><video src='/clock.mp4'></video></body></html>"
    settings = ONCE.model_copy(update={"sections": True, "socket_timeout_seconds": 3.0, "stall_seconds": 3.0})
    with pytest.raises(TransientDownloadError) as caught:
        get(server.serve("/watch", Answer(body=page, content_type="text/html")), settings, start_ms=15000)
    assert caught.value.code == "stalled"
    assert leftovers(store) == []


def test_a_page_of_separate_picture_and_sound_is_merged(
    server: FaultyServer, get: Get, clock: bytes, tmp_path: Path
) -> None:
    source, folder = tmp_path / "clock.mp4", tmp_path / "dash"
    source.write_bytes(clock)
    folder.mkdir()
    command = [ffmpeg_path(), "-v", "error", "-i", str(source), "-c", "copy", "-f", "dash", "-seg_duration", "4"]
    subprocess.run([*command, str(folder / "a.mpd")], check=True, cwd=folder)
    for path in folder.iterdir():
        kind = "application/dash+xml" if path.suffix == ".mpd" else "video/mp4"
        server.serve(f"/{path.name}", Answer(body=path.read_bytes(), content_type=kind))
    fetched = get(server.url("/a.mpd"))
    pictures = times_told_by_the_picture(fetched.path)
    assert len(pictures) == 500
    assert max(abs(in_file - told) for in_file, told in pictures) <= 0.1
    assert max(abs(burst - round(burst)) for burst in bursts(fetched.path)) <= 0.025
    (folder / "chunk-stream1-00003.m4s").unlink()
    server.serve("/chunk-stream1-00003.m4s", Answer(status=404))
    server.serve("/b.mpd", Answer(body=(folder / "a.mpd").read_bytes(), content_type="application/dash+xml"))
    assert failure(get, server.url("/b.mpd")).code == "http_404"  # not a video with a hole


@pytest.mark.parametrize(("wanted", "given"), [(192, 192), (380, 192), (None, 384), (50, 96)])
def test_of_several_heights_the_greatest_that_is_wanted(
    server: FaultyServer, get: Get, tmp_path: Path, wanted: int | None, given: int
) -> None:
    """Where all are higher, it is the one that is nearest."""
    master = "#EXTM3U\n"
    for height in (96, 192, 384):
        inputs = ["-f", "lavfi", "-i", f"testsrc=s=256x{height}:r=25:d=1", "-f", "lavfi", "-i", "sine=d=1"]
        codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac"]
        path = tmp_path / f"{height}.ts"
        subprocess.run([ffmpeg_path(), "-v", "error", *inputs, *codecs, str(path)], check=True)
        server.serve(f"/{height}.ts", Answer(body=path.read_bytes(), content_type="video/mp2t"))
        one = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n/{height}.ts\n#EXT-X-ENDLIST\n"
        server.serve(f"/{height}.m3u8", Answer(body=one.encode(), content_type="application/vnd.apple.mpegurl"))
        master += f"#EXT-X-STREAM-INF:BANDWIDTH={height * 1000},RESOLUTION=256x{height}\n/{height}.m3u8\n"
    url = server.serve("/all.m3u8", Answer(body=master.encode(), content_type="application/vnd.apple.mpegurl"))
    fetched = get(url, QUICK.model_copy(update={"height": wanted}))
    with av.open(fetched.path) as container:
        assert container.streams.video[0].height == given
    assert fetched.provenance["format"]["height"] == given
    assert [server.hits(f"/{height}.ts") for height in (96, 192, 384)] == [height == given for height in (96, 192, 384)]


def test_a_video_that_is_too_long_is_not_fetched(
    server: FaultyServer, get: Get, store: DownloadStore, video: bytes
) -> None:
    server.serve("/long.mp4", Answer(body=video))
    told = {"@context": "https://schema.org", "@type": "VideoObject", "name": "A day", "duration": "PT5H"}
    told |= {"contentUrl": server.url("/long.mp4"), "author": "A. Nyone", "uploadDate": "2020-02-03"}
    page = f"<html><script type='application/ld+json'>{json.dumps(told)}</script></html>".encode()
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    error = failure(get, url)
    assert (error.code, str(error)) == ("too_long", "18000 s long, over download.max_duration_seconds (14400)")
    assert [*store.root.glob("objects/*/*"), *leftovers(store)] == []
    provenance = get(url, QUICK.model_copy(update={"max_duration_seconds": None})).provenance
    assert len([*store.root.glob("objects/*/*")]) == 1
    assert [provenance[name] for name in ("title", "uploader", "webpage_url")] == ["A day", "A. Nyone", url]


def test_what_a_site_tells_of_a_video_is_kept() -> None:
    told = {
        "title": "Rain",
        "channel": "Weather",
        "license": "CC BY",
        "upload_date": "20200203",
        "id": "x",
        "vcodec": "none",
    }
    told |= {
        "webpage_url": "https://example.org/w?v=1&token=abc",
        "extractor": "example",
        "height": 720,
        "formats": [1],
    }
    origin = {
        "title": "Rain",
        "uploader": "Weather",
        "licence": "CC BY",
        "upload_date": "20200203",
        "webpage_url": "https://example.org/w?v=1&token=***",
        "extractor": "example",
        "format": {"height": 720},
        "fetched_url": "https://example.org/v",
    }
    assert provenance_of("https://example.org/v", told, "video/mp4") == origin
    made_up = provenance_of("https://example.org/a.mp4", {"direct": True, "upload_date": "20200203"}, "video/mp4")
    assert "upload_date" not in made_up  # it is that of the file on the server
    assert made_up["content_type"] == "video/mp4"


def test_keys_depend_on_what_changes_the_file() -> None:
    settings = DownloadSettings(sections=True)
    page = Source("a", "https://vimeo.com/1", start_ms=1000, end_ms=2000)
    assert fetch_key(page, settings) == fetch_key(Source("b", "HTTPS://VIMEO.com:443/1#x", 1000, 2000), settings)
    others = [
        fetch_key(page, settings),
        fetch_key(Source("a", page.url, 1000, 3000), settings),
        fetch_key(page, DownloadSettings(sections=True, height=480)),
        fetch_key(page, DownloadSettings()),
    ]
    assert len(set(others)) == 4
    assert fetch_key(page, DownloadSettings()) == fetch_key(page, DownloadSettings(proxy="http://p", retries=9))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:pw@host/a", "http://***@host/a"),
        ("socks5://me:p@ss@host:1 failed", "socks5://***@host:1 failed"),
        ("https://x/a.mp4?id=7&X-Amz-Signature=ab%2F&t=1", "https://x/a.mp4?id=7&X-Amz-Signature=***&t=1"),
        ("'https://x/a?Key-Pair-Id=K&Policy=e30_'", "'https://x/a?Key-Pair-Id=***&Policy=***'"),
        ("https://www.youtube.com/watch?v=abc&list=PL1", "https://www.youtube.com/watch?v=abc&list=PL1"),
        ("Cookie: SID=1; HSID=2", "Cookie: ***"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': ***"),
        ("mail@host is no secret", "mail@host is no secret"),
    ],
)
def test_secrets_are_masked(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


def test_secrets_in_messages(get: Get) -> None:
    settings = ONCE.model_copy(update={"proxy": "http://me:secret@127.0.0.1:1"})
    with pytest.raises(DownloadError) as caught:
        get("http://host.invalid/a.mp4?token=secret", settings)
    assert "secret" not in str(caught.value)


def raised_by_yt_dlp(message: str, expected: bool = True) -> Exception:
    """An error as YoutubeDL raises it for what an extractor says."""
    import yt_dlp.utils

    try:
        raise yt_dlp.utils.ExtractorError(message, expected=expected, video_id="abc", ie="youtube")
    except yt_dlp.utils.ExtractorError as error:
        raised: Exception = yt_dlp.utils.DownloadError(f"\033[0;31mERROR:\033[0m {error}", sys.exc_info())
    return raised


@pytest.mark.parametrize(
    ("said", "code", "transient", "message"),
    [
        (
            "Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies for the authentication. "
            "See  https://github.com/yt-dlp/yt-dlp/wiki/FAQ  for how to manually pass cookies",
            "bot_check",
            True,
            "[youtube] abc: Sign in to confirm you’re not a bot; set download.cookies_file or download.cookies_browser",
        ),
        (
            "Private video. Sign in if you've been granted access to this video",
            "private",
            False,
            "[youtube] abc: Private video. Sign in if you've been granted access to this video",
        ),
        ("Video unavailable. This video has been removed by the uploader", "unavailable", False, None),
        ("The uploader has not made this video available in your country", "geo_blocked", False, None),
        ("This video is DRM protected", "drm", False, None),
        ("Join this channel to get access to members-only content", "login_required", False, None),
        ("Premieres in 3 hours", "live", True, None),
        ("Unable to extract player", "extractor", False, "[youtube] abc: Unable to extract player"),
    ],
)
def test_what_sites_say(said: str, code: str, transient: bool, message: str | None) -> None:
    error = explain(raised_by_yt_dlp(said, expected=code != "extractor"))
    assert (error.code, isinstance(error, TransientDownloadError)) == (code, transient)
    assert str(error) == (message or f"[youtube] abc: {said}" + str(error).partition(said)[2])


def test_a_surprise_costs_one_source() -> None:
    error = explain(TypeError("'NoneType' object is not iterable"))
    assert (error.code, str(error)) == ("not_fetched", "TypeError: 'NoneType' object is not iterable")


def test_boilerplate_is_cut() -> None:
    text = "\033[31mERROR:\033[0m [generic] x: Went wrong; please report this issue on  https://github.com/ , filling"
    assert clean(text) == "Went wrong"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_youtube_needs_a_javascript_runtime(programs: Path) -> None:
    sources = [Source("a", "https://example.com/a.mp4"), Source("b", "https://youtu.be/x", listed_at="list.csv:3")]
    check_requirements(sources[:1])
    with pytest.raises(
        UserError, match=r"^list.csv:3: videos from YouTube need a JavaScript runtime \(none was found\)"
    ):
        check_requirements(sources)
    node = programs / "node"
    node.write_text("#!/bin/sh\necho v20.1.0\n")
    node.chmod(0o755)
    with pytest.raises(UserError, match=r"\(node 20.1.0 is too old\). Install Deno 2.3 or later"):
        check_requirements(sources)
    node.write_text("#!/bin/sh\necho v22.1.0\n")
    check_requirements(sources)


@pytest.fixture
def _unusable_protocol() -> Iterator[None]:
    text = "install no-such-package"
    fsspec.register_implementation("not-installed", "no_such_package.FileSystem", clobber=True, errtxt=text)
    known_schemes.cache_clear()
    yield
    known_implementations.pop("not-installed")
    known_schemes.cache_clear()


@pytest.mark.usefixtures("_unusable_protocol")
def test_other_requirements(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"download.cookies_file: there is no file .*none.txt"):
        check_requirements([], DownloadSettings(cookies_file=tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"source a: not-installed:// needs a package.*install no-such-package"):
        check_requirements([Source("a", "not-installed://x/y")])


def test_cookies_that_cannot_be_read_are_refused_before_any_download(
    server: FaultyServer, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = tmp_path / "cookies.txt"
    text.write_text("no cookies at all\n")
    web, local = [Source("a", server.serve("/a.mp4", Answer(status=404)))], [Source("b", "/b.mp4")]
    refusals = [
        (DownloadSettings(cookies_file=text), rf"^download.cookies_file: {text} does not look like a Netscape format"),
        (DownloadSettings(cookies_browser="firefox"), r"^download.cookies_browser: could not find firefox cookies"),
        (
            DownloadSettings(cookies_browser="lynx:Me"),
            r'^download.cookies_browser: unsupported browser: "lynx"; .*firefox',
        ),
    ]
    for settings, message in refusals:
        with pytest.raises(UserError, match=message):
            check_requirements(web, settings)
        check_requirements(local, settings)
    assert server.requests == []
    assert failure(get, web[0].url, refusals[0][0]).code == "cookies"  # they may have changed since
    download._sessions.close()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:http.cookiejar bug:UserWarning")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (".example.org\tTRUE\t/\tFALSE\t0\tsession HUSH", "invalid length 6"),
        (".example.org\tTRUE\t/\tFALSE\tHUSH\tsession\t0", "invalid expires"),
        (".example.org\tFALSE\t/\tFALSE\t0\tsession\tHUSH", "invalid Netscape format cookies file"),
    ],
)
def test_a_line_of_cookies_that_cannot_be_read_is_told_and_not_shown(
    tmp_path: Path, line: str, said: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cookies.txt"
    path.write_text(f"# Netscape HTTP Cookie File\n{line}\n")
    warn_once.cache_clear()
    told = ""
    try:
        check_requirements([Source("a", "http://127.0.0.1:1/a.mp4")], DownloadSettings(cookies_file=path))
    except UserError as error:
        told = str(error)
    seen = [told, caplog.text, *capfd.readouterr()]
    assert said in told + caplog.text
    assert "HUSH" not in "".join(seen)


def test_a_proxy_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PROXY", "user:secret@host:3128")
    with pytest.raises(UserError, match=r"download.proxy: the value of SOME_PROXY does not begin like") as caught:
        check_requirements([], DownloadSettings(proxy="$SOME_PROXY"))
    assert "secret" not in str(caught.value)
    for good in ("http://user:secret@host:3128", "socks5h://host:1", "HTTPS://host"):
        monkeypatch.setenv("SOME_PROXY", good)
        assert DownloadSettings(proxy="$SOME_PROXY").proxy_url() == good
    with pytest.raises(ValueError, match=r"is no URL of a proxy"):
        DownloadSettings(proxy="host:3128")


def test_the_users_cookies_are_sent_and_not_written(
    server: FaultyServer, get: Get, video: bytes, tmp_path: Path
) -> None:
    text = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tname\tvalue\n"
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(text)
    answer = Answer(body=video, headers={"Set-Cookie": "other=1; Max-Age=1000"})
    get(server.serve("/a.mp4", answer), QUICK.model_copy(update={"cookies_file": cookies}))
    assert server.requests[0].headers["Cookie"] == "name=value"
    download._sessions.close()
    assert cookies.read_text() == text


def test_the_rate_limit_holds(server: FaultyServer, get: Get, video: bytes) -> None:
    settings = QUICK.model_copy(update={"rate_limit_bytes_per_second": 200_000})
    url = server.serve("/a.mp4", Answer(body=video + bytes(300_000 - len(video))))
    started = time.monotonic()
    assert get(url, settings).num_bytes == 300_000
    assert time.monotonic() - started > 1.0


def test_nothing_is_logged_as_an_error(server: FaultyServer, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        failure(get, server.serve("/a.mp4", Answer(status=404)))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert any("HTTP Error 404" in record.message for record in caplog.records)
