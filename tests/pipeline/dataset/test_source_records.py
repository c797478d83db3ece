"""Records of finished sources: found again, and read without reading any file over and over."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.source_records import DoneRecords, Ending, Entry, SourceRecord
from pipeline.errors import DamagedStateError
from pipeline.runtime.folder import Folder
from pipeline.schema import Failure, Reason, Source, State


class CountingFolder(Folder):
    """Counts how often each file is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: Counter[str] = Counter()

    def read_bytes(self, name: str) -> bytes:
        self.reads[name] += 1
        return super().read_bytes(name)


def source(number: int) -> Source:
    return Source(f"s{number:02d}", f"https://example.org/{number}.mp4", caption="one\u2028two\nthree")


def rejected(number: int) -> SourceRecord:
    return SourceRecord(source(number), State.REJECTED, Reason.NO_AUDIO, detail=f"number {number}")


def test_files_that_take_turns_are_read_once(tmp_path: Path) -> None:
    folder = CountingFolder(tmp_path)
    records = DoneRecords(folder, "done")
    for batch_id, numbers in (("even", range(0, 20, 2)), ("odd", range(1, 20, 2))):
        for number in numbers:
            records.put(rejected(number))
        records.close_batch(batch_id, [source(number).source_id for number in numbers])
    records.put(rejected(20))
    files = {source_id: entry[0] for source_id, entry in sorted(records.index().items())}
    folder.reads.clear()
    assert list(records.read(files)) == [rejected(number) for number in range(21)]
    assert folder.reads == {"done/even.jsonl": 1, "done/odd.jsonl": 1, "done/open/s20.json": 1}


def test_a_final_record_goes_before_one_that_may_end_otherwise(tmp_path: Path) -> None:
    records = DoneRecords(Folder(tmp_path), "done")
    failure = Failure("fetch", "timed_out", "no answer", transient=True)
    for batch_id, record in (("a", rejected(1)), ("b", SourceRecord(source(1), State.FAILED, failure=failure))):
        records.put(record)
        records.close_batch(batch_id, ["s01"])
    assert records.index()["s01"] == Entry("a.jsonl", False, Ending.WHOLE)
    assert list(records.read({"s01": "a.jsonl"})) == [rejected(1)]


def test_what_was_tried_again_goes_before_a_failure_and_what_is_listed_now_before_all(tmp_path: Path) -> None:
    records = DoneRecords(Folder(tmp_path), "done")
    gone = Failure("fetch", "http_404", "the server answered 404 Not Found")
    failed = SourceRecord(source(1), State.FAILED, failure=gone)
    relabelled = replace(source(1), labels=("rain",))
    for batch_id, record in (("b", rejected(1)), ("c", failed), ("a", replace(failed, source=relabelled))):
        records.put(record)
        records.close_batch(batch_id, ["s01"])
    assert records.index([source(1)])["s01"] == Entry("b.jsonl", True, Ending.WHOLE)
    assert records.index([relabelled])["s01"] == Entry("a.jsonl", True, Ending.FAILED)


def batch(folder: Path, name: str, numbers: range) -> Path:
    records = DoneRecords(Folder(folder), "done")
    for number in numbers:
        records.put(rejected(number))
    records.close_batch(name, [source(number).source_id for number in numbers])
    return folder / "done" / f"{name}.jsonl"


@pytest.mark.parametrize(
    ("damage", "num_left"),
    [
        (lambda content: content[: len(content) // 2], 1),
        (lambda content: content[:-1], 4),
        (lambda content: b"", 0),
        (lambda content: bytes(len(content)), 0),
        (lambda content: content[:20], 0),
        (lambda content: b"[]" + content[2:], 4),
        (lambda content: b"\n" + content, 4),
        (lambda content: content[content.index(b"\n") + 1 :], 4),
        (lambda content: b"\n".join(content.split(b"\n")[:3]) + b"\n", 2),
    ],
)
def test_of_a_damaged_file_what_can_be_read_is_kept(
    tmp_path: Path, damage: Callable[[bytes], bytes], num_left: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = batch(tmp_path, "a", range(4))
    batch(tmp_path, "b", range(4, 6))
    path.write_bytes(damage(path.read_bytes()))
    records = DoneRecords(Folder(tmp_path), "done")
    expected = [f"s{number:02d}" for number in (*range(num_left), 4, 5)]
    files = {source_id: entry.name for source_id, entry in sorted(records.index().items())}
    assert list(files) == expected
    assert f"{path} is damaged" in caplog.text
    assert [record.source.source_id for record in records.read(files)] == expected
    caplog.clear()
    assert sorted(records.index()) == expected
    assert caplog.text == ""  # it was written anew


def test_damage_behind_a_whole_first_line_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = batch(tmp_path, "a", range(3))
    content = path.read_bytes()
    place = content.index(b'"number 1"')
    path.write_bytes(content[:place] + bytes(10) + content[place + 10 :])
    records = DoneRecords(Folder(tmp_path), "done")
    files = {source_id: entry.name for source_id, entry in sorted(records.index().items())}
    with pytest.raises(DamagedStateError, match=r"done/a\.jsonl cannot be read") as caught:
        list(records.read(files))
    assert caught.value.source_ids == {"s01"}
    records.repair()
    assert sorted(records.index()) == ["s00", "s02"]


def test_records_of_another_version_are_passed_over(tmp_path: Path) -> None:
    path = batch(tmp_path, "a", range(2))
    header, *lines = path.read_bytes().splitlines(keepends=True)
    earlier = json.dumps({"sources": json.loads(header)["sources"]}).encode() + b"\n"
    path.write_bytes(earlier + b"".join(lines))
    assert DoneRecords(Folder(tmp_path), "done").index() == {}
    assert path.read_bytes().startswith(earlier)


def test_forgotten_sources_have_no_record_anywhere(tmp_path: Path) -> None:
    batch(tmp_path, "a", range(3))
    batch(tmp_path, "b", range(2, 4))
    batch(tmp_path, "c", range(2, 3))
    records = DoneRecords(Folder(tmp_path), "done")
    records.put(rejected(5))
    records.forget({"s02", "s05"})
    assert sorted(records.index()) == ["s00", "s01", "s03"]
    assert sorted(path.name for path in (tmp_path / "done").rglob("*.json*")) == ["a.jsonl", "b.jsonl"]


def test_a_record_in_the_place_of_anothers_is_not_taken_for_it(tmp_path: Path) -> None:
    records = DoneRecords(Folder(tmp_path), "done")
    records.put(rejected(1))
    records.put(rejected(2))
    first, second = (tmp_path / "done" / "open" / f"s{number:02d}.json" for number in (1, 2))
    content = first.read_bytes()
    second.replace(first)
    second.write_bytes(content)
    assert records.index() == {}
    records.put(rejected(1))
    assert list(records.index()) == ["s01"]
    (tmp_path / "done" / "open" / "copy.json").write_bytes(first.read_bytes())
    assert records.index()["s01"].name == "open/s01.json"


def test_records_of_another_recipe_are_passed_over_also_where_damage_is_repaired(tmp_path: Path) -> None:
    records = DoneRecords(Folder(tmp_path), "done/recipe")
    for number in (1, 2):
        records.put(rejected(number))
    records.close_batch("batch", ["s01"])
    (tmp_path / "done" / "recipe").rename(tmp_path / "done" / "other")
    moved = DoneRecords(Folder(tmp_path), "done/other")
    assert moved.index() == {}
    moved.repair()
    assert moved.index() == {}
    (tmp_path / "done" / "other").rename(tmp_path / "done" / "recipe")
    assert sorted(records.index()) == ["s01", "s02"]


def test_records_of_another_version_stay_passed_over_where_damage_is_repaired(tmp_path: Path) -> None:
    records = DoneRecords(Folder(tmp_path), "done")
    records.put(rejected(1))
    records.close_batch("batch", ["s01"])
    path = tmp_path / "done" / "batch.jsonl"
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([json.dumps({**json.loads(header), "version": 1}).encode() + b"\n", *lines]))
    records.repair()
    assert records.index() == {}
