"""Source lists. The truth is in the rows that each test writes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceListError
from pipeline.schema import KEY_PATTERN, Source
from pipeline.sources.cells import key_like, parse_time
from pipeline.sources.links import canonical_url, youtube_id
from pipeline.sources.lists import (
    SourceList,
    printable,
    read_source_lists,
    read_sources,
    write_sources,
)
from tests.pipeline.sources.listed import LISTS, lines, unlisted, urls, written


def test_every_column(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "id,url,start,end,labels,caption,licence,split\n"
        'shore,https://example.org/a.mp4,1.5,00:01:02.25,sea| wind |sea,"Waves, and ""wind""",CC0,val\n',
    )
    assert read_sources(path) == SourceList(
        (
            Source(
                "shore",
                "https://example.org/a.mp4",
                1500,
                62250,
                ("sea", "wind"),
                'Waves, and "wind"',
                "CC0",
                "validation",
                f"{path}:2",
            ),
        )
    )


@pytest.mark.parametrize("name", sorted(path.name for path in LISTS.iterdir() if path.suffix != ".md"))
def test_the_lists_of_the_project_have_no_problem(name: str) -> None:
    found = read_sources(LISTS / name)
    assert found.problems == ()
    assert found.sources


def test_the_examples_are_the_same_list() -> None:
    assert unlisted(read_sources(LISTS / "example.csv")) == unlisted(read_sources(LISTS / "example.jsonl"))
    storm = read_sources(LISTS / "example.csv").sources[1]
    assert (storm.start_ms, storm.end_ms, storm.labels) == (90_000, 3_720_500, ("thunder", "rain"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "a.parquet", "A.CSV", "memory://x/a.csv"])
def test_all_formats_say_the_same(tmp_path: Path, name: str) -> None:
    rows = [
        {"url": "https://example.org/a.mp4", "start": "3", "end": "4.5", "labels": "rain|sea", "caption": "a, b"},
        {"url": "https://example.org/b.mp4", "start": None, "end": None, "labels": None, "caption": None},
    ]
    path = name if "://" in name else tmp_path / name
    kind = name.lower().rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), path)
    elif kind in ("jsonl", "ndjson"):
        written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), name)
    else:
        mark = "\t" if kind == "tsv" else ","
        text = [list(rows[0]), *([f'"{value}"' if value else "" for value in row.values()] for row in rows)]
        with fsspec.open(str(path), "w") as stream:
            stream.write("\n".join(mark.join(cells) for cells in text))
    first, second = read_sources(path).sources
    assert (first.start_ms, first.end_ms, first.labels, first.caption) == (3000, 4500, ("rain", "sea"), "a, b")
    assert (second.start_ms, second.end_ms, second.labels, second.caption) == (0, None, (), None)
    assert first.listed_at == f"{path}:{1 if kind in ('parquet', 'jsonl', 'ndjson') else 2}"


def test_typed_cells_of_parquet_and_jsonl(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [7, 8],
            "URL": ["https://example.org/a.mp4", "https://example.org/b.mp4"],
            "start": [1.25, None],
            "end": pa.array([2_000, 3_000], pa.duration("ms")),
            "label": [["rain", "sea"], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read_sources(tmp_path / "a.parquet").sources
    assert (first.source_id, first.start_ms, first.end_ms, first.labels) == ("7", 1250, 2000, ("rain", "sea"))
    assert (second.source_id, second.start_ms, second.end_ms, second.labels) == ("8", 0, 3000, ())
    path = written(
        tmp_path, '{"url": "https://example.org/a.mp4", "id": 7, "labels": ["rain", "sea"], "start": 1.25}\n', "a.jsonl"
    )
    only = read_sources(path).sources[0]
    assert (only.source_id, only.start_ms, only.labels) == ("7", 1250, ("rain", "sea"))


@pytest.mark.parametrize(
    ("written_time", "milliseconds"),
    [
        ("12", 12_000),
        (" 12.5 ", 12_500),
        (".5", 500),
        ("1E+2", 100_000),
        ("0.0004", 0),
        ("1:30", 90_000),
        ("90:00", 5_400_000),
        ("01:02:03.004", 3_723_004),
        (3, 3000),
        (0.0015, 2),
        ("", None),
        (None, None),
    ],
)
def test_times(written_time: object, milliseconds: int | None) -> None:
    assert parse_time(written_time) == milliseconds


@pytest.mark.parametrize(
    ("written_time", "why"),
    [
        ("-5", "is negative"),
        (-5, "is negative"),
        ("nan", "is not a time"),
        (float("nan"), "is not a number"),
        (float("inf"), "beyond 1000 hours"),
        ("9" * 400, "beyond 1000 hours"),
        ("3600001", "beyond 1000 hours"),
        ("1:75", "is not a time"),
        ("1:75:00", "is not a time"),
        ("12,5", "is not a time"),
        ("١٢", "is not a time"),
        (True, "is not a time"),
        ([1], "is not a time"),
    ],
)
def test_what_is_no_time(written_time: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_time(written_time)


BAD_ROWS = {
    "dQw4w9WgXcQ,,,": "bare YouTube id, not a URL: write https://www.youtube.com/watch?v=dQw4w9WgXcQ",
    "www.example.org/a.mp4,,,": "no scheme: write https://www.example.org/a.mp4",
    "youtu.be/dQw4w9WgXcQ,,,": "no scheme: write https://youtu.be/dQw4w9WgXcQ",
    "a.mp4,,,": "put a local file into the column 'path'",
    "htps://example.org/a.mp4,,,": "unknown scheme htps:// in 'htps://example.org/a.mp4'; did you mean https://?",
    "https://,,,": "has no host",
    "https://[::1/a.mp4,,,": "is not a URL (Invalid IPv6 URL)",
    "https://example.org:99999/a.mp4,,,": "is not a URL (Port out of range 0-65535)",
    "https://example.org/a b.mp4,,,": "write a space as %20",
    "~/a.mp4,,,": "put a local file into the column 'path'",
    "#NAME?,,,": "url: a spreadsheet wrote '#NAME?' here",
    ",1,2,": "no url (or path)",
    "https://example.org/a.mp4,5,5,": "the end (5) is not after the start (5)",
    "https://example.org/a.mp4,0.0001,0.0002,": "is not after the start",
    "https://example.org/a.mp4,-1,x,": "start: '-1' is negative; end: 'x' is not a time",
    "https://example.org/a.mp4,nan,,": "start: 'nan' is not a time",
    "https://example.org/a.mp4,,,dev": "split: 'dev' is none of train, validation, test",
    "https://example.org/a.mp4,1,2": "3 cells, but the header has 4",
    "https://example.org/a.mp4?x=1,2,3,4,test": "5 cells, but the header has 4: put a cell that contains ',' in double",
    'https://example.org/a.mp4,1,2,"test" x': "the quotes do not match",
    "https://example.org/\0.mp4,,,": "the row contains a NUL byte",
    "https://example.org/" + "x" * 200_000 + ",,,": "the row is longer than 131,072 characters",
}


def test_each_bad_row_costs_itself(tmp_path: Path) -> None:
    good = [f"https://example.org/{number}.mp4,,," for number in range(len(BAD_ROWS) + 1)]
    rows = [row for pair in zip(good, BAD_ROWS, strict=False) for row in pair]
    found = read_sources(written(tmp_path, "\n".join(["url,start,end,split", *rows, good[-1]])))
    assert urls(found) == [f"{number}.mp4" for number in range(len(good))]
    assert lines(found) == list(range(3, 3 + 2 * len(BAD_ROWS), 2))
    for problem, (row, message) in zip(found.problems, BAD_ROWS.items(), strict=True):
        assert message in problem.message
        assert problem.text == printable(row)
        assert len(problem.text) <= 160
        assert problem.text.isprintable()
    assert found.num_rows == len(good) + len(BAD_ROWS)
    assert len({problem.source_id for problem in found.problems}) == len(BAD_ROWS)
    assert all(KEY_PATTERN.fullmatch(problem.source_id) for problem in found.problems)


def test_paths(tmp_path: Path) -> None:
    names = [
        "a b.mp4",
        "it's.mp4",
        'say "rain".mp4',
        "two\nlines.mp4",
        "-rf.mp4",
        "x" * 300 + ".mp4",
        "../up.mp4",
        "#1.mp4",
    ]
    names += ["dQw4w9WgXcQ", "日本.mp4", "a,b.mp4", "..", "./~.mp4"]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    found = read_sources(written(tmp_path, "path,split\n" + "".join(f"{name},\n" for name in [*quoted, "~/x.mp4"])))
    assert [source.url for source in found.sources] == [f"{tmp_path}/{name.removeprefix('./')}" for name in names]
    assert len({source.source_id for source in found.sources}) == len(names)
    assert not any(source.source_id.startswith("-") for source in found.sources)
    assert "'~' is not expanded" in found.problems[0].message
    rows = "".join(json.dumps({"path": name}) + "\n" for name in names)
    assert unlisted(read_sources(written(tmp_path, rows, "list.jsonl"))) == unlisted(found)


def test_a_path_may_be_a_url_and_a_url_an_explicit_path(tmp_path: Path) -> None:
    text = "url,path\n,s3://bucket/a b.mp4\n./a.mp4,\n/data/b.mp4,\nfile:///data/b.mp4,\nhttps://example.org/x,y.mp4\n"
    found = read_sources(written(tmp_path, text))
    assert [source.url for source in found.sources] == ["s3://bucket/a b.mp4", f"{tmp_path}/a.mp4", "/data/b.mp4"]
    assert found.merged == 1
    assert found.problems[0].message == "both a url and a path: leave one empty"


def test_an_id_comes_from_url_and_span_alone(tmp_path: Path) -> None:
    text = "url,start\nhttps://example.org/Rain%20drops.final.mp4?x=1,\nhttps://youtu.be/-_3dE5f6G7h,3\nhttps://example.org/,\n"
    first = read_sources(written(tmp_path, text))
    assert [source.source_id.rpartition("-")[0] for source in first.sources] == [
        "Rain_drops_final",
        "yt--_3dE5f6G7h",
        "example",
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    second = read_sources(written(elsewhere, "label,url,start\n,https://m.youtube.com/watch?v=-_3dE5f6G7h,0:03\n"))
    assert second.sources[0].source_id == first.sources[1].source_id
    paths = [read_sources(written(folder, "path\nclips/a.mp4\n")).sources[0] for folder in (tmp_path, elsewhere)]
    assert paths[0].source_id == paths[1].source_id
    assert paths[0].url != paths[1].url


def test_the_same_relative_path_of_two_folders_is_two_sources(tmp_path: Path) -> None:
    lists = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lists.append(written(tmp_path / name, "path,split\na.mp4,\n"))
    found = read_source_lists(lists)
    assert [source.url for source in found.sources] == [f"{tmp_path}/one/a.mp4", f"{tmp_path}/two/a.mp4"]
    assert len({source.source_id for source in found.sources}) == 2


def test_given_ids_are_made_to_fit_and_stay_apart(tmp_path: Path) -> None:
    given = ["a.b", "a/b", "a_b", "日本", "x" * 97, "-dash", "../../etc"]
    rows = "".join(f"{name},https://example.org/{at}.mp4\n" for at, name in enumerate(given))
    ids = [source.source_id for source in read_sources(written(tmp_path, "id,url\n" + rows)).sources]
    assert ids == [key_like(name) for name in given]
    assert len(set(ids)) == len(given)
    assert all(KEY_PATTERN.fullmatch(name) for name in ids)
    assert ids[2] == "a_b"
    assert ids[5] == "-dash"
    assert ids[0].startswith("a_b-")


def test_an_id_for_two_sources_is_a_problem_of_the_later(tmp_path: Path) -> None:
    text = "id,url,start\nx,https://example.org/a.mp4,\nx,https://example.org/a.mp4,5\nx,https://example.org/a.mp4,\n"
    found = read_sources(written(tmp_path, text))
    assert (len(found.sources), lines(found), found.merged) == (1, [3], 1)
    assert "id 'x' already belongs to https://example.org/a.mp4" in found.problems[0].message


SAME = [
    ["https://example.org/a.mp4", "HTTPS://Example.ORG:443/a.mp4#t=3", "https://example.org:443/a.mp4"],
    ["http://example.org", "http://example.org:80/", "HTTP://EXAMPLE.org/#top"],
    ["http://u:p@[2001:DB8::1]:80/a", "http://u:p@[2001:db8::1]/a"],
    [
        "https://www.youtube.com/watch?v=AbCdEf-_123",
        "http://youtube.com/watch?v=AbCdEf-_123&t=90s",
        "https://m.youtube.com/watch?list=PL1&v=AbCdEf-_123",
        "https://music.youtube.com/watch?v=AbCdEf-_123",
        "https://youtu.be/AbCdEf-_123?si=xyz",
        "https://www.youtube.com/shorts/AbCdEf-_123",
        "https://www.youtube-nocookie.com/embed/AbCdEf-_123",
        "https://WWW.YouTube.com/live/AbCdEf-_123#x",
    ],
]
DIFFERENT = [
    "http://example.org/a.mp4",
    "https://example.org/A.mp4",
    "https://example.org/a.mp4?x=1",
    "https://example.org:8443/a.mp4",
    "https://example.org/a.mp4/",
    "https://www.youtube.com/watch?v=AbCdEf-_12",
    "https://notyoutube.com/watch?v=AbCdEf-_123",
    "https://www.youtube.com/playlist?list=AbCdEf-_123",
    "s3://bucket/a#b",
    "S3://bucket/a",
]


def test_what_is_the_same_link() -> None:
    for same in SAME:
        assert {canonical_url(url) for url in same} == {canonical_url(same[0])}
        assert canonical_url(canonical_url(same[0])) == canonical_url(same[0])
    every = [*(same[0] for same in SAME), *DIFFERENT]
    assert len({canonical_url(url) for url in every}) == len(every)
    assert [youtube_id(url) for url in SAME[3]] == ["AbCdEf-_123"] * len(SAME[3])
    assert [youtube_id(url) for url in DIFFERENT] == [None] * len(DIFFERENT)


def test_duplicates_are_united(tmp_path: Path) -> None:
    text = (
        "url,start,end,labels,caption,licence,split\n"
        "https://youtu.be/AbCdEf-_123,10,20,rain,,,train\n"
        "https://www.youtube.com/watch?v=AbCdEf-_123,0:10,20.0,wind|rain,first,CC0,test\n"
        "https://www.youtube.com/watch?v=AbCdEf-_123,10,21,rain,other span,,\n"
        "https://www.youtube.com/shorts/AbCdEf-_123,10,20,sea,second,CC-BY,\n"
    )
    found = read_sources(written(tmp_path, text))
    assert found.merged == 2
    assert len(found.sources) == 2
    first = found.sources[0]
    assert first.url == "https://youtu.be/AbCdEf-_123"
    assert (first.labels, first.caption, first.licence, first.split) == (
        ("rain", "wind", "sea"),
        "first",
        "CC0",
        "train",
    )
    assert found.num_rows == 4


def test_lists_are_merged_across(tmp_path: Path) -> None:
    one = written(tmp_path, "url,label\nhttps://example.org/a.mp4,rain\nnope,rain\n", "one.csv")
    two = written(
        tmp_path,
        '{"url": "https://EXAMPLE.org/a.mp4", "label": "sea"}\n{"url": "https://example.org/b.mp4"}',
        "two.jsonl",
    )
    bad = written(tmp_path, "url\nnope\n", "bad.csv")
    found = read_source_lists([one, str(two), bad, one])
    assert [(source.labels, source.listed_at) for source in found.sources] == [
        (("rain", "sea"), f"{one}:2"),
        ((), f"{two}:2"),
    ]
    assert [problem.listed_at for problem in found.problems] == [f"{one}:3", f"{bad}:2", f"{one}:3"]
    assert (found.merged, found.num_rows) == (2, 7)


def test_written_lists_are_read_back_the_same(tmp_path: Path) -> None:
    sources = (
        Source("a", "https://example.org/a.mp4", 1, 1001, ("rain", "sea, waves"), 'a "b", c\nd\r\ne', "CC0", "train"),
        Source("b", '/data/two\nlines, "x".mp4', 0, None),
        Source("c", "s3://bucket/#c.mp4", 3_723_004, None, (), "# no comment", None, "validation"),
    )
    write_sources(sources, tmp_path / "new" / "list.csv")
    assert tuple(unlisted(read_sources(tmp_path / "new" / "list.csv"))) == sources
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["list.csv"]
    write_sources(sources[:1], tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_text().splitlines()[0] == "id,url,start,end,labels,caption,licence,split"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SourceListError, match=r"label with '\|'"):
        write_sources([Source("a", "https://example.org/a", labels=("x|y",))], tmp_path / "a.csv")
    with pytest.raises(SourceListError, match=r"is written as \.csv"):
        write_sources([], tmp_path / "a.parquet")
    (tmp_path / "file").touch()
    with pytest.raises(SourceListError, match="cannot be written"):
        write_sources([], tmp_path / "file" / "a.csv")


def test_reading_a_list_costs_in_proportion_to_its_length(tmp_path: Path) -> None:
    rows = [f'https://www.youtube.com/watch?v={number:011d},{number % 99},120,rain,"a, b"' for number in range(20_000)]
    cpu_seconds = []
    for length in (2_000, 20_000):
        path = written(tmp_path, "\n".join(["url,start,end,label,caption", *rows[:length]]))
        started = time.process_time()
        found = read_sources(path)
        cpu_seconds.append(time.process_time() - started)
        assert len(found.sources) == length
    assert (
        cpu_seconds[1] < 40 * cpu_seconds[0]
    )  # ten times the rows; comparing each with each would cost a hundred times as much
