"""The content-addressed store: threads, processes, kill -9, the budget."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.fetch.download_store import DownloadStore
from pipeline.schema import Fetched

KEYS = [f"{number:040x}" for number in range(100)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DownloadStore]:
    with DownloadStore(tmp_path / "store") as opened:
        yield opened


def put(store: DownloadStore, key: str, content: bytes, **more: object) -> Fetched:
    with store.temp_folder() as folder:
        path = folder / "media"
        path.write_bytes(content)
        return store.add(key, path, ".mp4", **more)  # type: ignore[arg-type]


def objects(store: DownloadStore) -> list[bytes]:
    return sorted(path.read_bytes() for path in store.root.glob("objects/*/*"))


def last_used(store: DownloadStore, fetched: Fetched, seconds: int) -> None:
    os.utime(fetched.path, (seconds, seconds))


def test_a_file_is_found_under_its_key(store: DownloadStore) -> None:
    sha256 = hashlib.sha256(b"rain").hexdigest()
    added = put(store, KEYS[0], b"rain", offset_ms=250, provenance={"title": "Rain"})
    path = str(store.root / "objects" / sha256[:2] / f"{sha256}.mp4")
    assert added == Fetched(path, sha256, 4, 250, {"title": "Rain"})
    assert store.find(KEYS[0]) == added
    assert Path(path).read_bytes() == b"rain"
    assert store.find(KEYS[1]) is None


def test_the_same_content_is_stored_once(store: DownloadStore) -> None:
    first = put(store, KEYS[0], b"rain", provenance={"title": "one"})
    second = put(store, KEYS[1], b"rain", provenance={"title": "two"})
    assert first.path == second.path
    assert objects(store) == [b"rain"]
    assert store.find(KEYS[0]).provenance == {"title": "one"}  # type: ignore[union-attr]
    assert store.find(KEYS[1]).provenance == {"title": "two"}  # type: ignore[union-attr]


def test_what_was_fetched_is_there_in_the_next_run(tmp_path: Path) -> None:
    with DownloadStore(tmp_path) as first:
        added = put(first, KEYS[0], b"rain")
    with DownloadStore(tmp_path) as second:
        assert second.find(KEYS[0]) == added
        assert {path.name for path in (tmp_path / "tmp").iterdir()} == {second._own.name, f"{second._own.name}.lock"}


def test_the_least_recently_used_of_the_released_files_goes_first(tmp_path: Path) -> None:
    with DownloadStore(tmp_path, budget_bytes=30) as store:
        old, kept, newer = (put(store, KEYS[n], bytes([n]) * 10) for n in range(3))
        for number, fetched in enumerate((old, kept, newer)):
            last_used(store, fetched, 1000 + number)
        store.release(old.content_sha256)
        store.release(newer.content_sha256)
        assert len(objects(store)) == 3
        put(store, KEYS[3], b"\3" * 10)
        assert objects(store) == [b"\1" * 10, b"\2" * 10, b"\3" * 10]
        put(store, KEYS[4], b"\4" * 10)
        assert objects(store) == [b"\1" * 10, b"\3" * 10, b"\4" * 10]


def test_finding_a_file_is_using_it(tmp_path: Path) -> None:
    with DownloadStore(tmp_path, budget_bytes=20) as store:
        first, second = put(store, KEYS[0], b"a" * 10), put(store, KEYS[1], b"b" * 10)
        last_used(store, first, 1000)
        last_used(store, second, 2000)
        found = store.find(KEYS[0])
        assert found is not None
        for _ in range(2):
            store.release(first.content_sha256)
        store.release(second.content_sha256)
        put(store, KEYS[2], b"c" * 10)
        assert objects(store) == [b"a" * 10, b"c" * 10]


def test_a_pin_is_needed_as_often_as_it_was_set(tmp_path: Path) -> None:
    with DownloadStore(tmp_path, budget_bytes=5) as store:
        fetched = put(store, KEYS[0], b"a" * 10)
        store.pin(fetched.content_sha256)
        store.release(fetched.content_sha256)
        assert objects(store) == [b"a" * 10]
        store.release(fetched.content_sha256)
        assert objects(store) == []


def test_a_budget_full_of_pinned_files_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), DownloadStore(tmp_path, budget_bytes=15) as store:
        put(store, KEYS[0], b"a" * 10)
        put(store, KEYS[1], b"b" * 10)
        put(store, KEYS[2], b"c" * 10)
        assert store.total_bytes() == 30
    assert [record.getMessage() for record in caplog.records] == [
        "files in use take 20 bytes, more than the store's budget of 15; going on"
    ]


def test_a_freed_file_is_remembered_and_a_change_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with DownloadStore(tmp_path, budget_bytes=0) as store:
        fetched = put(store, KEYS[0], b"before", provenance={"fetched_url": "http://x/a.mp4"})
        store.release(fetched.content_sha256)
        assert store.find(KEYS[0]) is None
        record = store.known(KEYS[0])
        assert record is not None
        assert (record.sha256, record.provenance) == (fetched.content_sha256, {"fetched_url": "http://x/a.mp4"})
        again = put(store, KEYS[0], b"before", provenance={"fetched_url": "http://x/a.mp4"})
        store.release(again.content_sha256)
        assert [r.getMessage() for r in caplog.records if "has changed since it was" in r.getMessage()] == []
        changed = put(store, KEYS[0], b"after!", provenance={"fetched_url": "http://x/a.mp4"})
    assert changed.content_sha256 == hashlib.sha256(b"after!").hexdigest()
    expected = f"its SHA-256 is {changed.content_sha256[:12]}, it was {fetched.content_sha256[:12]}"
    assert f"http://x/a.mp4 has changed since it was last fetched: {expected}" in caplog.messages


def test_a_file_of_another_size_than_it_had_is_not_used(store: DownloadStore) -> None:
    fetched = put(store, KEYS[0], b"rain")
    Path(fetched.path).write_bytes(b"ra")
    assert store.find(KEYS[0]) is None
    put(store, KEYS[0], b"rain")
    assert Path(fetched.path).read_bytes() == b"rain"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "record": {"sha": 2}}'])
def test_a_damaged_record_is_as_if_it_were_not_there(
    store: DownloadStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, KEYS[0], b"rain")
    path = store.root / "index" / KEYS[0][:2] / f"{KEYS[0]}.json"
    assert json.loads(path.read_text())["record"]["num_bytes"] == 4
    path.write_text(text)
    assert store.find(KEYS[0]) is None
    assert "is damaged and is not used" in caplog.text


def test_an_outside_file_is_used_in_place_and_never_deleted(tmp_path: Path) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_bytes(b"a" * 50)
    sha256 = hashlib.sha256(b"a" * 50).hexdigest()
    with DownloadStore(tmp_path / "store", budget_bytes=0) as store:
        added = store.add_outside(KEYS[0], mine, sha256, {"extractor": "local"})
        assert added == Fetched(str(mine), sha256, 50, 0, {"extractor": "local"})
        assert store.find(KEYS[0]) == added
        store.release(sha256)
        store.release(sha256)
        store.free_finished()
        assert store.total_bytes() == 0
        assert mine.read_bytes() == b"a" * 50
        mine.unlink()
        assert store.find(KEYS[0]) is None


def test_threads_that_want_one_key_wait_for_each_other(store: DownloadStore) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with store.only_one(KEYS[number % 2]):
            inside.append(number % 2)
            most.append(inside.count(number % 2))
            threading.Event().wait(0.005)
            inside.remove(number % 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert max(most) == 1
    assert len(most) == 24
    assert store._running == {}


def test_many_threads_add_find_and_release(tmp_path: Path) -> None:
    def content(number: int) -> bytes:
        return f"{number % 7:03d}".encode() * 100

    with DownloadStore(tmp_path, budget_bytes=900) as store:

        def work(number: int) -> None:
            key = KEYS[number % 20]
            fetched = store.find(key) or put(store, key, content(number % 20))
            assert Path(fetched.path).read_bytes() == content(number % 20)
            store.release(fetched.content_sha256)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(400)))
        assert store.total_bytes() <= 900
        assert list(store._own.glob("pins/*")) == []


PROCESS = """
import sys, time
from pathlib import Path
from pipeline.fetch.download_store import DownloadStore
store = DownloadStore(sys.argv[1], budget_bytes=1000)
"""
ADDER = (
    PROCESS
    + """
for number in range(60):
    key = f"{number:040x}"
    content = b"%03d" % (number % 9) * 100
    fetched = store.find(key)
    if fetched is None:
        with store.temp_folder() as folder:
            (folder / "m").write_bytes(content)
            fetched = store.add(key, folder / "m", ".mp4")
    assert Path(fetched.path).read_bytes() == content
    store.release(fetched.content_sha256)
store.close()
"""
)
SLEEPER = (
    PROCESS
    + """
making = store.temp_folder()
folder = making.__enter__()
(folder / "half").write_bytes(b"x" * 100)
with store.temp_folder() as other:
    (other / "m").write_bytes(b"y" * 2000)
    store.add("f" * 40, other / "m", ".mp4")
print(folder, flush=True)
time.sleep(60)
"""
)


def start(script: str, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(root)]
    project = Path(__file__).parents[3]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    processes = [start(ADDER, tmp_path) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with DownloadStore(tmp_path) as store:
        assert store.total_bytes() <= 1000
        for path in tmp_path.glob("objects/*/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_what_a_killed_process_left_is_cleaned_up_but_not_what_a_living_one_has(tmp_path: Path) -> None:
    process = start(SLEEPER, tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        half = Path(process.stdout.readline().strip()) / "half"
        assert half.read_bytes() == b"x" * 100
        with DownloadStore(tmp_path, budget_bytes=0) as living:
            assert half.exists()
            living.free_finished()
            assert objects(living) == [b"y" * 2000]
            process.send_signal(signal.SIGKILL)
            process.wait()
        with DownloadStore(tmp_path, budget_bytes=0) as after:
            assert not half.parent.parent.exists()
            assert [path.name for path in (tmp_path / "tmp").glob("*.lock")] == [f"{after._own.name}.lock"]
            assert after.find("f" * 40) is not None
            after.release(hashlib.sha256(b"y" * 2000).hexdigest())
            assert objects(after) == []
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"the download store .*file/store cannot be used: Not a directory"):
        DownloadStore(tmp_path / "file" / "store")
