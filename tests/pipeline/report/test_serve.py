"""The server of a report: clips out of the tars by ranges, and nothing else of the disk."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import soundfile

from pipeline.dataset.tables import ClipRow
from pipeline.errors import OutputError
from pipeline.report.gallery import GallerySettings
from pipeline.report.make import ReportSettings, make_report
from pipeline.report.serve import ReportServer, open_report
from pipeline.runtime.folder import Folder
from pipeline.schema import State
from tests.reported import KOREAN, tiny_media, write_previews

Make = Callable[..., tuple[Folder, list[ClipRow]]]
FEW = ReportSettings(gallery=GallerySettings(max_clips=2))


@contextmanager
def served(folder: Folder) -> Iterator[ReportServer]:
    make_report(folder.url, settings=FEW)
    with open_report(folder.url) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_a_kept_clip_comes_out_of_its_tar_whole_or_in_part(dataset: Make) -> None:
    folder, rows = dataset(40)
    mp4, flac = tiny_media()
    key = next(row.key for row in rows if row.state is State.KEPT)
    with served(folder) as server:
        status, headers, content = get(server, f"/clip/144/{key}.mp4")
        assert (status, content, headers["content-type"], headers["accept-ranges"]) == (200, mp4, "video/mp4", "bytes")
        status, headers, content = get(server, f"/clip/144/{key}.mp4", Range="bytes=100-299")
        assert (status, content, headers["content-range"]) == (206, mp4[100:300], f"bytes 100-299/{len(mp4)}")
        assert get(server, f"/clip/144/{key}.mp4", Range="bytes=-10")[2] == mp4[-10:]
        assert get(server, f"/clip/144/{key}.mp4", Range=f"bytes={len(mp4)}-")[0] == 416
        status, headers, content = get(server, f"/clip/144/{key}.mp4", "HEAD")
        assert (status, headers["content-length"], content) == (200, str(len(mp4)), b"")
        assert get(server, f"/sound/{key}.flac")[2] == flac
        strip = cv2.imdecode(np.frombuffer(get(server, f"/strip/{key}.webp?frames=5")[2], np.uint8), cv2.IMREAD_COLOR)
        assert strip.shape == (108, 5 * 192, 3)
        levels = [float(strip[:, 192 * i : 192 * (i + 1)].mean()) for i in range(5)]
        assert levels == sorted(levels)  # the clip brightens
        assert levels[4] - levels[0] > 80
        assert get(server, f"/spectrum/{key}.webp")[1]["content-type"] == "image/webp"


def test_a_rejected_clip_is_seen_and_heard_from_its_previews(dataset: Make) -> None:
    folder, rows = dataset(40)
    row = next(row for row in rows if row.state is State.REJECTED and row.start_ms == 10_000)
    other = next(each for each in rows if each.state is State.REJECTED and each.source_id != row.source_id)
    write_previews(folder, row)
    with served(folder) as server:
        samples, rate = soundfile.read(io.BytesIO(get(server, f"/sound/{row.key}.wav")[2]))
        assert (rate, len(samples)) == (44_100, 3 * 44_100)
        assert np.abs(np.fft.rfft(samples)).argmax() / 3 == pytest.approx(440, abs=1)
        strip = cv2.imdecode(np.frombuffer(get(server, f"/strip/{row.key}.webp")[2], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert [round(float(strip[:, 192 * i : 192 * (i + 1)].mean())) for i in range(3)] == pytest.approx(
            [150, 140, 130], abs=4
        )
        assert get(server, f"/sound/{other.key}.wav")[0] == get(server, f"/strip/{other.key}.webp")[0] == 404


def test_clips_are_found_over_the_whole_dataset(dataset: Make) -> None:
    folder, rows = dataset(60)
    with served(folder) as server:
        status, _, content = get(server, "/api/clips?state=kept&label=%EB%B9%97%EC%86%8C%EB%A6%AC&sort=motion&limit=3")
        found = json.loads(content)
        wanted = [row for row in rows if row.state is State.KEPT and KOREAN in row.labels]
        assert (status, found["total"]) == (200, len(wanted))
        fastest = sorted(wanted, key=lambda row: (-row.picture.motion if row.picture else 0.0, row.key))
        assert [clip["key"] for clip in found["clips"]] == [row.key for row in fastest[:3]]
        assert found["clips"][0]["title"] == f"Title of {fastest[0].source_id}"
        for query in ("sort=nothing", "limit=100000", "offset=-1", "low=x", "unknown=1"):
            assert get(server, f"/api/clips?{query}")[0] == 400, query


def test_nothing_else_is_served(dataset: Make) -> None:
    folder, rows = dataset(20)
    key = next(row.key for row in rows if row.state is State.KEPT)
    with served(folder) as server:
        for path in (
            "/manifest.json",
            "/clip/144/../../manifest.json",
            f"/clip/..%2F..%2F144/{key}.mp4",
            "/clip/144/no_such.mp4",
            "/strip/.webp",
        ):
            assert get(server, path)[0] == 404, path
        assert get(server, "/", Host="evil.example")[0] == 403
        status, headers, page = get(server, "/", Host="localhost")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert b'data-served="yes"' in page
        assert b"connect-src 'self'" in page
        assert server.url.startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_a_browser_that_hangs_up_is_no_error(dataset: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = dataset(20)
    with served(folder) as server, caplog.at_level(logging.DEBUG, logger="pipeline.report.serve"):
        connection = socket.create_connection(server.server_address[:2], timeout=30)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
        connection.close()
        assert get(server, "/", Host="localhost")[0] == 200
        deadline = time.monotonic() + 30
        while "ConnectionResetError" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    (told,) = (record for record in caplog.records if "ConnectionResetError" in record.getMessage())
    assert told.levelno == logging.DEBUG


@pytest.mark.slow
def test_an_old_report_is_made_anew_before_it_is_served(dataset: Make) -> None:
    folder, _ = dataset(20)
    make_report(folder.url, settings=FEW)
    dataset(30)  # builds again over it
    with open_report(folder.url) as server:
        assert b'"num_clips":30' in server.library.page


def test_a_port_that_is_taken_is_refused(dataset: Make) -> None:
    folder, _ = dataset(20)
    make_report(folder.url, settings=FEW)
    with open_report(folder.url) as server:
        port = server.server_address[1]
        with pytest.raises(OutputError, match="choose another with --port"), open_report(folder.url, port=port):
            pass
    with pytest.raises(OutputError, match="port 99999 is none"), open_report(folder.url, port=99_999):
        pass
