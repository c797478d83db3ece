"""What a link can lead to: the public internet, the place that it names itself, and nothing else."""

from __future__ import annotations

import gc
import ipaddress
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DownloadError, UserError
from pipeline.fetch.addresses import Reach, RefusedAddressError, is_public, named_places
from pipeline.fetch.checking_proxy import CheckingProxy
from pipeline.fetch.download import check_requirements, fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.settings import DownloadSettings
from pipeline.media.ffmpeg import ffmpeg_path, guarded
from pipeline.schema import Fetched, Source
from tests.faulty_server import Answer, FaultyServer

# yt-dlp leaves the file of a playlist that broke off to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning"
)

SETTINGS = DownloadSettings(retries=0, socket_timeout_seconds=60.0, stall_seconds=60.0, timeout_seconds=300.0)
SECTIONS = SETTINGS.model_copy(update={"sections": True})
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
OPEN = SETTINGS.model_copy(update={"allow_networks": LOOPBACK})

Get = Callable[..., Fetched]


@pytest.fixture(autouse=True)
def _files_are_let_go() -> Iterator[None]:
    yield
    gc.collect()  # here, where the warning is expected


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three seconds of a test picture with a tone, as an MPEG transport stream."""
    path = tmp_path_factory.mktemp("stream") / "a.ts"
    inputs = ["-f", "lavfi", "-i", "testsrc=s=128x96:r=25:d=3", "-f", "lavfi", "-i", "sine=d=3"]
    codecs = ["-c:v", "libx264", "-g", "25", "-c:a", "aac"]
    subprocess.run([ffmpeg_path(), "-v", "error", *inputs, *codecs, str(path)], check=True)
    return path.read_bytes()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """The server that the links name."""
    with FaultyServer() as running:
        yield running


@pytest.fixture
def inner(stream: bytes) -> Iterator[FaultyServer]:
    """A server that no link names: its port is another one."""
    with FaultyServer() as running:
        running.serve("/secret.ts", Answer(body=stream, content_type="video/mp2t"))
        yield running


@pytest.fixture
def get(tmp_path: Path) -> Iterator[Get]:
    with DownloadStore(tmp_path / "store") as store:

        def fetched(url: str, settings: DownloadSettings = SETTINGS, **more: int) -> Fetched:
            return fetch(Source("s", url, **more), store, settings, settings.host_gate())  # type: ignore[arg-type]

        yield fetched


def refusal(get: Get, url: str, settings: DownloadSettings = SETTINGS, **more: int) -> str:
    with pytest.raises(DownloadError) as caught:
        get(url, settings, **more)
    return caught.value.code


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.31.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("http://127.0.0.1:8765/a.mp4", {("127.0.0.1", 8765)}),
        ("https://[::1]/a.mp4", {("::1", 443)}),
        ("http://localhost/a", {("127.0.0.1", 80), ("::1", 80)}),
        ("http://me@192.168.1.5/a", {("192.168.1.5", 80)}),
        ("http://nas.example/a", set()),
        ("http://127.1/a", set()),
        ("http://2130706433/a", set()),
        ("http://93.184.216.34/a", set()),
        ("http://[::1/a", set()),
    ],
)
def test_what_a_link_names_itself(url: str, places: set[tuple[str, int]]) -> None:
    assert named_places(url) == places


def test_a_name_and_a_unix_socket_are_no_addresses() -> None:
    reach = Reach(set(), LOOPBACK)
    reach.check(("127.0.0.1", 5))
    reach.check(("::ffff:127.0.0.1", 5, 0, 0))
    for place in ("/run/docker.sock", b"\0abstract", ("localhost", 5), ("10.0.0.1", 5)):
        with pytest.raises(RefusedAddressError):
            reach.check(place)


def redirect(server: FaultyServer, path: str, target: str) -> str:
    return server.serve(path, Answer(status=302, headers={"Location": target}))


def page(server: FaultyServer, path: str, body: str) -> str:
    kind = "application/vnd.apple.mpegurl" if path.endswith(".m3u8") else "text/html"
    return server.serve(path, Answer(body=body.encode(), content_type=kind))


def playlist(*links: str) -> str:
    lines = "".join(f"#EXTINF:3,\n{link}\n" for link in links)
    return f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n{lines}#EXT-X-ENDLIST\n"


def master(link: str) -> str:
    return f'#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=100000,CODECS="avc1.42c00b,mp4a.40.2",RESOLUTION=128x96\n{link}\n'


def test_a_redirect_leads_to_no_other_private_place(server: FaultyServer, inner: FaultyServer, get: Get) -> None:
    url = redirect(server, "/a.mp4", inner.url("/secret.ts"))
    with pytest.raises(
        DownloadError, match=r"refused to connect to 127\.0\.0\.1 \(port \d+\).*download\.allow_networks"
    ):
        get(url)
    assert inner.hits() == 0
    assert get(url, OPEN).num_bytes > 10_000
    assert refusal(get, redirect(server, "/b.mp4", "http://169.254.169.254/latest/meta-data")) == "private_address"


def test_a_place_that_one_source_names_is_not_open_to_the_next(
    server: FaultyServer, inner: FaultyServer, get: Get
) -> None:
    get(inner.url("/secret.ts"))  # leaves a connection open, as connections are used again
    hits = inner.hits()
    assert refusal(get, redirect(server, "/a.mp4", inner.url("/secret.ts?again"))) == "private_address"
    assert inner.hits() == hits


def test_a_page_or_playlist_leads_to_no_other_private_place(
    server: FaultyServer, inner: FaultyServer, get: Get
) -> None:
    secret = inner.url("/secret.ts")
    for number, body in enumerate([f"<video src='{secret}'></video>", f"<iframe src='{secret}'></iframe>"]):
        with pytest.raises(DownloadError):
            get(page(server, f"/{number}", f"<html><body>{body}</body></html>"))
    assert refusal(get, page(server, "/a.m3u8", playlist(secret))) == "private_address"
    page(server, "/variant.m3u8", playlist(secret))
    assert refusal(get, page(server, "/b.m3u8", master("variant.m3u8"))) == "private_address"
    assert inner.hits() == 0


def test_a_name_is_held_to_the_address_behind_it(
    inner: FaultyServer, get: Get, monkeypatch: pytest.MonkeyPatch, stream: bytes
) -> None:
    look_up = socket.getaddrinfo

    def rebound(host: Any, *more: Any, **named: Any) -> Any:
        return look_up("127.0.0.1" if host == "public.example" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://public.example:{inner.port}/secret.ts"
    assert refusal(get, url) == "private_address"
    assert inner.hits() == 0
    assert get(url, OPEN).num_bytes == len(stream)
    assert get(f"http://localhost:{inner.port}/secret.ts").num_bytes == len(stream)


def test_no_playlist_reads_a_local_file(server: FaultyServer, get: Get, tmp_path: Path, stream: bytes) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(stream)
    page(server, "/variant.m3u8", playlist(f"file://{secret}"))
    server.serve("/ok.ts", Answer(body=stream, content_type="video/mp2t"))
    page(server, "/mixed.m3u8", playlist("/ok.ts", f"file://{secret}"))
    for settings, section in (
        (OPEN, {}),
        (OPEN.model_copy(update={"sections": True}), {"start_ms": 500, "end_ms": 1500}),
    ):
        for number, link in enumerate((f"file://{secret}", "variant.m3u8")):
            code = refusal(get, page(server, f"/{number}.m3u8", master(link)), settings, **section)
            assert code in {"unsupported_url", "section", "no_format"}, f"{link}: {code}"
    assert refusal(get, server.url("/mixed.m3u8"), OPEN) == "unsupported_url"
    only_what_is_not_secret = get(server.url("/mixed.m3u8"), OPEN.model_copy(update={"sections": True}), end_ms=5500)
    assert Path(only_what_is_not_secret.path).stat().st_size < 1.2 * len(stream)


def test_sections_that_ffmpeg_fetches_are_held_to_the_same(
    server: FaultyServer, inner: FaultyServer, get: Get, stream: bytes
) -> None:
    section = {"start_ms": 500, "end_ms": 1500}
    server.serve("/ok.ts", Answer(body=stream, content_type="video/mp2t"))
    page(server, "/ok.m3u8", playlist("ok.ts"))
    assert get(page(server, "/good.m3u8", master("ok.m3u8")), SECTIONS, **section).num_bytes > 5_000
    secret = inner.url("/secret.ts")
    redirect(server, "/moved.ts", secret)
    for number, links in enumerate([(secret,), ("ok.ts", secret), ("moved.ts",)]):
        page(server, f"/variant{number}.m3u8", playlist(*links))
        url = page(server, f"/{number}.m3u8", master(f"variant{number}.m3u8"))
        assert refusal(get, url, SECTIONS, **section | {"end_ms": 5500}) == "private_address", links
    assert inner.hits() == 0
    assert get(server.url("/0.m3u8"), OPEN.model_copy(update={"sections": True}), **section).num_bytes > 5_000


def test_a_proxy_with_a_password_is_named_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_PROXY", "http://me:secret@127.0.0.1:3128")
    settings = DownloadSettings(proxy="$OUR_PROXY")
    check_requirements([], settings)
    assert settings.proxy_url() == "http://me:secret@127.0.0.1:3128"
    assert "secret" not in settings.model_dump_json()
    with pytest.raises(UserError, match="the environment variable ABSENT is not set"):
        check_requirements([], DownloadSettings(proxy="$ABSENT"))


def test_the_users_own_proxy_decides_what_is_reached(
    server: FaultyServer, inner: FaultyServer, get: Get, stream: bytes
) -> None:
    """``inner`` is the proxy: it is asked for everything, sections that ffmpeg fetches included."""
    section = {"start_ms": 500, "end_ms": 1500}
    page(inner, "http://media.example/a.m3u8", master("b.m3u8"))
    for port in ("", ":80"):  # ffmpeg names it always, as it asks a proxy
        page(inner, f"http://media.example{port}/b.m3u8", playlist("c.ts"))
        inner.serve(f"http://media.example{port}/c.ts", Answer(body=stream, content_type="video/mp2t"))
    settings = SECTIONS.model_copy(update={"proxy": inner.url("")})
    assert get("http://media.example/a.m3u8", settings, **section).num_bytes > 5_000
    assert inner.hits("http://media.example:80/c.ts") >= 1
    page(server, "/a.m3u8", master("b.m3u8"))
    socks = SECTIONS.model_copy(update={"proxy": f"socks5://127.0.0.1:{inner.port}"})
    assert refusal(get, server.url("/a.m3u8"), socks, **section) == "proxy"


MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="v" bandwidth="90000" codecs="avc1.42c00b" width="128" height="96">
<BaseURL>v.mp4</BaseURL></Representation></AdaptationSet>
<AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="30000" codecs="mp4a.40.2" audioSamplingRate="44100">
<BaseURL>a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"""


def test_what_is_merged_is_media_and_no_script_that_names_files(
    server: FaultyServer, inner: FaultyServer, get: Get, tmp_path: Path, stream: bytes
) -> None:
    (tmp_path / "secret.ts").write_bytes(stream)
    server.serve("/a.mpd", Answer(body=MPD.encode(), content_type="application/dash+xml"))
    server.serve("/v.mp4", Answer(body=stream))
    for text in (
        playlist(inner.url("/secret.ts")),
        playlist(str(tmp_path / "secret.ts")),
        f"ffconcat version 1.0\nfile {tmp_path / 'secret.ts'}\n",
    ):
        server.serve("/a.mp4", Answer(body=text.encode()))
        with pytest.raises(DownloadError) as caught:
            get(server.url("/a.mpd"), OPEN)
        assert caught.value.code == "merge_failed"
    assert inner.hits() == 0
    server.serve("/a.mp4", Answer(body=stream))
    assert get(server.url("/a.mpd")).num_bytes > 10_000


def test_links_inside_links_of_fsspec_are_held_to_the_same(
    server: FaultyServer, inner: FaultyServer, get: Get, stream: bytes
) -> None:
    inner.serve("/a.bin", Answer(body=stream))
    assert refusal(get, f"simplecache://::{redirect(server, '/a.bin', inner.url('/a.bin'))}") == "private_address"
    assert inner.hits() == 0
    url = f"simplecache://::{redirect(server, '/b.bin', inner.url('/a.bin'))}"
    assert get(url, OPEN).num_bytes == len(stream)
    assert refusal(get, f"reference://a::{server.url('/refs.json')}") == "unsupported_url"


def test_an_ffmpeg_command_is_guarded_input_by_input() -> None:
    command = guarded(
        ["ffmpeg", "-y", "-i", "https://a/b.m3u8", "-ss", "1", "-i", "file:a.mp4", "-i", "concat:a|b", "o.mp4"]
    )
    protocols = [command[at + 1] for at, word in enumerate(command) if word == "-protocol_whitelist"]
    assert [("file" in protocol.split(","), "http" in protocol.split(",")) for protocol in protocols] == [
        (False, True),
        (True, False),
        (True, False),
    ]
    formats = [command[at + 1].split(",") for at, word in enumerate(command) if word == "-format_whitelist"]
    assert ["hls" in names for names in formats] == [True, False, False]
    assert not any({"concat", "image2", "sdp", "lavfi"} & set(names) for names in formats)


def test_the_checking_proxy_forwards_refuses_and_survives_nonsense(
    server: FaultyServer, inner: FaultyServer, stream: bytes
) -> None:
    server.serve("/a", Answer(body=stream))
    proxy = CheckingProxy(Reach(named_places(server.url("/")), ()), 2.0)
    try:
        port = int(proxy.url.rpartition(":")[2])

        def ask(request: str) -> bytes:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(request.encode())
                client.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: client.recv(65536), b""))

        whole = ask(f"GET {server.url('/a')} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: secret\r\n\r\n")
        assert whole.startswith(b"HTTP/1.1 200") and whole.endswith(stream[-100:])
        assert "Proxy-Authorization" not in server.requests[-1].headers
        tunnel = f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n\r\nGET /a HTTP/1.0\r\n\r\n"
        assert ask(tunnel).endswith(stream[-100:])
        for request, status in (
            (f"GET {inner.url('/secret.ts')} HTTP/1.1\r\n\r\n", b"403"),
            (f"CONNECT 127.0.0.1:{inner.port} HTTP/1.1\r\n\r\n", b"403"),
            ("GET file:///etc/passwd HTTP/1.1\r\n\r\n", b"400"),
            ("GET /a HTTP/1.1\r\n\r\n", b"400"),
            ("nonsense\r\n\r\n", b"400"),
            ("no end", b"400"),
        ):
            assert ask(request).startswith(b"HTTP/1.1 " + status), request
        assert inner.hits() == 0
    finally:
        proxy.close()
