"""Shards that lie elsewhere: over HTTP with its faults, on any file system that fsspec knows, with copies and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.dataset.manifest import find_manifests, read_manifest
from pipeline.errors import DataError, ManifestError
from pipeline.runtime.remote import Retries
from tests.datasets import Clip, build_dataset, index_of
from tests.faulty_server import Answer, Fault, FaultyServer
from trainer.recipe import find_datasets
from trainer.streaming.cache import FOLDER
from trainer.streaming.reader import Batch, DatasetMix, Reader, ReaderSettings

SETTINGS = ReaderSettings(
    picture_px=48,
    num_frames=1,
    window_seconds=1.0,
    batch_size=4,
    num_workers=0,
    mel=False,
    last_batch="keep",
    shuffle_shards=2,
    retries=Retries(num=2, pause_seconds=0.01, timeout_seconds=20),
)
SIZES = [4, 5, 3, 4]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    build_dataset(folder, clips, SIZES)
    return folder


@pytest.fixture
def server(dataset: Path) -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        for path in dataset.rglob("*"):
            if path.is_file():
                running.serve(f"/data/{path.relative_to(dataset)}", Answer(body=path.read_bytes()))
        yield running


def reader(location: object, settings: ReaderSettings = SETTINGS) -> Reader:
    return Reader([DatasetMix(location=str(location))], settings, split="train", seed=1)


def listing(*names: str) -> Answer:
    body = "".join(f'<a href="{name}">{name}</a>' for name in names)
    return Answer(body=body.encode(), content_type="text/html")


def test_datasets_are_found_on_a_server_and_none_is_passed_over(dataset: Path, server: FaultyServer):
    server.serve("/", listing("data/", "deep/"))
    server.serve("/data/", listing("manifest.json", "shards/", "notes.txt"))
    server.serve("/data/shards/", Answer(status=500))
    server.serve("/deep/", Answer(status=503), listing("down/"))
    for empty in ("/deep/down/", "/deep/down"):
        server.serve(empty, listing())
    with pytest.raises(ManifestError, match=r"http://127.* cannot be listed: 503.*check the address"):
        find_manifests(server.url("/"), Retries(num=0))
    assert find_manifests(server.url("/")) == [server.url("/data/manifest.json")]
    assert find_manifests(server.url("/data")) == [server.url("/data/manifest.json")]
    manifest = (dataset / "manifest.json").read_bytes()
    server.serve("/data/manifest.json", Answer(body=manifest), Answer(status=503), Answer(body=manifest))
    assert len(find_datasets(server.url("/data"), {}, SETTINGS.retries)) == 1
    with pytest.raises(ManifestError, match="/nowhere is not a folder"):
        find_manifests(server.url("/nowhere"))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a.keys == b.keys and np.array_equal(a.frames_BTCHW, b.frames_BTCHW) and np.array_equal(a.sounds_BN, b.sounds_BN)
        for a, b in zip(one, other, strict=True)
    )


def tar(number: int) -> str:
    return f"/data/shards/48/train-{number:06d}.tar"


def refused(server: FaultyServer, path: str, *first: Answer) -> None:
    """These answers, and then what is there."""
    server.serve(path, *first, server.next_answer(path))


def test_http_and_fsspec_give_what_the_disk_gives(dataset: Path, server: FaultyServer):
    expected = list(reader(dataset))
    assert sum(len(batch) for batch in expected) == 16
    assert same(list(reader(server.url("/data"))), expected)
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/hearscape-test", recursive=True)
    try:
        assert same(list(reader("memory://hearscape-test")), expected)
    finally:
        memory.rm("/hearscape-test", recursive=True)
    assert same(list(reader(f"file://{dataset}")), expected)


def test_without_copies_each_sample_is_one_request_for_its_own_bytes(dataset: Path, server: FaultyServer):
    list(reader(server.url("/data")))
    asked = [hit for hit in server.requests if hit.path.endswith(".tar")]
    assert len(asked) == 16
    ends = [hit.headers["Range"].removeprefix("bytes=").split("-") for hit in asked]
    moved = sum(int(end) - int(start) + 1 for start, end in ends)
    held = sum(shard.num_bytes for shard in read_manifest(dataset).shards_of("48", "train"))
    assert 0.9 * held < moved < held  # the embeddings and the ends of the tars are left


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=503),
        Answer(status=429),
        Answer(body=bytes(100_000), fault=Fault.RESET, fault_after=50_000),
        Answer(body=bytes(100_000), fault=Fault.TRUNCATE, fault_after=50_000),
        Answer(body=bytes(100_000), fault=Fault.STALL, fault_after=50_000),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_server_that_stumbles_is_asked_again(
    dataset: Path, server: FaultyServer, tmp_path: Path, fault: Answer, cached: bool
):
    refused(server, tar(1), fault, Answer(status=500))
    impatient = SETTINGS.retries.model_copy(update={"timeout_seconds": 1.5})
    changed = {"cache_dir": str(tmp_path) if cached else None, "retries": impatient}
    one = reader(server.url("/data"), SETTINGS.model_copy(update=changed))
    assert same(list(one), list(reader(dataset)))
    assert one.bad == ()
    assert server.hits(tar(1)) == (3 if cached else 7)


def test_a_manifest_is_asked_for_again_too(dataset: Path, server: FaultyServer):
    refused(server, "/data/manifest.json", Answer(status=503), Answer(status=500))
    assert len(reader(server.url("/data"))) == 4
    server.serve("/data/manifest.json", Answer(status=503))
    with pytest.raises(ManifestError, match="HTTP 503"):
        reader(server.url("/data"))
    with pytest.raises(ManifestError, match=r"/other/manifest\.json does not exist: no dataset was built there"):
        reader(server.url("/other"))


@pytest.mark.parametrize(
    ("path", "answer", "hits", "reason"),
    [
        (tar(2), Answer(status=503), 3, "HTTP 503"),
        (tar(2), Answer(status=404), 1, "FileNotFoundError"),
        (tar(2), Answer(status=403), 1, "HTTP 403"),
        (tar(2).replace(".tar", ".index.json"), Answer(status=500), 3, "HTTP 500"),
        (tar(2), Answer(body=bytes(900_000), ranges=False), 1, "a server that supports range requests is needed"),
    ],
)
def test_a_shard_that_stays_away_is_named_once_and_not_asked_for_again_and_again(
    dataset: Path, server: FaultyServer, path: str, answer: Answer, hits: int, reason: str
):
    server.serve(path, answer)
    one = reader(server.url("/data"))
    keys = [key for batch in one for key in batch.keys]
    assert sorted(map(index_of, keys)) == [*range(9), *range(12, 16)]
    ((bad, times),) = one.bad
    assert (bad.shard, bad.key, times) == (server.url(tar(2)), None, 3)
    assert reason in bad.reason
    assert server.hits(path) == hits


def test_with_copies_every_shard_is_fetched_once(dataset: Path, server: FaultyServer, tmp_path: Path):
    settings = SETTINGS.model_copy(update={"cache_dir": str(tmp_path), "num_workers": 2})
    one = reader(server.url("/data"), settings)
    local = reader(dataset)
    for _ in range(2):
        assert same(list(one), list(local))
    one.close()
    assert [server.hits(tar(number)) for number in range(4)] == [1] * 4
    assert len(list((tmp_path / FOLDER).glob("*.tar"))) == 4


def test_the_limit_holds_while_shards_come_and_go(dataset: Path, server: FaultyServer, tmp_path: Path):
    sizes = sorted(shard.num_bytes for shard in read_manifest(dataset).shards_of("48", "train"))
    limit = sizes[-1] + sizes[-2]
    one = reader(server.url("/data"), SETTINGS.model_copy(update={"cache_dir": str(tmp_path), "cache_bytes": limit}))
    local = reader(dataset)
    for _ in range(2):
        for batch, expected in zip(one, local, strict=True):
            assert same([batch], [expected])
            assert sum(path.stat().st_size for path in (tmp_path / FOLDER).glob("*.tar")) <= limit
    assert 4 <= sum(server.hits(tar(number)) for number in range(4)) <= 8
    with pytest.raises(DataError, match="are too few for the shards that are mixed"):
        reader(server.url("/data"), one.settings.model_copy(update={"cache_bytes": limit - 1}))


def test_a_shard_that_differs_from_the_manifest_is_not_kept_and_costs_only_what_is_hit(
    dataset: Path, server: FaultyServer, tmp_path: Path
):
    answer = server.next_answer(tar(1))
    where = answer.body.index(b"s006_00000000")
    damaged = answer.body[:where] + bytes(600) + answer.body[where + 600 :]
    server.serve(tar(1), dataclasses.replace(answer, body=damaged))
    one = reader(server.url("/data"), SETTINGS.model_copy(update={"cache_dir": str(tmp_path)}))
    keys = sorted(index_of(key) for batch in one for key in batch.keys)
    assert keys == [index for index in range(16) if index != 6]
    assert [(bad.member, times) for bad, times in one.bad] == [("tar", 1)]
    assert len(list((tmp_path / FOLDER).glob("*.tar"))) == 3


def test_a_url_of_an_unknown_kind_is_refused():
    with pytest.raises(ManifestError, match=r"nosuch://data/manifest\.json: it cannot be opened: Protocol not known"):
        reader("nosuch://data")
