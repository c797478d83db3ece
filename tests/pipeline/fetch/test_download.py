"""Downloads by the real yt-dlp from a real server that misbehaves: statuses, broken bodies, stalls and limits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.errors import TransientDownloadError
from pipeline.fetch.download import fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.runtime.hashing import sha256_of
from pipeline.schema import Source
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.pipeline.fetch.fetching import HTML, IMPATIENT, ONCE, QUICK, Get, failure, leftovers


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


@pytest.mark.slow
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
    once = ONCE.model_copy(update=IMPATIENT if fault is Fault.STALL else {})  # on a busy machine, a reset may come late
    error = failure(get, server.serve("/b.mp4", broken), once)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_nothing_is_logged_as_an_error(server: FaultyServer, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        failure(get, server.serve("/a.mp4", Answer(status=404)))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert any("HTTP Error 404" in record.message for record in caplog.records)
