"""What a download needs and tells: keys, secrets, errors of sites, cookies, proxies, JavaScript runtimes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations

from pipeline.errors import DownloadError, TransientDownloadError, UserError
from pipeline.fetch import download
from pipeline.fetch.cookies import warn_once
from pipeline.fetch.download import check_requirements, fetch_key
from pipeline.fetch.errors import clean, explain
from pipeline.fetch.provenance import provenance_of
from pipeline.fetch.settings import DownloadSettings
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import Source
from pipeline.sources.links import known_schemes
from tests.faulty_server import Answer, FaultyServer
from tests.pipeline.fetch.fetching import ONCE, QUICK, Get, failure


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
    with pytest.raises(ValueError, match=r"is not the URL of a proxy"):
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
