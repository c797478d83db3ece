"""Servers that give a part of a file where all was asked for, and say so."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from pipeline.errors import TransientDownloadError
from pipeline.fetch.download import fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.settings import DownloadSettings
from pipeline.schema import Source
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, FaultyServer
from tests.footage import FPS, noise, shots

SETTINGS = DownloadSettings(retries=1, backoff_seconds=0.01, allow_networks=(ip_network("127.0.0.0/8"),))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    """Two seconds of a transport stream: half of it is a whole file as well, of one second."""
    write_video(tmp_path / "x.ts", shots([2.0], size=(160, 96)), noise(2.0), fps=FPS, gop=12)
    return (tmp_path / "x.ts").read_bytes()


def test_half_a_file_is_not_taken_for_the_whole(server: FaultyServer, stream: bytes, tmp_path: Path) -> None:
    half = len(stream) // 2 // 188 * 188
    part = _answer(stream, half)
    with DownloadStore(tmp_path / "store") as store:
        with pytest.raises(
            TransientDownloadError, match=f"the server sent bytes 0 to {half - 1} of {len(stream)} only"
        ) as told:
            fetch(Source("s", server.serve("/part.ts", part)), store, SETTINGS, SETTINGS.host_gate())
        assert told.value.code == "truncated"
        url = server.serve("/soon.ts", part, _answer(stream, len(stream)))
        fetched = fetch(Source("s", url), store, SETTINGS, SETTINGS.host_gate())
        assert Path(fetched.path).read_bytes() == stream


def _answer(body: bytes, num_bytes: int) -> Answer:
    said = {"Content-Range": f"bytes 0-{num_bytes - 1}/{len(body)}"}
    return Answer(status=206, body=body[:num_bytes], headers=said, content_type="video/mp2t", ranges=False)
