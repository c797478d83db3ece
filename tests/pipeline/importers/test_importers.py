"""Published lists turned into source lists. The rows are made up, in the shapes in which the lists are published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import SourceListError
from pipeline.importers.__main__ import main
from pipeline.importers.audioset import Ontology, read_ontology, split_of
from pipeline.importers.classes import choose_classes
from pipeline.importers.defaults import AUDIOSET_EXCLUDE, AUDIOSET_NATURE, VGGSOUND_NATURE
from pipeline.importers.landscape import times_in_link
from pipeline.importers.published import Imported, import_audioset, import_landscape, import_vggsound
from pipeline.schema import Source
from pipeline.sources.lists import read_sources

WATCH = "https://www.youtube.com/watch?v="


def written(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(imported: Imported) -> list[tuple[str, int, int | None, tuple[str, ...], str | None]]:
    return [
        (source.url.removeprefix(WATCH), source.start_ms, source.end_ms, source.labels, source.split)
        for source in imported.sources.sources
    ]


def problems(imported: Imported) -> list[tuple[int, str]]:
    return [(int(problem.listed_at.rpartition(":")[2]), problem.message) for problem in imported.sources.problems]


# --- classes by name --------------------------------------------------------------------------------------------------

CLASSES = [
    "Wind",
    "Wind noise (microphone)",
    "Waves, surf",
    "Ocean",
    "Speech",
    "female speech, woman speaking",
    "sea_waves",
]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["wind"], {"Wind"}),
        (["WIND*"], {"Wind", "Wind noise (microphone)"}),
        (["waves, surf"], {"Waves, surf"}),
        (["Waves,surf"], {"Waves, surf"}),
        (["ocean,Waves, surf,wind"], {"Ocean", "Waves, surf", "Wind"}),
        (["Female speech, woman speaking,Ocean"], {"female speech, woman speaking", "Ocean"}),
        (["*speech*", "o?ean"], {"Speech", "female speech, woman speaking", "Ocean"}),
        (["sea waves"], {"sea_waves"}),
        (["wind noise (microphone)"], {"Wind noise (microphone)"}),
        (["", " , "], set()),
        ([], set()),
    ],
)
def test_classes_are_chosen_by_name(wanted: list[str], chosen: set[str]) -> None:
    assert choose_classes(wanted, CLASSES) == chosen


def test_an_unknown_class_is_an_error_with_the_nearest() -> None:
    with pytest.raises(SourceListError) as raised:
        choose_classes(["ocaen,wind", "surf", "xyzzy*"], CLASSES)
    assert str(raised.value).splitlines() == [
        "no class 'ocaen': did you mean 'Ocean'?",
        "no class 'surf': did you mean 'Waves, surf'?",
        "no class 'xyzzy*': no class is similar (whole names are compared: use *word* to find a word)",
    ]
    assert choose_classes(["ocaen,wind"], CLASSES, missing_ok=True) == {"Wind"}


# --- VGGSound ---------------------------------------------------------------------------------------------------------

VGGSOUND = """\
---a-b_cD3E,1,people marching,test
--0AAAAAAAA,30,thunder,train
--1AAAAAAAA,0,"female speech, woman speaking",train
--2AAAAAAAA,242,ocean burbling,test
--0AAAAAAAA,30,raining,train
#NAME?,5,thunder,train
--3AAAAAAAA,5,thunder,train,more
--4AAAAAAAA,soon,thunder,test
--5AAAAAAAA,5,thunder,"test
"""


def test_vggsound(tmp_path: Path) -> None:
    imported = import_vggsound(written(tmp_path, VGGSOUND), classes=["thunder,ocean*", "raining"])
    assert rows(imported) == [
        ("--0AAAAAAAA", 30_000, 40_000, ("thunder", "raining"), "train"),
        ("--2AAAAAAAA", 242_000, 252_000, ("ocean burbling",), "test"),
    ]
    assert (imported.sources.merged, imported.num_left_out) == (1, 2)
    assert problems(imported) == [
        (6, "'#NAME?' is not a YouTube id (11 letters, digits, '_', '-'): a spreadsheet has replaced it"),
        (7, "5 cells, not the 4 of VGGSound (YouTube id, start, label, split)"),
        (8, "start: 'soon' is not a time: write seconds (12.5) or [HH:]MM:SS"),
        (9, "a quote is never closed"),
    ]
    assert imported.sources.num_rows + imported.num_left_out == len(VGGSOUND.splitlines())


def test_vggsound_with_a_header_a_split_and_what_to_leave_out(tmp_path: Path) -> None:
    path = written(tmp_path, "YouTube ID,start seconds,label,train/test split\n" + VGGSOUND)
    imported = import_vggsound(path, classes=["*"], exclude=["*speech*,thunder"], split="test")
    assert [row[0] for row in rows(imported)] == ["---a-b_cD3E", "--2AAAAAAAA"]
    assert imported.num_left_out == 5


def test_vggsound_nature_is_the_default(tmp_path: Path) -> None:
    every = "".join(f"{number:011d},0,{name},train\n" for number, name in enumerate(VGGSOUND_NATURE))
    imported = import_vggsound(written(tmp_path, every + '--1AAAAAAAA,0,"dog barking",train\n'))
    assert [row[3] for row in rows(imported)] == [(name,) for name in VGGSOUND_NATURE]
    assert [row[3] for row in rows(import_vggsound(written(tmp_path, VGGSOUND)))] == [
        ("thunder", "raining"),
        ("ocean burbling",),
    ]


def test_vggsound_without_a_row_of_the_class(tmp_path: Path) -> None:
    path = written(tmp_path, "--0AAAAAAAA,30,dog barking,train\n")
    with pytest.raises(SourceListError, match="none of the 1 rows has the chosen classes and split"):
        import_vggsound(path)
    with pytest.raises(SourceListError, match="did you mean 'dog barking'"):
        import_vggsound(path, classes=["dog"])


# --- AudioSet ---------------------------------------------------------------------------------------------------------

NAMES = """\
index,mid,display_name
0,/m/09x0r,Speech
1,/m/05zppz,"Male speech, man speaking"
137,/m/04rlf,Music
283,/m/03m9d0z,Wind
285,/t/dd00092,Wind noise (microphone)
288,/m/0838f,Water
289,/m/06mb1,Rain
295,/m/034srq,"Waves, surf"
296,/m/06wzb,Steam
"""
TREE = [
    {"id": "/m/059j3w", "name": "Natural sounds", "child_ids": ["/m/03m9d0z", "/m/0838f"]},
    {"id": "/m/0838f", "name": "Water", "child_ids": ["/m/06mb1", "/m/06wzb"]},
    {"id": "/m/06wzb", "name": "Steam", "child_ids": ["/m/07rjwbb", "/m/0838f"]},
    {"id": "/m/07rjwbb", "name": "Hiss", "child_ids": []},
    {"id": "/m/06mb1", "name": "Rain", "child_ids": []},
    {"id": "/m/03m9d0z", "name": "Wind", "child_ids": ["/t/dd00092"]},
    {"id": "/m/04rlf", "name": "Music", "child_ids": ["/m/0342h"]},
    {"id": "/m/0342h", "name": "Guitar", "child_ids": []},
]
SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=7, num_segs=7, num_unique_labels=8, num_positive_labels=12
# YTID, start_seconds, end_seconds, positive_labels
--0AAAAAAAA, 420.000, 430.000, "/m/06mb1,/m/0838f"
--1AAAAAAAA, 0.000, 6.000, "/m/034srq,/m/09x0r"
--2AAAAAAAA, 30.000, 40.000, "/m/03m9d0z,/m/0342h"
--3AAAAAAAA, 30.000, 40.000, "/m/09x0r"
#NAME?, 30.000, 40.000, "/m/06mb1"
--4AAAAAAAA, 30.000, 40.000, "/m/07rjwbb"
--5AAAAAAAA, 40.000, 30.000, "/m/06mb1"
--6AAAAAAAA, 40.000
"""


@pytest.fixture
def names(tmp_path: Path) -> Ontology:
    return read_ontology([written(tmp_path, NAMES, "class_labels_indices.csv")])


@pytest.fixture
def tree(tmp_path: Path) -> Ontology:
    both = [written(tmp_path, NAMES, "names.csv"), written(tmp_path, json.dumps(TREE), "ontology.json")]
    return read_ontology(both)


def test_audioset(tmp_path: Path, names: Ontology) -> None:
    path = written(tmp_path, SEGMENTS, "eval_segments.csv")
    imported = import_audioset([path], names)
    assert rows(imported) == [
        ("--0AAAAAAAA", 420_000, 430_000, ("Rain", "Water"), "test"),
        ("--2AAAAAAAA", 30_000, 40_000, ("Wind",), "test"),
    ]
    assert imported.num_left_out == 3
    assert problems(imported) == [
        (8, "'#NAME?' is not a YouTube id (11 letters, digits, '_', '-'): a spreadsheet has replaced it"),
        (10, "the end (30.000) is not after the start (40.000)"),
        (11, "2 cells, not the 4 of AudioSet (YTID, start, end, labels)"),
    ]
    assert imported.sources.sources[0].listed_at == f"{path}:4"


def test_audioset_with_the_tree(tmp_path: Path, tree: Ontology) -> None:
    path = written(tmp_path, SEGMENTS, "balanced_train_segments.csv")
    assert [row[0] for row in rows(import_audioset([path], tree))] == ["--0AAAAAAAA"]  # a guitar is music
    water = import_audioset([path], tree, classes=["water"])
    assert [(row[0], row[3], row[4]) for row in rows(water)] == [
        ("--0AAAAAAAA", ("Rain", "Water"), "train"),
        ("--4AAAAAAAA", ("Hiss",), "train"),
    ]
    natural = import_audioset([path], tree, classes=["natural sounds", "waves, surf"], exclude=[])
    assert [row[0][2] for row in rows(natural)] == ["0", "1", "2", "4"]
    no_rain = import_audioset([path], tree, classes=["natural sounds"], exclude=["Rain"])
    assert [row[0][2] for row in rows(no_rain)] == ["2", "4"]


def test_a_class_that_is_chosen_is_not_left_out_by_default(tmp_path: Path, names: Ontology) -> None:
    imported = import_audioset([written(tmp_path, SEGMENTS)], names, classes=["speech"])
    assert [(row[0][2], row[3], row[4]) for row in rows(imported)] == [
        ("1", ("Speech",), None),
        ("3", ("Speech",), None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        'YTID,start_seconds,end_seconds,positive_labels\n--0AAAAAAAA,420,430,"/m/06mb1,/m/0838f"\n',
        "# YTID, start_seconds, end_seconds, positive_labels,,\n--0AAAAAAAA,420,430,  /m/06mb1,/m/0838f ,,\n",
        '\ufeff--0AAAAAAAA, 420.000, 430.000, "/m/06mb1,/m/0838f"\r\n',
    ],
)
def test_audioset_copies_that_went_through_other_hands(tmp_path: Path, names: Ontology, text: str) -> None:
    imported = import_audioset([written(tmp_path, text)], names)
    assert rows(imported) == [("--0AAAAAAAA", 420_000, 430_000, ("Rain", "Water"), None)]


def test_two_segment_files_are_one_list(tmp_path: Path, names: Ontology) -> None:
    segment = '--0AAAAAAAA, 420.000, 430.000, "/m/06mb1"\n'
    paths = [written(tmp_path, segment, f"{name}_segments.csv") for name in ("unbalanced_train", "eval")]
    imported = import_audioset(paths, names)
    assert (len(imported.sources.sources), imported.sources.merged, imported.sources.sources[0].split) == (
        1,
        1,
        "train",
    )
    assert [split_of(path) for path in (*paths, "my.csv")] == ["train", "test", None]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0,/m/06mb1,Rain\n", "a.csv"),
        ("/m/06mb1\tRain\n", "mid_to_display_name.tsv"),
        ('index,mid,display_name\n5,/m/034srq,"Waves, surf"\n5,/m/06mb1,Rain\n', "a.csv"),
        ("5,/m/034srq,Waves,_surf\n5,/m/06mb1,Rain\n", "a.csv"),
    ],
)
def test_names_of_classes(tmp_path: Path, text: str, name: str) -> None:
    found = read_ontology([written(tmp_path, text, name)]).names
    assert found == {"/m/034srq": "Waves, surf", "/m/06mb1": "Rain"} if "surf" in text else {"/m/06mb1": "Rain"}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a,b\n", "a.csv", "no class ids"),
        ("{", "a.json", "is not AudioSet's ontology.json"),
        ('{"id": 1}', "a.json", "is not AudioSet's ontology.json"),
        ("[1]", "a.json", "is not AudioSet's ontology.json"),
        ("[]", "a.json", "no class ids"),
    ],
)
def test_what_is_no_ontology(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(SourceListError, match=message):
        read_ontology([written(tmp_path, text, name)])
    with pytest.raises(SourceListError, match="none"):
        read_ontology([tmp_path / "none.json"])


def test_the_presets_are_names() -> None:
    assert len(set(AUDIOSET_NATURE)) == len(AUDIOSET_NATURE) == 18
    unwanted = {"Speech", "Child speech, kid speaking", "Narration, monologue", "Sad music", "Male singing"}
    assert choose_classes(AUDIOSET_EXCLUDE, [*AUDIOSET_NATURE, *unwanted], missing_ok=True) == unwanted


# --- Landscape --------------------------------------------------------------------------------------------------------


def test_landscape_as_tempotokens_has_it(tmp_path: Path) -> None:
    text = (
        "ytid,start_time,class,set\n"
        "MJ9-HmGWw1k,180,wind noise,train\n"
        "-AAAAAAAAA1,30900,waterfall burbling,test\n"
        "-AAAAAAAAA1,30900,waterfall burbling,test\n"
        "n4DEfAKk0&t,0,underwater bubbling,train\n"
        "abcdefghijk,0,thunder,train\n"
        "578,0,drum kit,train\n"
        ",0,thunder,train\n"
        "-AAAAAAAAA2,x,thunder,train\n"
    )
    imported = import_landscape(written(tmp_path, text))
    assert rows(imported) == [
        ("MJ9-HmGWw1k", 180_000, 190_000, ("wind noise",), "train"),
        ("-AAAAAAAAA1", 30_900_000, 30_910_000, ("waterfall burbling",), "test"),
        ("abcdefghijk", 0, 10_000, ("thunder",), "train"),
    ]
    assert imported.sources.merged == 1
    assert problems(imported) == [
        (5, "'n4DEfAKk0&t' is not a YouTube id (11 letters, digits, '_', '-')"),
        (7, "'578' is not a YouTube id (11 letters, digits, '_', '-')"),
        (8, "no link"),
        (9, "'x' is not a time: write seconds (12.5) or [HH:]MM:SS"),
    ]
    whole = import_landscape(written(tmp_path, text), seconds=None)
    assert [row[2] for row in rows(whole)] == [None, None, None]


A, B = f"{WATCH}AAAAAAAAAA1", f"{WATCH}AAAAAAAAAA2"
TWO = [("AAAAAAAAAA1", 0, None, ("thunder",), None), ("AAAAAAAAAA2", 0, None, ("sea waves",), None)]


@pytest.mark.parametrize(
    "text",
    [
        f"class,link\nthunder,{A}\nsea waves,{B}\n",
        f"Link,Class\n{A},thunder\n{B},sea waves\n",
        f"thunder,{A}\nsea waves,{B}\n",
        f"{A},thunder\n{B},sea waves\n",
        f"{A}\tthunder\n{B}\tsea waves\n",
        f"{A};thunder\n{B};sea waves\n",
        f"1,thunder,{A}\n2,sea waves,{B}\n",
        f"{A} thunder\n{B} - sea waves\n",
        f"thunder: {A}\nsea waves: {B}\n",
        f"# thunder\n{A}\n\n# sea waves\n{B}\n",
        f"thunder,,\n{A},,\nsea waves,,\n{B},,\n",
        f"Link\n[thunder]\n{A}\n== sea waves ==\n{B}\n",
        f"thunder,sea waves\n{A},{B}\n",
        f"No.,Type of sound,Address of video\n1,thunder,{A}\n2,sea waves,{B}\n",
        "thunder,AAAAAAAAAA1\nsea waves,AAAAAAAAAA2\n",
        "thunder,youtu.be/AAAAAAAAAA1\nsea waves,www.youtube.com/watch?v=AAAAAAAAAA2&list=PLx\n",
    ],
)
@pytest.mark.parametrize("name", ["DATASET.csv", "list.txt"])
def test_landscape_in_other_shapes(tmp_path: Path, text: str, name: str) -> None:
    imported = import_landscape(written(tmp_path, text, name))
    assert rows(imported) == TWO
    assert imported.sources.problems == ()


def test_a_word_of_eleven_letters_is_no_link(tmp_path: Path) -> None:
    imported = import_landscape(written(tmp_path, f"Thunderclap,{A}\nthunderclap,{B}\n"))
    assert [row[3] for row in rows(imported)] == [("Thunderclap",), ("thunderclap",)]


def test_times_come_from_columns_before_links(tmp_path: Path) -> None:
    text = f"rain,{A}&t=90\nrain,{A}&t=90,5\nrain,{A}&t=90,5,25,test\nrain,https://youtu.be/AAAAAAAAAA1?start=1&end=3\n"
    assert [row[1:] for row in rows(import_landscape(written(tmp_path, text)))] == [
        (90_000, 100_000, ("rain",), None),
        (5_000, 15_000, ("rain",), None),
        (5_000, 25_000, ("rain",), "test"),
        (1_000, 3_000, ("rain",), None),
    ]


@pytest.mark.parametrize(
    ("link", "times"),
    [
        ("https://youtu.be/AAAAAAAAAA1?t=90", {"start": 90.0}),
        ("https://youtu.be/AAAAAAAAAA1?t=90s", {"start": 90.0}),
        ("https://youtu.be/AAAAAAAAAA1?t=1h2m3s", {"start": 3723.0}),
        ("https://youtu.be/AAAAAAAAAA1?t=2m", {"start": 120.0}),
        (f"{A}#t=15", {"start": 15.0}),
        (f"{A}&start=30&end=40", {"start": 30.0, "end": 40.0}),
        (f"{A}&t=soon", {}),
        (f"{A}&t=", {}),
        (A, {}),
    ],
)
def test_times_in_links(link: str, times: dict[str, float]) -> None:
    assert times_in_link(link) == times


def test_landscape_rows_that_cannot_be_read(tmp_path: Path) -> None:
    imported = import_landscape(written(tmp_path, f'rain,{A}\nrain,nothing\nrain,https://[x/\nrain,"{B}\n'))
    assert rows(imported) == [("AAAAAAAAAA1", 0, None, ("rain",), None)]
    assert [line for line, _ in problems(imported)] == [2, 3, 4]
    with pytest.raises(SourceListError, match="there are no rows"):
        import_landscape(written(tmp_path, "\n"))


# --- the command ------------------------------------------------------------------------------------------------------


def unlisted(sources: tuple[Source, ...]) -> list[Source]:
    return [replace(source, listed_at=None) for source in sources]


def test_the_command_writes_what_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, VGGSOUND), tmp_path / "out" / "x.csv"
    assert main(["vggsound", str(path), "--classes", "thunder,ocean*", "raining", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 2 sources; 1 repeated rows merged, 4 rows with problems, 2 rows left out\n"
    assert said.err.splitlines()[0].startswith(f"{path}:6: '#NAME?' is not a YouTube id")
    imported = import_vggsound(path, classes=["thunder,ocean*", "raining"])
    assert unlisted(read_sources(out).sources) == unlisted(imported.sources.sources)
    assert read_sources(out).problems == ()


def test_the_command_for_audioset_and_landscape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segments, names = written(tmp_path, SEGMENTS, "eval.csv"), written(tmp_path, NAMES, "names.csv")
    tree, out = written(tmp_path, json.dumps(TREE), "ontology.json"), tmp_path / "x.csv"
    command = ["audioset", str(segments), "--ontology", str(names), str(tree), "--out", str(out)]
    assert main([*command, "--classes", "natural sounds", "waves, surf", "--no-exclude"]) == 0
    assert [source.url[-9:][0] for source in read_sources(out).sources] == ["0", "1", "2", "4"]
    assert main([*command, "--classes", "natural sounds", "--exclude", "Rain", "Music"]) == 0
    assert [source.url[-9:][0] for source in read_sources(out).sources] == ["4"]
    landscape = written(tmp_path, f"ytid,start_time,class,set\nAAAAAAAAAA1,5,rain,train\n{B},,sea,test\n")
    assert main(["landscape", str(landscape), "--seconds", "0", "--out", str(out)]) == 0
    assert [(source.start_ms, source.end_ms) for source in read_sources(out).sources] == [(5000, None), (0, None)]
    assert "2 sources" in capsys.readouterr().out


def test_the_command_refuses_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, VGGSOUND)
    assert main(["vggsound", str(path), "--classes", "thundr", "--out", str(tmp_path / "x.csv")]) == 2
    assert capsys.readouterr().err == "error: no class 'thundr': did you mean 'thunder'?\n"
    assert main(["vggsound", str(tmp_path / "none.csv"), "--out", str(tmp_path / "x.csv")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["vggsound", str(path), "--out", str(tmp_path / "x.txt")]) == 2
    assert "is written as .csv" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_deeply_nested_ontology_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ontology.json").write_text("[" * 100_000)
    (tmp_path / "eval_segments.csv").write_text("")
    words = ["audioset", str(tmp_path / "eval_segments.csv"), "--ontology", str(tmp_path / "ontology.json")]
    assert main([*words, "--out", str(tmp_path / "out.csv")]) == 2
    assert "is not AudioSet's ontology.json" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
