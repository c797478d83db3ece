"""Datasets that are fitted on together: no video may be learned from in one and held out in another."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.tables import ClipRow
from pipeline.errors import DataError
from pipeline.runtime.folder import Folder
from pipeline.synthetic.serve import serve_folder
from tests.reported import make_rows, write_dataset
from trainer.engine.overlap import check_disjoint
from trainer.fit import main
from trainer.recipe import find_datasets

TINY = Path(__file__).parents[3] / "manifests" / "recipes" / "fit-tiny.toml"


def build(folder: Path, name: str, change: Callable[[ClipRow], ClipRow] = lambda row: row) -> None:
    write_dataset(Folder(folder / name), [change(row) for row in make_rows(24)], name=name)


def elsewhere(row: ClipRow) -> ClipRow:
    """Another name and address for the same file, in the other split."""
    other = {"train": "validation", "test": "train", None: None}[row.split]
    return dataclasses.replace(row, url=f"{row.url}?copy", split=other)


def test_a_video_that_is_held_out_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path, "one")
    build(tmp_path, "two", elsewhere)
    datasets = find_datasets(str(tmp_path), {})
    kept = {row.video_sha256 for row in make_rows(24) if row.split is not None}
    with pytest.raises(DataError) as error:
        check_disjoint(datasets)
    assert str(error.value).startswith(f"{len(kept)} videos are trained on in one dataset and held out in another")
    assert "https://example.org/watch/source000.mp4, " in str(error.value)
    for name in ("one", "two"):
        assert f"{tmp_path}/{name}/manifest.json" in str(error.value)
    check_disjoint(datasets[:1])
    check_disjoint(find_datasets(str(tmp_path), {"two": 0.0}))


@pytest.mark.slow
def test_the_command_refuses_it_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "sets", "one")
    build(tmp_path / "sets", "two", elsewhere)
    words = ["--shards", str(tmp_path / "sets"), "--stages", "align", "--out", str(tmp_path / "run"), "--dry-run"]
    words += ["--recipe", str(TINY), "--set", "reader.picture_px=144"]
    assert main(words) == 2
    assert "videos are trained on in one dataset and held out in another" in capsys.readouterr().err
    assert main([*words, "--set", "weights={two = 0.0}"]) == 0


def test_the_same_split_of_the_same_videos_is_fine_and_so_are_others(tmp_path: Path) -> None:
    build(tmp_path, "one")
    build(tmp_path, "again")
    build(tmp_path, "others", lambda row: dataclasses.replace(elsewhere(row), video_sha256=f"{row.video_sha256}f"[1:]))
    check_disjoint(find_datasets(str(tmp_path), {}))


def test_it_is_seen_over_http_too(tmp_path: Path) -> None:
    build(tmp_path, "one")
    build(tmp_path, "two", elsewhere)
    with serve_folder(tmp_path) as url:
        datasets = find_datasets(url, {})
        assert len(datasets) == 2
        with pytest.raises(DataError, match="videos are trained on in one dataset"):
            check_disjoint(datasets)


def test_a_table_that_is_not_there_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, "one")
    build(tmp_path, "two", elsewhere)
    (tmp_path / "two" / "samples.parquet").unlink()
    shutil.copy(tmp_path / "two" / "manifest.json", tmp_path / "one" / "samples.parquet")
    with caplog.at_level(logging.WARNING):
        check_disjoint(find_datasets(str(tmp_path), {}))
    said = [record.getMessage() for record in caplog.records if "samples.parquet cannot be read" in record.getMessage()]
    assert [f"/{name}/manifest.json" in line for name, line in zip(("one", "two"), said, strict=True)] == [True, True]
