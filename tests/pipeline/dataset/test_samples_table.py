"""samples.parquet and embeddings.parquet: every field, sorted, the same bytes for the same rows."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import tables as samples_table
from pipeline.dataset.tables import ClipRow, EmbeddingRow, read_table, samples_schema, write_embeddings, write_samples
from pipeline.runtime.folder import Folder
from pipeline.schema import AgreementMeasures, PictureMeasures, Reason, SoundMeasures, State, TimeMeasures


def measures(kind: type, seed: int):
    """A record of numbers that differ with the seed."""
    makers = {
        "int": lambda: seed,
        "float": lambda: seed / 7,
        "str": lambda: f"{seed:04x}",
        "bool": lambda: bool(seed % 2),
    }
    return kind(**{f.name: makers[str(f.type).removesuffix(" | None")]() for f in dataclasses.fields(kind)})


def row(i: int, **changes: object) -> ClipRow:
    values = {
        "key": f"s{i:05d}_00000000_00010000",
        "source_id": f"s{i:05d}",
        "url": f"https://example.org/{i}.mp4",
        "labels": ("rain", "wind")[: i % 3],
        "caption": None,
        "licence": "CC-BY-4.0",
        "split": "train",
        "state": State.KEPT,
        "reason": None,
        "detail": "",
        "video_sha256": "ab" * 32,
        "scene_index": i % 4,
        "start_ms": 0,
        "end_ms": 10_000,
        "shard": "train-000000.tar",
        "source_width_px": 1920,
        "source_height_px": 1080,
        "source_fps": 29.97,
        "picture": measures(PictureMeasures, i),
        "sound": measures(SoundMeasures, i),
        "in_time": measures(TimeMeasures, i),
        "agreement": measures(AgreementMeasures, i),
    }
    return ClipRow(**(values | changes))


def test_every_measure_is_a_column():
    names = samples_schema().names
    for kind in (PictureMeasures, SoundMeasures, TimeMeasures, AgreementMeasures):
        assert {f.name for f in dataclasses.fields(kind)} <= set(names)
    assert names[:3] == ["key", "source_id", "url"]
    types = {field.name: (str(field.type), field.nullable) for field in samples_schema()}
    assert types["key"] == ("string", False)
    assert types["labels"] == ("list<item: string>", False)
    assert types["loudness_lufs"] == ("double", True)
    assert types["dual_mono"] == ("bool", True)
    assert types["num_frames"] == ("int64", True)
    assert types["light_lag_seconds"] == ("double", True)
    assert types["margin"] == ("double", True)
    assert types["heard_class"] == ("string", True)
    assert types["end_ms"] == ("int64", True)


def test_rows_come_back_as_they_went_in(tmp_path: Path):
    rejected = row(
        7,
        state=State.REJECTED,
        reason=Reason.SILENT,
        detail="-70 dBFS, needs -60",
        split=None,
        shard=None,
        agreement=None,
    )
    failed = row(3, state=State.FAILED, detail="decode: truncated", picture=None, sound=None, agreement=None)
    record = write_samples([rejected, row(1, caption="Über 海\n'"), failed], Folder(tmp_path))
    assert record.num_rows == 3
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table["key"].to_pylist() == [row(i).key for i in (1, 3, 7)]
    first, second, third = table.to_pylist()
    assert first["caption"] == "Über 海\n'"
    assert first["labels"] == ["rain"]
    assert (first["state"], first["reason"]) == ("kept", None)
    assert first["motion"] == 1 / 7
    assert first["encoder_id"] == "0001"
    assert (second["state"], second["detail"], second["motion"], second["loudness_lufs"]) == (
        "failed", "decode: truncated", None, None,
    )  # fmt: skip
    assert (third["state"], third["reason"], third["split"], third["agreement"]) == ("rejected", "silent", None, None)
    assert third["speech_share"] == 1.0


def test_the_bytes_do_not_depend_on_the_order_or_on_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [row(i) for i in range(1000)]
    first = write_samples(rows, Folder(tmp_path / "a"))
    random.Random(0).shuffle(rows)
    monkeypatch.setattr(samples_table, "_RUN_ROWS", 77)
    second = write_samples(iter(rows), Folder(tmp_path / "b"))
    assert first == second
    assert (tmp_path / "a/samples.parquet").read_bytes() == (tmp_path / "b/samples.parquet").read_bytes()
    assert (first.path, first.num_rows) == ("samples.parquet", 1000)
    assert first.num_bytes == (tmp_path / "a/samples.parquet").stat().st_size


def test_many_runs_and_row_groups_stay_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples_table, "_RUN_ROWS", 50)
    monkeypatch.setattr(samples_table, "_GROUP_ROWS", 30)
    order = list(range(333))
    random.Random(0).shuffle(order)
    write_samples((row(i) for i in order), Folder(tmp_path))
    batches = list(read_table(Folder(tmp_path), columns=["key", "scene_index"]))
    assert [batch.num_rows for batch in batches] == [30] * 11 + [3]
    assert batches[0].schema.names == ["key", "scene_index"]
    assert [key for batch in batches for key in batch["key"].to_pylist()] == [row(i).key for i in range(333)]
    assert [n for batch in batches for n in batch["scene_index"].to_pylist()] == [i % 4 for i in range(333)]
    assert pq.ParquetFile(tmp_path / "samples.parquet").num_row_groups == 12


def test_no_rows_give_an_empty_table(tmp_path: Path):
    record = write_samples([], Folder(tmp_path))
    assert record.num_rows == 0
    assert pq.read_schema(tmp_path / "samples.parquet").names == samples_schema().names
    assert list(read_table(Folder(tmp_path))) == []


def test_a_key_comes_once_and_a_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="clip s00001_00000000_00010000 comes twice"):
        write_samples([row(1), row(2), row(1)], Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_file_names_that_are_no_text_do_not_stop_the_table(tmp_path: Path):
    write_samples([row(1, url="/media/\udcff.mp4", labels=("\udcfe",))], Folder(tmp_path))
    (batch,) = read_table(Folder(tmp_path), columns=["url", "labels"])
    assert batch.to_pylist() == [{"url": "/media/\\udcff.mp4", "labels": ["\\udcfe"]}]


def embedding(i: int, width: int = 16, **changes: object) -> EmbeddingRow:
    rng = np.random.default_rng(i)
    values = {"picture": rng.standard_normal(width), "sound": rng.standard_normal(width).astype(np.float32)}
    return EmbeddingRow(f"s{i:05d}_00000000_00010000", "pair-1", **(values | changes))


def test_embeddings_are_kept_as_half_floats_sorted_and_with_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [embedding(i) for i in range(100)]
    first = write_embeddings(rows, Folder(tmp_path / "a"))
    monkeypatch.setattr(samples_table, "_RUN_ROWS", 9)
    second = write_embeddings(reversed(rows), Folder(tmp_path / "b"))
    assert first == second
    (batch,) = read_table(Folder(tmp_path / "a"), "embeddings.parquet")
    assert batch.schema.field("picture").type == pa.list_(pa.float16(), 16)
    assert batch["key"].to_pylist() == [r.key for r in rows]
    picture_ND = batch["picture"].values.to_numpy().reshape(-1, 16)
    np.testing.assert_array_equal(picture_ND, np.stack([r.picture for r in rows]).astype(np.float16))
    assert set(batch["encoder_id"].to_pylist()) == {"pair-1"}


def test_no_embeddings_give_no_file(tmp_path: Path):
    write_embeddings([embedding(1)], Folder(tmp_path))
    assert write_embeddings([], Folder(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_wrong_embeddings_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"clip s00002_.*: its picture embedding has shape \(8,\), not \(16,\)"):
        write_embeddings([embedding(1), embedding(2, width=8)], Folder(tmp_path))
    with pytest.raises(ValueError, match=r"clip s00003_.*: its sound embedding is not finite"):
        write_embeddings([embedding(1), embedding(3, sound=np.full(16, np.inf))], Folder(tmp_path))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples_table, "_RUN_ROWS", 500)
    monkeypatch.setattr(samples_table, "_GROUP_ROWS", 500)
    write_samples((row(i) for i in range(10)), Folder(tmp_path))
    peaks = []
    for num_rows in (1_000, 6_000):
        pa.default_memory_pool().release_unused()
        tracemalloc.start()
        write_samples((row(i) for i in range(num_rows)), Folder(tmp_path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
