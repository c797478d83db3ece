"""Lists, manifests, pages, weights and archives from elsewhere are read up to a limit, however large they are or say to be."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.manifest import ShardRecord, read_manifest
from pipeline.dataset.verify import verify
from pipeline.encoders.weights import resolve_weights
from pipeline.errors import DownloadError, EncoderError, ManifestError, ShardError, SourceListError
from pipeline.fetch.download import fetch
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.settings import DownloadSettings
from pipeline.runtime.folder import Folder
from pipeline.runtime.remote import Remote, Retries
from pipeline.schema import Source
from pipeline.sources.lists import read_sources
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.pipeline.dataset.test_manifest import TAR, build
from trainer.streaming.shards import places_in

LIMIT = 1 << 20
SHA256 = "0" * 64
TOO_LARGE = Answer(body=bytes(100), headers={"Content-Length": str(LIMIT + 1)}, fault=Fault.STALL)
"""Says so, and keeps whoever reads on waiting for ever."""
ENDLESS = Answer(body=b"http://a.example/1.mp4\n" * 1000, fault=Fault.ENDLESS)
AT_ONCE = Retries(num=3, pause_seconds=3600.0, timeout_seconds=3600.0)
"""A try that is repeated would take hours."""
DEEP = b"[" * 1_000_000


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


@pytest.mark.parametrize("answer", [TOO_LARGE, ENDLESS], ids=["told", "endless"])
def test_weights(
    server: FaultyServer,
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pipeline.encoders.weights.MAX_BYTES", LIMIT)
    caplog.set_level(logging.INFO)
    with pytest.raises(EncoderError, match="more than 1,048,576 bytes, which is the limit") as caught:
        resolve_weights(server.serve("/w.pt?token=HUSH", answer), SHA256, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert "fetching" in caplog.text
    assert "HUSH" not in caplog.text + str(caught.value)


def test_weights_of_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/limits/w.pt", bytes(LIMIT + 1))
    with pytest.raises(EncoderError, match="gave 1048577 bytes"):
        resolve_weights("memory://limits/w.pt", SHA256, tmp_path)
    monkeypatch.setattr("pipeline.encoders.weights.MAX_BYTES", LIMIT)
    with pytest.raises(EncoderError, match="more than 1,048,576 bytes"):
        resolve_weights("memory://limits/w.pt", SHA256, tmp_path)


@pytest.mark.parametrize("answer", [TOO_LARGE, ENDLESS], ids=["told", "endless"])
def test_source_lists(server: FaultyServer, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.rows.MAX_LIST_BYTES", LIMIT)
    with pytest.raises(SourceListError, match=r"list\.csv: cannot be read: it has more than 1,048,576 bytes"):
        read_sources(server.serve("/list.csv", answer))


def test_rows_of_a_source_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("url\n" + "".join(f"http://a.example/{n}.mp4\n" for n in range(4)))
    monkeypatch.setattr("pipeline.sources.lists.MAX_ROWS", 4)
    assert len(read_sources(tmp_path / "list.csv").sources) == 4
    monkeypatch.setattr("pipeline.sources.lists.MAX_ROWS", 3)
    with pytest.raises(SourceListError, match=r"list\.csv:5: more than 3 rows: divide them"):
        read_sources(tmp_path / "list.csv")


def test_a_parquet_list_that_unpacks_to_much_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [f"http://a.example/{n}" for n in range(3)]
    pq.write_table(pa.table({"url": links, "caption": ["x" * 200_000, None, "rain"]}), tmp_path / "list.parquet")
    assert (tmp_path / "list.parquet").stat().st_size < 20_000
    found = read_sources(tmp_path / "list.parquet")
    assert [source.url for source in found.sources] == links[1:]
    assert found.problems[0].message == "the row is longer than 131,072 characters"
    assert len(found.problems[0].text) == 160
    monkeypatch.setattr("pipeline.sources.rows.MAX_GROUP_BYTES", 100_000)
    with pytest.raises(SourceListError, match=r"a row group of [\d,]+ bytes is too large to be read"):
        read_sources(tmp_path / "list.parquet")


def test_a_page_that_unpacks_to_much_more(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fetch.transfer.MAX_TEXT_BYTES", LIMIT)
    packed = gzip.compress(b"<html><body>" + bytes(40 * LIMIT))
    assert len(packed) < LIMIT // 10
    url = server.serve("/page", Answer(body=packed, content_type="text/html", headers={"Content-Encoding": "gzip"}))
    settings = DownloadSettings(retries=0, max_bytes=None)
    with (
        DownloadStore(tmp_path / "store") as store,
        pytest.raises(DownloadError, match=f"a text of more than {LIMIT} bytes"),
    ):
        fetch(Source("s", url), store, settings, settings.host_gate())


@pytest.mark.parametrize("answer", [TOO_LARGE, ENDLESS], ids=["told", "endless"])
def test_manifests_and_indexes(server: FaultyServer, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.remote.MAX_BYTES", LIMIT)
    server.serve("/set/manifest.json", answer)
    with pytest.raises(ManifestError, match="more than 1,048,576 bytes"):
        read_manifest(server.url("/set"), AT_ONCE)


def test_a_manifest_that_unpacks_to_much_more(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.remote.MAX_BYTES", LIMIT)
    packed = gzip.compress(bytes(40 * LIMIT))
    server.serve("/set/manifest.json", Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(ManifestError, match="more than 1,048,576 bytes"):
        read_manifest(server.url("/set"), AT_ONCE)


def test_a_server_that_sends_more_than_was_asked_for(server: FaultyServer) -> None:
    server.serve("/set/whole.tar", Answer(body=bytes(2000), ranges=False))
    server.serve("/set/endless.tar", ENDLESS)
    remote = Remote(server.url("/set"), AT_ONCE)
    for name in ("whole.tar", "endless.tar"):
        with pytest.raises(ShardError, match="sends whole files only"):
            remote.read(name, 10, 1010)


def test_a_manifest_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_bytes(DEEP)
    with pytest.raises(ManifestError, match="it is not JSON"):
        read_manifest(tmp_path)
    monkeypatch.setattr("pipeline.dataset.manifest.MAX_BYTES", len(DEEP) - 1)
    with pytest.raises(ManifestError, match="cannot be read: it has more than 999,999 bytes"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("offset", ["1e999", "-100000", '"x"', "[1]", "1" * 5000, DEEP.decode()])
def test_places_in_an_index_that_are_none(offset: str) -> None:
    sha256 = hashlib.sha256(b"").hexdigest()
    record = ShardRecord(path="a.tar", rendition="48", split="train", num_samples=1, num_bytes=10_240, sha256=sha256)
    members = ",".join(f'"{name}": [{offset}, 100]' for name in ("flac", "json", "mp4"))
    index = f'{{"shard": {json.dumps({"sha256": sha256})}, "samples": [{{"key": "k", "members": {{{members}}}}}]}}'
    with pytest.raises(ShardError, match=r"its index (is damaged|does not fit it)"):
        places_in(index.encode(), record)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def packed(array_header: bytes) -> bytes:
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(array_header)) + array_header
    return header("s.picture.npy", len(data)) + data + bytes(-len(data) % 512)


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "names of names of names": (
        lambda: (header("././@LongLink", 10, tarfile.GNUTYPE_LONGNAME) + b"s.flac\0".ljust(512, b"\0")) * 5000,
        "cannot be read after its beginning",
    ),
    "a size beyond the file": (
        lambda: header("s.json", 1 << 60),
        "ends at s.json, whose header says 1,152,921,504,606,846,976 bytes: its file is not that long",
    ),
    "a size below nothing": (lambda: header("s.json", -(1 << 60)), "ends at s.json, whose header says -1,152"),
    "nothing but names": (lambda: b"".join(header(f"s{n}.x", 0) for n in range(5000)), r"the rest was not checked"),
    "JSON without end": (lambda: header("s.json", 20_480) + DEEP[:20_480], "is not JSON"),
    "an array of exabytes": (
        lambda: packed(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"),
        "is not an array",
    ),
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_archives(tmp_path: Path, archive: str) -> None:
    make, message = ARCHIVES[archive]
    build(Folder(tmp_path))
    data = make() + bytes(10_240)
    (tmp_path / TAR).write_bytes(data)
    told = " | ".join(str(one) for one in verify(tmp_path) if one.path == TAR)
    assert f"has {len(data)} bytes, not" in told
    assert re.search(message, told), told
