"""Source lists. The truth is in the rows that each test writes."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
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

LISTS = Path(__file__).parents[3] / "manifests" / "sources"


def written(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def urls(found: SourceList) -> list[str]:
    return [source.url.rpartition("/")[2] for source in found.sources]


def lines(found: SourceList) -> list[int]:
    return [int(problem.listed_at.rpartition(":")[2]) for problem in found.problems]


def unlisted(found: SourceList) -> list[Source]:
    return [replace(source, listed_at=None) for source in found.sources]


# --- what a row means -------------------------------------------------------------------------------------------------


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


# --- ids and duplicates -----------------------------------------------------------------------------------------------


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


# --- files that are not as they should be -----------------------------------------------------------------------------


def test_marks_line_ends_comments_and_blanks(tmp_path: Path) -> None:
    rows = ["\ufeff# by hand", "", " URL , Label,,", "# x", "https://example.org/a.mp4, rain ,,", ",,,", "  "]
    found = read_sources(written(tmp_path, "\r\n".join([*rows, "https://example.org/b.mp4,sea"])))
    assert [(source.labels, source.listed_at.rpartition(":")[2]) for source in found.sources if source.listed_at] == [
        (("rain",), "5"),
        (("sea",), "8"),
    ]
    assert found.problems == ()
    old_mac = read_sources(written(tmp_path, "url\rhttps://example.org/a.mp4\rhttps://example.org/b.mp4\r"))
    assert urls(old_mac) == ["a.mp4", "b.mp4"]


def test_quoted_line_breaks_count_as_lines(tmp_path: Path) -> None:
    text = (
        'url,caption\nhttps://example.org/a.mp4,"one\ntwo\r\n\n# three"\nnope,x\nhttps://example.org/b.mp4,"6"" pipe"\n'
    )
    found = read_sources(written(tmp_path, text + 'https://example.org/c.mp4,6" pipe\nhttps://example.org/d.mp4,x'))
    assert [source.caption for source in found.sources] == ["one\ntwo\r\n\n# three", '6" pipe', '6" pipe', "x"]
    assert lines(found) == [6]


@pytest.mark.parametrize(
    ("rows", "good", "bad"),
    [
        ('a,"never closed|b,x|c,"fine, ok"|d,x', "b c d", [2]),
        ('a,"never closed|b,x|c,x"|d,x', "b c d", [2]),
        ('a,"never closed|b,""|c,x', "b c", [2]),
        ('a,"one|b,"two|lines"|c,x', "b c", [2]),
        ('a,"one|two",x,y|b,x', "b", [2]),
        ('a,"x"y|b,x|c,"never closed', "b", [2, 4]),
        ('a,x|b,"', "a", [3]),
    ],
)
def test_a_broken_quote_costs_its_row_alone(tmp_path: Path, rows: str, good: str, bad: list[int]) -> None:
    text = [f"https://example.org/{row}" if row[1:2] == "," else row for row in rows.split("|")]
    found = read_sources(written(tmp_path, "\n".join(["url,caption", *text])))
    assert urls(found) == good.split()
    assert lines(found) == bad


def test_a_quote_left_open_at_the_start_of_a_long_list(tmp_path: Path) -> None:
    rows = [f"https://example.org/{number}.mp4,x" for number in range(5000)]
    rows[1] = 'https://example.org/1.mp4,"x'
    found = read_sources(written(tmp_path, "\n".join(["url,caption", *rows])))
    assert (len(found.sources), lines(found)) == (4999, [3])


def test_bytes_that_are_not_utf8_cost_their_row(tmp_path: Path) -> None:
    text = b"url,caption\nhttps://example.org/a.mp4,caf\xe9\nhttps://example.org/b.mp4,caf\xc3\xa9\n"
    found = read_sources(written(tmp_path, text))
    assert [source.caption for source in found.sources] == ["café"]
    assert found.problems[0].message == "byte 0xE9 at character 30 is not UTF-8: save the list as UTF-8"
    assert found.problems[0].text == "https://example.org/a.mp4,caf\\udce9"


BAD_JSON = {
    '{"url": "https://example.org/a.mp4"': "is not JSON: Expecting ',' delimiter at character 36",
    "[1]": "is not a JSON object: write one {...} per line",
    "null": "is not a JSON object",
    "[" * 60_000: "is not JSON that can be read",
    '{"url": ' + "9" * 5000 + "}": "is not JSON that can be read",
    '{"urll": "https://example.org/a.mp4"}': "unknown column 'urll': did you mean 'url'?",
    '{"url": "https://example.org/a.mp4", "label": "a", "labels": "b"}': "column 'labels' twice",
    '{"url": 5}': "url: 5 is not text",
    '{"url": ["https://example.org/a.mp4"]}': "is not text",
    '{"path": {"a": 1}}': "path: {'a': 1} is not text",
    '{"url": "https://example.org/a.mp4", "start": NaN}': "start: nan is not a number",
    '{"url": "https://example.org/a.mp4", "end": true}': "end: True is not a time",
    '{"url": "https://example.org/a.mp4", "labels": [1]}': "labels: 1 is not text",
    '{"url": "https://example.org/a.mp4", "labels": {"a": 1}}': "labels: {'a': 1} is not text",
    '{"url": "https://example.org/a.mp4", "labels": ["a|b"]}': "labels: 'a|b' contains '|'",
    '{"url": "https://example.org/a.mp4", "id": true}': "id: True is not text",
    '{"url": "https://example.org/a.mp4", "caption": "\\u0000"}': "caption: contains a NUL character",
    '{"url": "https://example.org/a.mp4", "caption": "\\ud83d"}': "half a surrogate pair",
    '{"path": ""}': "no url (or path)",
    "{}": "no url (or path)",
}


def test_each_bad_json_line_costs_itself(tmp_path: Path) -> None:
    rows = ['{"url": "https://example.org/1.mp4"}', *BAD_JSON, "", '{"url": "https://example.org/\\ud83d\\ude00.mp4"}']
    found = read_sources(written(tmp_path, "\n".join(rows), "a.jsonl"))
    assert urls(found) == ["1.mp4", "😀.mp4"]
    assert lines(found) == list(range(2, 2 + len(BAD_JSON)))
    for problem, message in zip(found.problems, BAD_JSON.values(), strict=True):
        assert message in problem.message


def test_a_parquet_cell_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"https://example.org/a.mp4", b"\xff", b"https://example.org/b.mp4"])
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"url": text}), tmp_path / "a.parquet")
    found = read_sources(tmp_path / "a.parquet")
    assert urls(found) == ["a.mp4", "b.mp4"]
    assert [(problem.listed_at, problem.message) for problem in found.problems] == [
        (f"{tmp_path / 'a.parquet'}:2", "a cell is not UTF-8")
    ]


HEADERS = {
    "url,lable\nhttps://example.org/a.mp4,x": "list.csv:1: unknown column 'lable': did you mean 'label'?",
    "url,resolution\n": "list.csv:1: unknown column 'resolution': the columns are id, url, path,",
    "id,label\nx,y": "list.csv:1: no column 'url' (or 'path'): id, label",
    "url,label,labels\n": "list.csv:1: column 'labels' twice",
    "url;label\nhttps://example.org/a.mp4;x": "list.csv:1: cells are separated by ',' here, but the header has ';'",
    '# x\n\nurl,"label\n': "list.csv:3: the header cannot be read: a quote is never closed",
    "https://example.org/a.mp4\n": "unknown column 'https://example.org/a.mp4'",
    "": "list.csv: is empty: the first line must name the columns",
    "# only\n\n": "list.csv: is empty: the first line must name the columns",
    "url\n": "list.csv: there are no rows",
    "url\nnope\n\nwww.x\n": "list.csv: none of the 2 rows can be used:",
}


@pytest.mark.parametrize("text", HEADERS)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceListError) as raised:
        read_sources(written(tmp_path, text))
    assert HEADERS[text] in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"link": ["https://example.org/a.mp4"]}), table)
    broken = written(tmp_path, table.read_bytes()[:-20], "b.parquet")
    utf16 = written(tmp_path, "url\nhttps://example.org/a.mp4\n".encode("utf-16"))
    (tmp_path / "folder.csv").mkdir()
    for path, message in {
        utf16: "is UTF-16: save it as UTF-8",
        table: "a.parquet: unknown column 'link'",
        broken: "b.parquet: is not a readable parquet file",
        tmp_path / "none.csv": "none.csv: there is no such file",
        tmp_path / "folder.csv": "cannot be read",
        tmp_path
        / "list.txt": "'.txt' is not a known format: use a name that ends in .csv, .tsv, .jsonl, .ndjson, .parquet",
        "nope://x/a.csv": "nope://x/a.csv: unknown protocol nope://",
        "memory://nothing/a.csv": "there is no such file",
        "http://127.0.0.1:1/a.csv": "cannot be read",
    }.items():
        with pytest.raises(SourceListError) as raised:
            read_sources(path)
        assert message in str(raised.value)


def test_all_lists_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    bad = written(tmp_path, "url,lable,x\n", "bad.csv")
    with pytest.raises(SourceListError) as raised:
        read_source_lists([bad, tmp_path / "none.csv", LISTS / "example.csv"])
    assert len(raised.value.problems) == 2
    assert "unknown column 'lable'" in raised.value.problems[0]
    assert "there is no such file" in raised.value.problems[1]


def test_no_more_than_fifty_problems_are_shown(tmp_path: Path) -> None:
    with pytest.raises(SourceListError) as raised:
        read_sources(written(tmp_path, "url\n" + "nope\n" * 60))
    assert "none of the 60 rows can be used" in str(raised.value)
    assert len(raised.value.problems) == 51
    assert raised.value.problems[-1] == "and 10 more rows with problems"


@pytest.mark.parametrize("name", ["example.csv", "example.jsonl", "a.parquet"])
def test_whatever_is_damaged_nothing_else_is_raised(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    if name.endswith("parquet"):
        columns = {"url": [f"https://example.org/{at}.mp4" for at in range(9)], "start": list(range(9))}
        pq.write_table(pa.table(columns), tmp_path / "whole.parquet", compression="none")
        whole = (tmp_path / "whole.parquet").read_bytes()
    else:
        whole = (LISTS / name).read_bytes()
    usable = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            at, length = rng.randrange(len(damaged)), rng.randrange(4)
            damaged[at : at + length] = rng.choice([b'"', b"\n", b",", b"\0", b"\xff", b"{", b"", rng.randbytes(3)])
        try:
            found = read_sources(written(tmp_path, bytes(damaged), name))
        except SourceListError:
            continue
        usable += 1
        assert len({source.source_id for source in found.sources}) == len(found.sources)
    assert usable >= 5


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_list_behind_a_link(tmp_path: Path, served: str) -> None:
    written(tmp_path, "path,label\nclips/a b.mp4,rain\n/data/x.mp4,sea\n")
    pq.write_table(pa.table({"path": ["a.mp4"]}), tmp_path / "a.parquet")
    found = read_sources(f"{served}/list.csv?token=1")
    assert [source.url for source in found.sources] == [f"{served}/clips/a%20b.mp4", "/data/x.mp4"]
    assert read_sources(f"{served}/a.parquet").sources[0].url == f"{served}/a.mp4"
    with pytest.raises(SourceListError, match="404"):
        read_sources(f"{served}/none.csv")


# --- writing, and size ------------------------------------------------------------------------------------------------


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


def test_a_long_list_is_read_in_time(tmp_path: Path) -> None:
    rows = [f'https://www.youtube.com/watch?v={number:011d},{number % 99},120,rain,"a, b"' for number in range(20_000)]
    path = written(tmp_path, "\n".join(["url,start,end,label,caption", *rows]))
    started = time.process_time()
    found = read_sources(path)
    assert len(found.sources) == 20_000
    assert time.process_time() - started < 2  # 200,000 rows in less than 20 s, on a slow machine; 4 s were measured
