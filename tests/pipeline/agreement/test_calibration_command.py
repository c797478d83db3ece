"""``python -m pipeline.agreement calibrate`` on tables made by hand: what it prints, writes, and refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.agreement.__main__ import main
from pipeline.agreement.calibration import Calibration, calibrate, read_calibration
from pipeline.agreement.dataset_calibration import calibrate_dataset
from pipeline.dataset.manifest import Counts, Manifest, Rendition, read_manifest, write_manifest
from pipeline.dataset.tables import ClipRow, EmbeddingRow, write_embeddings, write_samples
from pipeline.dataset.verify import verify
from pipeline.errors import CalibrationError, ManifestError
from pipeline.runtime.folder import Folder
from pipeline.schema import Reason, State

NUM_CLIPS, WIDTH = 44, 8
CLASSES = ("sea", "rain", "fire", "wind")


def key_of(number: int) -> str:
    return f"s{number:02d}_00000000_00010000"


def clip_row(number: int, reason: Reason | None = None) -> ClipRow:
    return ClipRow(
        key=key_of(number), source_id=f"s{number:02d}", url="u", labels=(CLASSES[number % 4],), caption=None, licence=None,
        split=None, state=State.REJECTED, reason=reason or Reason.DISAGREES, detail="", video_sha256=f"sha{number}",
        scene_index=0, start_ms=0, end_ms=10_000, shard=None, source_width_px=None, source_height_px=None, source_fps=None,
    )  # fmt: skip


def vectors(number: int) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(number).standard_normal((2, WIDTH)) * 0.25
    return np.eye(WIDTH)[number % 4] + noise[0], np.eye(WIDTH)[number % 4] + noise[1]


def built(folder: Path, rows: list[ClipRow], embeddings: list[EmbeddingRow], encoder_id: str | None = "pair-1") -> Path:
    place = Folder(folder)
    files = [write_samples(rows, place), *filter(None, [write_embeddings(embeddings, place)])]
    reasons: dict[str, int] = {}
    for row in rows:
        reasons[str(row.reason)] = reasons.get(str(row.reason), 0) + 1
    manifest = Manifest(
        name="demo",
        recipe={},
        versions={},
        encoder_id=encoder_id,
        members=("flac", "json", "mp4"),
        renditions=(Rendition(name="256", short_side_px=256, video_codec="h264", sound_codec="aac"),),
        splits=(),
        shards=(),
        files=tuple(files),
        sources=Counts(states={"kept": 0}),
        clips=Counts(states={"kept": 0, "rejected": len(rows)}, reasons=reasons),
    )
    write_manifest(manifest, place)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """44 clips of 44 sources, and one with somebody talking over it, whose picture and sound have nothing in common."""
    rows = [clip_row(i) for i in range(NUM_CLIPS)] + [clip_row(99, Reason.SPEECH)]
    embeddings = [EmbeddingRow(key_of(i), "pair-1", *vectors(i)) for i in range(NUM_CLIPS)]
    embeddings.append(EmbeddingRow(key_of(99), "pair-1", np.eye(WIDTH)[6], np.eye(WIDTH)[7]))
    return built(tmp_path / "built", rows, embeddings)


def of_rows() -> Calibration:
    rows = [[side.astype(np.float16) for side in vectors(i)] for i in range(NUM_CLIPS)]
    picture, sound = (np.stack(side) for side in zip(*rows, strict=True))
    return calibrate(
        picture, sound, [f"sha{i}" for i in range(NUM_CLIPS)], [(CLASSES[i % 4],) for i in range(NUM_CLIPS)], "pair-1"
    )


def test_it_calibrates_on_the_clips_that_pass_every_other_rule(dataset: Path) -> None:
    assert calibrate_dataset(str(dataset)) == of_rows()
    assert of_rows().num_clips == NUM_CLIPS


def test_clips_of_one_video_are_one_source(dataset: Path, tmp_path: Path) -> None:
    rows = [clip_row(i) for i in range(NUM_CLIPS)]
    twice = [rows[0], *rows[1:]]
    twice[4] = ClipRow(
        **{name: getattr(rows[4], name) for name in ClipRow.__dataclass_fields__ if name != "video_sha256"},
        video_sha256="sha0",
    )
    embeddings = [EmbeddingRow(key_of(i), "pair-1", *vectors(i)) for i in range(NUM_CLIPS)]
    assert calibrate_dataset(str(built(tmp_path / "twice", twice, embeddings))).num_sources == NUM_CLIPS - 1


def test_the_table_is_printed_and_the_calibration_stored(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_manifest(dataset)
    out = dataset.parent / "calibration.json"
    assert main(["calibrate", str(dataset), "--write", "--out", str(out), "--per-class"]) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = of_rows()
    assert printed[0] == "encoders     pair-1"
    assert printed[1] == "true pairs   44 clips of 44 sources, 4 classes"
    assert printed[2] == f"wrong pairs  {44 * 33:,}, of which 44 independent"
    assert printed[3].startswith(f"AUC          {expected.auc:.3f}  ({expected.auc_low:.3f} to")
    assert "1 %           needs 100 independent wrong pairs" in printed[6]
    five = expected.point(0.05)
    (line,) = (line for line in printed if line.strip().startswith("5 %"))
    assert f"{five.threshold:.4f}" in line
    assert f"{100 * five.true_accept_rate:.1f} %" in line
    assert [line.split()[:2] for line in printed[-4:]] == [[name, "11"] for name in sorted(CLASSES)]

    assert read_manifest(dataset) == before.model_copy(update={"calibration": expected})
    assert verify(str(dataset)) == []
    assert read_calibration(str(out)) == read_calibration(str(dataset)) == expected
    content = (dataset / "manifest.json").read_bytes()
    assert main(["calibrate", str(dataset), "--write", "--json"]) == 0
    assert (dataset / "manifest.json").read_bytes() == content
    assert json.loads(capsys.readouterr().out)["auc"] == expected.auc


@pytest.mark.slow
def test_the_command_runs(dataset: Path) -> None:
    command = [sys.executable, "-m", "pipeline.agreement", "calibrate"]
    done = subprocess.run([*command, str(dataset)], capture_output=True, text=True, check=True)
    assert "44 clips of 44 sources, 4 classes" in done.stdout
    done = subprocess.run([*command, "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere/manifest.json does not exist")


def test_a_dataset_without_a_calibration_says_how_to_make_one(dataset: Path) -> None:
    with pytest.raises(
        CalibrationError, match=r"has no calibration: run python -m pipeline\.agreement calibrate .*built"
    ):
        read_calibration(str(dataset))


def change_table(dataset: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """``embeddings.parquet`` as somebody else might leave it."""
    path = dataset / "embeddings.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), path)


def test_numbers_that_are_none_are_refused_and_the_clip_named(dataset: Path) -> None:
    def spoil(columns: dict[str, list[Any]]) -> None:
        columns["sound"][3][2] = float("nan")

    change_table(dataset, spoil)
    with pytest.raises(CalibrationError, match=f"the sound embedding of clip {key_of(3)} is not finite"):
        calibrate_dataset(str(dataset))


def test_vectors_without_direction_are_left_out(dataset: Path) -> None:
    def clear(columns: dict[str, list[Any]]) -> None:
        columns["picture"][3] = [0.0] * WIDTH

    change_table(dataset, clear)
    found = calibrate_dataset(str(dataset))
    assert (found.num_clips, found.num_left_out) == (NUM_CLIPS - 1, 1)


def test_embeddings_of_another_pair_are_refused(dataset: Path) -> None:
    def rename(columns: dict[str, list[Any]]) -> None:
        columns["encoder_id"][7] = "pair-2"

    change_table(dataset, rename)
    with pytest.raises(CalibrationError, match="has embeddings of pair-2, the manifest names pair-1"):
        calibrate_dataset(str(dataset))


def test_a_clip_without_its_row_is_named(dataset: Path) -> None:
    def drop(columns: dict[str, list[Any]]) -> None:
        for column in columns.values():
            del column[5]

    change_table(dataset, drop)
    with pytest.raises(ManifestError, match=f"has no row of clip {key_of(5)}"):
        calibrate_dataset(str(dataset))


def test_a_damaged_or_missing_table_is_refused(dataset: Path) -> None:
    path = dataset / "embeddings.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ManifestError, match=r"embeddings\.parquet cannot be read"):
        calibrate_dataset(str(dataset))
    path.unlink()
    with pytest.raises(ManifestError, match=r"embeddings\.parquet cannot be read"):
        calibrate_dataset(str(dataset))
    (dataset / "samples.parquet").write_text("no table")
    with pytest.raises(ManifestError, match=r"samples\.parquet cannot be read"):
        calibrate_dataset(str(dataset))


def test_too_few_clips_end_with_the_number_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [clip_row(i) for i in range(8)]
    folder = built(tmp_path / "few", rows, [EmbeddingRow(key_of(i), "pair-1", *vectors(i)) for i in range(8)])
    assert main(["calibrate", str(folder), "--write"]) == 2
    assert "8 clips of 8 sources (4 classes)" in capsys.readouterr().err
    assert read_manifest(folder).calibration is None
    bare = built(tmp_path / "bare", rows, [], encoder_id=None)
    with pytest.raises(CalibrationError, match="has no embeddings: its recipe names no encoders"):
        calibrate_dataset(str(bare))
