"""Records of finished sources: found again, and read without reading any file over and over."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from pipeline.records import DoneRecords, Ending, Entry, SourceRecord
from pipeline.schema import Failure, Reason, Source, State
from pipeline.storage import Folder


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
