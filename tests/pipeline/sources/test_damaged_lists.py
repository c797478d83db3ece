"""Source lists that are not as they should be: a bad row costs itself, and a list that cannot be used says why."""

from __future__ import annotations

import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceListError
from pipeline.sources.lists import (
    read_source_lists,
    read_sources,
)
from tests.pipeline.sources.listed import LISTS, lines, urls, written


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
