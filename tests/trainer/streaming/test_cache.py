"""Copies of shards: one fetch for all, never more than the limit, and no file deleted that is not the cache's own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import DataError, ShardError
from trainer.streaming.cache import FOLDER, ShardCache

BYTES = 10_000


def content(number: int) -> bytes:
    return number.to_bytes(2, "big") * (BYTES // 2)


def record(number: int, *, sha256: str | None = None) -> ShardRecord:
    digest = sha256 or hashlib.sha256(content(number)).hexdigest()
    return ShardRecord(
        path=f"shards/48/train-{number:06d}.tar",
        rendition="48",
        split="train",
        num_samples=1,
        num_bytes=BYTES,
        sha256=digest,
    )


class Server:
    """Gives shards by number; counts what it is asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: Counter[int] = Counter()
        self.seconds = seconds

    def read(self, cache: ShardCache, number: int, data: bytes | None = None) -> bytes | None:
        def fetch(start: int, end: int) -> bytes:
            self.asked[number] += 1
            time.sleep(self.seconds)
            return (content(number) if data is None else data)[start:end]

        file = cache.open(record(number), fetch)
        if file is None:
            return None
        with file:
            return file.read()


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    made = ShardCache(tmp_path, 3 * BYTES)
    made.prepare()
    return made


def copies(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.suffix in (".tar", ".part")}


def names(*numbers: int) -> set[str]:
    return {f"{record(number).sha256}.tar" for number in numbers}


def test_what_was_not_used_for_longest_goes_first(cache: ShardCache):
    server = Server()
    for number in (1, 2, 3, 1, 4, 1, 5):
        assert server.read(cache, number) == content(number)
        time.sleep(0.005)  # times of use differ
        assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= 3 * BYTES
    assert server.asked == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    assert copies(cache) == names(1, 4, 5)
    server.read(cache, 2)
    assert server.asked[2] == 2


def test_a_file_that_is_being_read_may_go_and_is_read_to_its_end(cache: ShardCache):
    server = Server()
    file = cache.open(record(1), lambda start, end: content(1)[start:end])
    assert file is not None
    for number in (2, 3, 4):
        server.read(cache, number)
    assert copies(cache) == names(2, 3, 4)
    with file:
        assert file.read() == content(1)


def test_the_users_own_files_are_never_deleted(tmp_path: Path, cache: ShardCache):
    own = [
        tmp_path / "mine.tar",
        tmp_path / f"{record(7).sha256}.tar",
        cache.folder / "notes.tar",
        cache.folder / f"{record(8).sha256}.tar.bak",
        cache.folder / "aaaa.part",
    ]
    for path in own:
        path.write_bytes(bytes(50_000))
    link = cache.folder / f"{record(9).sha256}.tar"
    link.symlink_to(own[0])
    (cache.folder / f"{'0' * 64}.tar").mkdir()
    for number in range(6):
        assert Server().read(cache, number) == content(number)
        time.sleep(0.005)
    assert copies(cache) >= names(3, 4, 5)
    assert [path.stat().st_size for path in own] == [50_000] * 5
    assert link.is_symlink()
    assert (cache.folder / f"{'0' * 64}.tar").is_dir()


def test_a_folder_of_that_name_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holds files that are not this cache's"):
        ShardCache(tmp_path, BYTES).prepare()
    assert (tmp_path / FOLDER / "holiday.jpg").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be made: Not a directory"):
        ShardCache(tmp_path / "file", BYTES).prepare()


@pytest.mark.parametrize("data", [content(2), content(1)[:-10], b""])
def test_bytes_that_differ_from_the_manifest_are_not_kept(cache: ShardCache, data: bytes):
    server = Server()
    assert server.read(cache, 1, data) is None
    assert copies(cache) == set()
    assert server.read(cache, 1) is None  # not fetched again and again
    assert server.asked[1] == 1


def test_a_shard_larger_than_the_limit_is_not_fetched(tmp_path: Path):
    cache = ShardCache(tmp_path, BYTES - 1)
    cache.prepare()
    server = Server()
    assert server.read(cache, 1) is None
    assert server.asked == {}


def test_a_fetch_that_fails_leaves_nothing_and_says_why(cache: ShardCache):
    def fetch(start: int, end: int) -> bytes:
        raise ShardError("unreadable", "HTTP 503")

    with pytest.raises(ShardError, match="503"):
        cache.open(record(1), fetch)
    assert copies(cache) == set()
    assert Server().read(cache, 1) == content(1)


def test_a_copy_of_another_length_is_fetched_again(cache: ShardCache):
    server = Server()
    server.read(cache, 1)
    os.truncate(cache.folder / f"{record(1).sha256}.tar", 100)
    assert server.read(cache, 1) == content(1)
    assert server.asked[1] == 2


def test_many_readers_fetch_a_shard_once_and_stay_within_the_limit(tmp_path: Path):
    server = Server(seconds=0.05)
    most = 0
    failed: list[object] = []

    def read(numbers: tuple[int, ...]) -> None:
        mine = ShardCache(tmp_path, 3 * BYTES)
        mine.prepare()
        for number in numbers:
            if server.read(mine, number) not in (content(number), None):
                failed.append(number)

    threads = [
        threading.Thread(target=read, args=(numbers,)) for numbers in [(1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 3, 2)]
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sizes = 0
        for path in list((tmp_path / FOLDER).glob("*.tar")) + list((tmp_path / FOLDER).glob("*.part")):
            try:
                sizes += path.stat().st_size
            except FileNotFoundError:
                sizes += 0
        most = max(most, sizes)
        time.sleep(0.002)
    assert not failed
    assert server.asked == {1: 1, 2: 1, 3: 1}
    assert most <= 3 * BYTES


def test_many_may_make_the_folder_at_once(tmp_path: Path):
    failed: list[str] = []

    def prepare(folder: Path) -> None:
        try:
            ShardCache(folder, BYTES).prepare()
        except DataError as error:
            failed.append(str(error))

    for number in range(200):
        makers = [threading.Thread(target=prepare, args=(tmp_path / str(number),)) for _ in range(6)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
    assert failed == []


def test_what_a_killed_process_left_makes_room_and_what_is_being_fetched_does_not(cache: ShardCache):
    left = cache.folder / f"{record(8).sha256}.{'0' * 32}.part"
    left.write_bytes(bytes(2 * BYTES))
    assert Server().read(cache, 1) == content(1)
    assert not left.exists()

    at_work = cache.folder / f"{record(9).sha256}.{'1' * 32}.part"
    with at_work.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(bytes(2 * BYTES + 1))
        file.flush()
        assert Server().read(cache, 2) is None  # no room beside it, now
        assert at_work.exists()
    at_work.unlink()
    assert Server().read(cache, 2) == content(2)
