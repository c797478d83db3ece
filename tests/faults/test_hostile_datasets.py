"""Damaged tables, ledgers and manifests on every command that reads a built dataset: a line that names the file, and nothing is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import ledger, manifest
from pipeline.agreement import __main__ as calibration_command
from pipeline.report.__main__ import main as report_main
from pipeline.report.serve import open_report
from pipeline.runtime.folder import Folder
from pipeline.schema import State
from tests.reported import make_rows, write_dataset
from tests.unreadable import permissions_count

ROWS = [row for row in make_rows(60) if row.agreement]
KEPT = next(row.source_id for row in ROWS if row.state is State.KEPT)
DEEP = b"[" * 100_000

Command = Callable[[list[str]], int]
Damage = Callable[[Path], None]

CALIBRATE: tuple[Command, list[str]] = (calibration_command.main, ["calibrate", "{}"])
SHOW: tuple[Command, list[str]] = (ledger.main, ["show", "{}", KEPT])
WITHDRAW: tuple[Command, list[str]] = (manifest.main, ["withdraw", "{}", "--source", KEPT])
REPORT: tuple[Command, list[str]] = (report_main, ["{}", "--clips", "0"])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    write_dataset(Folder(str(folder)), ROWS)
    return folder


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "built")
    return tmp_path / "built"


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])


def nulled(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def unreadable(path: Path) -> None:
    path.chmod(0)


def deep(path: Path) -> None:
    path.write_bytes(DEEP + b"\n")


def other_values(path: Path) -> None:
    path.write_bytes(b'{"source_id": 5}\n[1]\n')


def huge_number(path: Path) -> None:
    path.write_bytes(b'{"source_id": ' + b"9" * 5000 + b"}\n")


def changed(**columns: Callable[[int], pa.Array]) -> Damage:
    """Other columns of the table in place of those of these names."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        for name, made in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, made(len(table)))
        pq.write_table(table, path)

    return damage


def vectors(width: int, value: float = 1.0) -> Callable[[int], pa.Array]:
    return lambda num: pa.FixedSizeListArray.from_arrays(pa.array(np.full(num * width, value, np.float16)), width)


def no_keys(num: int) -> pa.Array:
    return pa.array([None] * num, pa.string())


def lists(num: int) -> pa.Array:
    return pa.array([[1]] * num)


def no_vectors(num: int) -> pa.Array:
    return pa.array([None] * num, pa.list_(pa.float16(), 4))


def files_of(folder: Path) -> dict[str, str]:
    """What is there; not the lock that a command leaves, nor the folder of its temporary files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o400 and "state" not in path.relative_to(folder).parts
    }


def refused(command: tuple[Command, list[str]], dataset: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that is refused: one line, and every file as it was."""
    before = files_of(dataset)
    main, words = command
    capsys.readouterr()
    with permissions_count():
        assert main([word.format(dataset) for word in words]) == 2
    assert files_of(dataset) == before
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    return err


EVERY_FILE = (halved, nulled, emptied, a_folder, gone, unreadable)
READ_BY = {
    "manifest.json": (CALIBRATE, WITHDRAW),
    "samples.parquet": (CALIBRATE, WITHDRAW, REPORT),
    "embeddings.parquet": (CALIBRATE, WITHDRAW),
    "ledger.jsonl": (SHOW, WITHDRAW),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in READ_BY
        for damage in EVERY_FILE
        if not (name == "ledger.jsonl" and damage is emptied)  # a ledger of no source
    ],
)
def test_a_file_that_cannot_be_read(
    name: str, damage: Damage, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(dataset / name)
    for command in READ_BY[name]:
        err = refused(command, dataset, capsys)
        assert f"{dataset}/{name}" in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("damage", [deep, other_values, huge_number])
@pytest.mark.parametrize("name", ["ledger.jsonl", "timings.jsonl"])
def test_lines_that_no_build_writes(
    name: str, damage: Damage, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(dataset / name)
    for command in (SHOW, WITHDRAW):
        assert refused(command, dataset, capsys) == (
            f"error: {dataset}/{name}:1 is damaged: run the build again, which writes it anew\n"
        )
    main, words = REPORT
    assert main([word.format(dataset) for word in words]) == 0
    facts = json.loads((dataset / "report.json").read_text())
    assert name != "ledger.jsonl" or any("of ledger.jsonl cannot be read" in note for note in facts["notes"])


@pytest.mark.parametrize("damage", [deep, other_values, huge_number])
def test_a_manifest_that_no_build_writes(damage: Damage, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(dataset / "manifest.json")
    for command in (CALIBRATE, WITHDRAW, REPORT):
        assert f"{dataset}/manifest.json" in refused(command, dataset, capsys)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "shards/../../x.tar"])
def test_a_manifest_that_names_files_outside(path: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((dataset / "manifest.json").read_text())
    values["shards"][0]["path"] = path
    (dataset / "manifest.json").write_text(json.dumps(values))
    for command in (CALIBRATE, WITHDRAW, REPORT):
        assert "shards.0.path: " in refused(command, dataset, capsys)


TABLES = [
    ("samples.parquet", changed(key=no_keys), "a clip has no key", (CALIBRATE, SHOW, WITHDRAW)),
    ("samples.parquet", changed(key=lists), "its column key holds list", (SHOW, WITHDRAW, CALIBRATE)),
    ("embeddings.parquet", changed(key=lists), "its column key holds list", (CALIBRATE, WITHDRAW)),
    (
        "embeddings.parquet",
        changed(picture=vectors(3)),
        "3 numbers for a picture and 4 numbers for a sound",
        (CALIBRATE,),
    ),
    ("embeddings.parquet", changed(picture=vectors(4, np.nan)), "is not finite", (CALIBRATE,)),
    ("embeddings.parquet", changed(sound=no_vectors), "no sound embedding", (CALIBRATE,)),
    ("embeddings.parquet", changed(sound=lists), "its column sound holds list", (CALIBRATE, WITHDRAW)),
    ("samples.parquet", changed(reason=lambda num: pa.array(["x"] * num)), "'x' is not a valid Reason", (CALIBRATE,)),
]


@pytest.mark.parametrize(("name", "damage", "message", "commands"), TABLES)
def test_a_table_of_another_make(
    name: str,
    damage: Damage,
    message: str,
    commands: tuple[tuple[Command, list[str]], ...],
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(dataset / name)
    for command in commands:
        err = refused(command, dataset, capsys)
        assert f"{dataset}/{name}" in err
        assert message in err
        assert len(err.splitlines()) == 1


def test_withdrawing_does_not_make_a_falsified_table_pass(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(caption=lambda num: pa.array(["false"] * num))(dataset / "samples.parquet")
    assert "samples.parquet is not what the manifest says" in refused(WITHDRAW, dataset, capsys)


@pytest.mark.parametrize("damage", [halved, emptied, a_folder, deep])
def test_a_list_of_the_withdrawn_that_is_damaged(
    damage: Damage, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "withdrawn.json").write_text('{"sources": ["x"]}')
    damage(dataset / "withdrawn.json")
    err = refused(WITHDRAW, dataset, capsys)
    assert f"{dataset}/withdrawn.json" in err
    assert "put back a copy" in err


@pytest.mark.parametrize("damage", [halved, nulled, gone, a_folder])
def test_a_shard_that_is_damaged_stays_until_the_build_makes_it_anew(
    damage: Damage, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tar in dataset.rglob("*.tar"):
        damage(tar)
    main, words = WITHDRAW
    assert main([word.format(dataset) for word in words]) == 2
    assert "run the build again, which writes it again, then this command" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [deep, nulled, a_folder, gone])
def test_an_index_that_is_damaged_is_done_without(damage: Damage, dataset: Path) -> None:
    for index in dataset.rglob("*.index.json"):
        damage(index)
    for main, words in (REPORT, WITHDRAW):
        assert main([word.format(dataset) for word in words]) == 0


@pytest.mark.parametrize(
    "damage", [changed(picture=vectors(3)), changed(sound=no_vectors), changed(sound=lambda num: pa.array(["x"] * num))]
)
def test_a_report_is_made_without_embeddings_that_are_damaged(damage: Damage, dataset: Path) -> None:
    damage(dataset / "embeddings.parquet")
    main, words = REPORT
    assert main([word.format(dataset) for word in words]) == 0


def test_reports_that_cannot_be_written_or_compared(
    dataset: Path, pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nulled(dataset / "samples.parquet")
    out = str(tmp_path / "out")
    assert f"{dataset}/samples.parquet" in refused(
        (report_main, [str(pristine), "--compare", "{}", "--out", out]), dataset, capsys
    )
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    assert report_main([str(pristine), "--out", out, "--clips", "0"]) == 2
    assert capsys.readouterr().err == (
        f"error: {out}/report.html cannot be written: Is a directory; remove it, or choose another folder with --out\n"
    )


@pytest.mark.parametrize("name", ["report.json", "manifest.json"])
def test_a_report_is_not_served_of_what_is_damaged(
    name: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_main([str(dataset), "--clips", "0"]) == 0
    deep(dataset / name)
    if name == "manifest.json":
        assert f"{dataset}/manifest.json is damaged" in refused((report_main, ["serve", "{}"]), dataset, capsys)
    else:
        with contextlib.ExitStack() as stack:  # made again
            stack.enter_context(open_report(str(dataset)))
        assert json.loads((dataset / name).read_text())["format"] == "hearscape-report"
