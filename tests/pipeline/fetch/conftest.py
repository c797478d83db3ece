"""A server that misbehaves, a store, a short video, and a function that fetches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.fetch.download import fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.hosts import HostGate
from pipeline.fetch.settings import DownloadSettings
from pipeline.media.ffmpeg import ffmpeg_path
from pipeline.schema import Fetched, Source
from tests.faulty_server import FaultyServer
from tests.pipeline.fetch.fetching import QUICK, Get


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
