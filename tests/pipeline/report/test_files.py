"""The files of a report: written whole, read by those they are for, and refused clearly where there is nothing to report."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCardData

from pipeline.dataset.tables import ClipRow, write_samples
from pipeline.dataset.verify import verify
from pipeline.errors import ManifestError, OutputError, ReportError
from pipeline.report.__main__ import main
from pipeline.report.gallery import GallerySettings
from pipeline.report.make import ReportSettings, make_report
from pipeline.report.page import script_json
from pipeline.runtime.folder import Folder
from pipeline.schema import State
from tests.reported import HOSTILE, KOREAN, LABELS, RECIPE, make_rows, write_dataset, write_previews

Make = Callable[..., tuple[Folder, list[ClipRow]]]
FEW = ReportSettings(gallery=GallerySettings(max_clips=6))


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_report_is_four_files_beside_the_manifest(dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = dataset(60)
    assert main([folder.url, "--clips", "8"]) == 0
    printed = capsys.readouterr().out.split()
    assert [path.rsplit("/", 1)[1] for path in printed] == ["report.html", "report.json", "README.md", "croissant.json"]
    facts = json.loads(Path(printed[1]).read_text())
    assert facts["headline"]["num_kept"] == sum(row.state is State.KEPT for row in rows)
    data = data_of(Path(printed[0]).read_text())
    assert data["facts"] == facts
    assert len(data["gallery"]["clips"]) == 8
    for clip in data["gallery"]["clips"]:
        assert (clip["strip"] is not None) is (clip["state"] == "kept"), clip["key"]  # there are no previews here
    assert verify(folder.url) == []


def test_an_earlier_build_is_compared_and_out_is_written_to(dataset: Make, tmp_path: Path) -> None:
    before, _ = dataset(40, "before")
    now, _ = dataset(44, "now")
    assert main([now.url, "--compare", before.url, "--out", str(tmp_path / "out"), "--clips", "0"]) == 0
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert (facts["compare"]["other"], facts["compare"]["num_only_now"]) == ("before", 4)
    assert not now.exists("report.html")


def test_rejected_clips_are_shown_from_their_previews(dataset: Make) -> None:
    folder, rows = dataset(60)
    row = next(row for row in rows if row.state is State.REJECTED and row.start_ms > 0)
    write_previews(folder, row)
    data = data_of(Path(make_report(folder.url).page).read_text())
    shown = {clip["key"]: clip for clip in data["gallery"]["clips"]}
    assert shown[row.key]["strip"].startswith("data:image/webp;base64,")
    assert shown[row.key]["spectrum"].startswith("data:image/webp;base64,")


def test_the_page_asks_for_nothing_and_runs_nothing_else(dataset: Make) -> None:
    folder, _ = dataset(30)
    page = Path(make_report(folder.url, settings=FEW).page).read_text()
    without_data = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", without_data)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'none'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert page.count("<script") == page.count("</script>") == 3
    assert json.loads(script_json({"a": HOSTILE})) == {"a": HOSTILE}


def test_the_page_keeps_to_its_size(dataset: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = dataset(60)
    whole = Path(make_report(folder.url).page).stat().st_size
    limit = whole - 20_000
    small = Path(
        make_report(
            folder.url, settings=ReportSettings.model_construct(**{**dict(ReportSettings()), "max_page_bytes": limit})
        ).page
    )
    assert small.stat().st_size <= limit
    strips = [clip["strip"] for clip in data_of(small.read_text())["gallery"]["clips"]]
    assert None in strips
    assert "too large" in caplog.text


def test_the_card_has_front_matter_that_hugging_face_reads(dataset: Make) -> None:
    folder, rows = dataset(60)
    make_report(folder.url, settings=FEW)
    card = folder.read_bytes("README.md").decode()
    _, front, text = card.split("---\n", 2)
    values = yaml.safe_load(front)
    data = DatasetCardData(**values)
    assert data.pretty_name == "synthetic"
    assert data.license == ["cc-by-4.0", "other"]
    assert data.size_categories == ["n<1K"]
    assert values["configs"][0]["data_files"][0] == {"split": "train", "path": "shards/144/train-*.tar"}
    for entry in values["configs"][0]["data_files"]:
        assert folder.local_path is not None
        assert list(folder.local_path.glob(entry["path"])), entry
    assert KOREAN in text
    assert "<img" not in text  # a hostile label stays text
    kept = sum(row.state is State.KEPT for row in rows)
    assert f"{kept} clips of landscape video" in text


def test_mlcroissant_reads_the_description_and_the_rows(dataset: Make) -> None:
    folder, rows = dataset(30)
    make_report(folder.url, settings=FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies
        import mlcroissant

        described = mlcroissant.Dataset(jsonld=f"{folder}/croissant.json")
        records = list(described.records("clips"))
    assert described.metadata.ctx.issues.errors == set()
    assert {file.uuid for file in described.metadata.distribution if file.uuid.endswith(".tar")} == {
        name for name in folder.walk("shards") if name.endswith(".tar")
    }
    assert {record["clips/key"].decode() for record in records} == {row.key for row in rows}
    by_key = {record["clips/key"].decode(): record for record in records}
    assert [label.decode() for label in by_key[rows[0].key]["clips/labels"]] == list(rows[0].labels)
    assert rows[1].picture is not None
    assert by_key[rows[1].key]["clips/motion"] == rows[1].picture.motion


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"\x00" * 4096])
def test_a_damaged_table_is_refused(dataset: Make, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    folder, _ = dataset(20)
    folder.write_bytes("samples.parquet", content)
    assert main([folder.url]) == 2
    assert re.search(
        r"error: .*samples\.parquet cannot be read, it is damaged: .*; run the build again", capsys.readouterr().err
    )


def test_a_table_cut_short_is_refused(dataset: Make) -> None:
    folder, _ = dataset(200)
    content = folder.read_bytes("samples.parquet")
    folder.write_bytes("samples.parquet", content[: len(content) // 3] + content[-2000:])
    with pytest.raises(ReportError, match="damaged"):
        make_report(folder.url)


def test_what_is_missing_or_of_another_version_is_refused(dataset: Make, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no dataset was built there"):
        make_report(str(tmp_path))
    with pytest.raises(ReportError, match="is no folder"):
        make_report(str(tmp_path / "nowhere"))
    folder, _ = dataset(20)
    folder.remove("samples.parquet")
    with pytest.raises(ReportError, match=r"samples\.parquet does not exist"):
        make_report(folder.url)
    folder.write_bytes("samples.parquet", b"")
    manifest = json.loads(folder.read_bytes("manifest.json"))
    folder.write_json("manifest.json", {**manifest, "schema_version": 99})
    with pytest.raises(ManifestError, match="schema version 99"):
        make_report(folder.url)


def test_another_parquet_is_not_taken_for_the_clips(dataset: Make) -> None:
    folder, _ = dataset(20)
    folder.write_bytes("samples.parquet", folder.read_bytes("embeddings.parquet"))
    with pytest.raises(ReportError, match="no column source_id, state, start_ms, end_ms"):
        make_report(folder.url)


def test_an_output_that_cannot_be_written_is_refused(dataset: Make, tmp_path: Path) -> None:
    folder, _ = dataset(20)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        make_report(folder.url, str(tmp_path / "file"))


def test_damaged_embeddings_and_ledger_are_told_and_cost_only_their_part(
    dataset: Make, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = dataset(30)
    folder.write_bytes("embeddings.parquet", b"nothing")
    folder.write_bytes("ledger.jsonl", folder.read_bytes("ledger.jsonl") + b'{"source_id": "cut\n[1]\n')
    folder.remove("timings.jsonl")
    facts = make_report(folder.url, settings=FEW).facts
    assert facts["agreement"]["problem"].startswith("embeddings.parquet cannot be read, it is damaged")
    assert "2 lines of ledger.jsonl cannot be read and are left out." in facts["notes"]
    assert facts["timings"]["stages"] == []
    assert facts["funnel"]["sources"]["total"] == 18
    folder.remove("ledger.jsonl")
    folder.remove("embeddings.parquet")
    facts = make_report(folder.url, settings=FEW).facts
    assert facts["agreement"]["problem"].startswith("embeddings.parquet is missing")
    assert "ledger.jsonl is missing: what became of the sources is not shown." in facts["notes"]


def test_a_build_that_kept_nothing_has_a_report(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "none")
    rows = [row for row in make_rows(100) if row.state is State.REJECTED]
    write_samples(rows, folder)
    report = make_report(folder.url, recipe=RECIPE)
    assert report.facts["notes"][0].startswith("No clip was kept")
    assert report.facts["headline"]["num_kept"] == 0
    assert report.facts["name"] == "synthetic"
    assert next(m for m in report.facts["measures"] if m["name"] == "speech_share")["threshold"] == 0.3
    assert [path.rsplit("/", 1)[1] for path in report.files] == ["report.html", "report.json", "README.md"]


def test_one_clip_and_no_clip_at_all(tmp_path: Path) -> None:
    one = Folder(tmp_path / "one")
    row = next(row for row in make_rows(20) if row.state is State.KEPT)
    write_dataset(one, [row])
    facts = make_report(one.url).facts
    assert facts["headline"]["num_kept"] == 1
    assert facts["agreement"]["problem"] == "Wrong pairs need clips of two sources and two classes."
    none = Folder(tmp_path / "none")
    write_samples([], none)
    facts = make_report(none.url).facts
    assert (facts["measures"], facts["headline"]["num_clips"], facts["classes"]["listed"]) == ([], 0, [])


def test_a_dataset_that_is_elsewhere_is_read_and_written_there() -> None:
    folder = Folder("memory://reported/now")
    rows = make_rows(30)
    write_dataset(folder, rows)
    report = make_report(folder.url, settings=FEW)
    assert report.page == "memory://reported/now/report.html"
    assert folder.exists("report.html")
    shown = data_of(folder.read_bytes("report.html").decode())["gallery"]["clips"]
    assert [clip["strip"] is not None for clip in shown] == [clip["state"] == "kept" for clip in shown]
    folder.remove("")


def test_labels_of_any_kind_are_counted(dataset: Make) -> None:
    folder, rows = dataset(60)
    facts = make_report(folder.url, settings=FEW).facts
    listed = {entry["label"]: entry["kept"] for entry in facts["classes"]["listed"]}
    assert listed == {label: sum(label in row.labels for row in rows if row.state is State.KEPT) for label in LABELS}


def test_a_damaged_shard_costs_its_pictures(dataset: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = dataset(30)
    for name in list(folder.walk("shards")):
        if name.endswith(".tar"):
            folder.write_bytes(name, b"\0" * len(folder.read_bytes(name)))
    data = data_of(Path(make_report(folder.url, settings=FEW).page).read_text())
    assert [clip["strip"] for clip in data["gallery"]["clips"]] == [None] * 6
    assert "cannot be read" in caplog.text
    for name in list(folder.walk("shards")):
        folder.remove(name)
    caplog.clear()
    assert data_of(Path(make_report(folder.url, settings=FEW).page).read_text())["gallery"]["clips"][0]["strip"] is None
    assert len([record for record in caplog.records if "the index of" in record.message]) == 1
