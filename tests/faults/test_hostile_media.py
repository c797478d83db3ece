"""Broken and hostile media through the real build: each costs one entry, whatever it does to the decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import MediaError
from pipeline.media.decoding import MAX_SECONDS, Decoding
from tests.faults.corpus import atoms, lies, patched, truncations, write_bomb, write_corpus, write_seeds
from tests.faults.media_build import outcomes, recipe_for, run_build
from tests.faults.mutate import bad_outcomes, main, write_cases

CRAFTED = {
    "a.mp4": {"kept"},
    "zero.mp4": {"empty"},
    "one-byte.mp4": {"not_media"},
    "zeros.mp4": {"not_media"},
    "noise.mp4": {"not_media"},
    "only-ftyp.mp4": {"not_media"},
    "twice.mp4": {"joined"},
    "changes-size.ts": {"kept"},
    "gap-of-an-hour.mkv": {"no_clip_kept"},
    "gap-of-three-days.mkv": {"bad_times", "too_long"},
    "gap-of-ten-years.mkv": {"bad_times", "too_long"},
    "many-gaps.mkv": {"no_clip_kept"},
    "million-fps.mp4": {"too_short"},
    "many-tracks.mkv": {"kept", "out_of_memory"},  # a thousand decoders take about as much as is allowed here
    "subtitle-bomb.mkv": {"kept"},
    "gigantic.mov": {"bad_size"},
    "bomb.mov": {"out_of_memory"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The crafted cases, the flipped bits, and one in fifty of the lies and truncations."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), lies_share=0.02)


@pytest.fixture(scope="module")
def found(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    folder = tmp_path_factory.mktemp("hostile")
    run_build(recipe_for(corpus, folder, ["execution.process_memory_bytes=536870912", 'execution.bugs="record"']))
    return outcomes(corpus, folder / "hostile"), folder / "hostile"


def test_each_case_is_one_entry_with_a_reason_of_its_own(
    found: tuple[dict[str, list[str]], Path], corpus: list[Path]
) -> None:
    ends, output = found
    assert len(ends) == len(corpus) >= 50
    assert bad_outcomes(ends) == {}
    assert list((output / "state" / "tmp").iterdir()) == []


def test_the_crafted_cases_end_as_they_should(found: tuple[dict[str, list[str]], Path]) -> None:
    ends, _ = found
    assert {name: ends[name] for name, expected in CRAFTED.items() if not set(ends[name]) <= expected} == {}


def test_what_takes_too_much_memory_is_tried_again_by_another_run(found: tuple[dict[str, list[str]], Path]) -> None:
    _, output = found
    (entry,) = (
        entry
        for line in (output / "ledger.jsonl").read_text().splitlines()
        if (entry := json.loads(line))["url"].endswith("/bomb.mov")
    )
    assert entry["failure"]["transient"] is True
    assert "over the limit of 512 MiB" in entry["failure"]["message"]


def test_mutated_files_are_one_entry_each(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    files = write_cases(write_seeds(tmp_path / "seeds"), tmp_path / "cases", seed=3, first=0, num_cases=40)
    run_build(recipe_for(files, tmp_path / "build", ['execution.bugs="record"']))
    ends = outcomes(files, tmp_path / "build" / "hostile")
    assert bad_outcomes(ends) == {}
    assert len({end for entries in ends.values() for end in entries}) >= 4


def test_equal_seeds_give_equal_cases_wherever_one_begins(tmp_path: Path) -> None:
    for name in ("a", "b", "seeds"):
        (tmp_path / name).mkdir()
    (tmp_path / "seeds" / "x.mp4").write_bytes(bytes(range(256)) * 40)
    seeds = [tmp_path / "seeds" / "x.mp4"]
    whole = write_cases(seeds, tmp_path / "a", seed=1, first=0, num_cases=20)
    part = write_cases(seeds, tmp_path / "b", seed=1, first=12, num_cases=8)
    assert [path.read_bytes() for path in whole[12:]] == [path.read_bytes() for path in part]
    assert len({path.read_bytes() for path in whole}) == 20
    assert all(path.read_bytes() != seeds[0].read_bytes() for path in whole)


def test_the_mutator_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "3", "--seed", "2", "--keep", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("3 files, seed 2, ")
    assert len(list((tmp_path / "cases").iterdir())) == 3


def test_the_corpus_cuts_at_every_atom_and_lies_in_every_field() -> None:
    movie = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x24moov\0\0\0\x1cmdhd" + bytes(20) + b"\0\0\0\x0cmdatdata"
    assert [(name, begin, end) for name, begin, end in atoms(movie)] == [
        (b"ftyp", 0, 16),
        (b"moov", 16, 52),
        (b"mdhd", 24, 52),
        (b"mdat", 52, 64),
    ]
    assert sorted(len(content) for _, content in truncations(movie)) == [0, 6, 8, 16, 22, 24, 30, 34, 38, 52, 58]
    (told,) = (content for name, content in lies(movie) if name == "lie-mdhd1-timescale-7fffffff.mp4")
    assert told == movie[:44] + b"\x7f\xff\xff\xff" + movie[48:]
    assert patched(b"abcdef", 2, b"XY") == b"abXYef"


def test_a_time_stamp_that_cannot_be_ends_the_decode(corpus: list[Path]) -> None:
    (path,) = (path for path in corpus if path.name == "gap-of-three-days.mkv")
    with pytest.raises(MediaError, match=r"a time stamp is 2\.59e\+05 s") as caught:
        list(Decoding(path, sample_rate_hz=44_100))
    assert caught.value.code == "bad_times"
    assert MAX_SECONDS < 3 * 86_400


def test_a_bomb_is_a_thousandth_of_what_it_decodes_to(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.mov", 2000, 2000, 3)
    assert (tmp_path / "bomb.mov").stat().st_size < 3 * 2000 * 2000 / 300
