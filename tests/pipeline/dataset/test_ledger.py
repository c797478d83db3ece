"""What the ledger says of one link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.events import ignore
from pipeline.ledger import main
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, FaultyServer
from tests.footage import FPS, noise, shots

RECIPE = """
name = "told"
output = "{folder}/told"
sources = ["{folder}/list.jsonl"]
probe = {{ min_short_side_px = 64 }}
clips = {{ length_seconds = 2.0, min_seconds = 1.5 }}
cut = {{ renditions = [{{ name = "64", short_side_px = 64 }}], preset = "ultrafast" }}
download = {{ retries = 0, pause_after = 100 }}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A built dataset and the links of its sources."""
    folder = tmp_path_factory.mktemp("told")
    write_video(folder / "good.mp4", shots([2.0, 2.0], size=(160, 96)), noise(4), fps=FPS)
    write_video(folder / "deaf.mp4", shots([2.0], size=(160, 96)), None, fps=FPS)
    with FaultyServer() as server:
        links = {
            "good": server.serve("/good.mp4?sig=secret", Answer(body=(folder / "good.mp4").read_bytes())),
            "gone": server.serve("/gone.mp4", Answer(status=410)),
            "down": server.serve("/down.mp4", Answer(status=503)),
            "deaf": str(folder / "deaf.mp4"),
        }
        rows = [json.dumps({"id": name, "url" if "://" in link else "path": link}) for name, link in links.items()]
        (folder / "list.jsonl").write_text("\n".join([*rows, '{"id": "broken"}']) + "\n")
        (folder / "told.toml").write_text(RECIPE.format(folder=folder))
        build = Build(load_recipe(folder / "told.toml"))
        try:
            build.check()
            for batch in build.plan().batches:
                build.run_batch(batch, ignore)
            build.finish(ignore)
        finally:
            build.close()
    return folder / "told", links


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_kept_source_is_told_to_its_shards(
    told: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, links = told
    lines = shown(capsys, output, links["good"])
    assert lines[0] == "source     good"
    assert lines[1] == f"link       {links['good'].replace('secret', '***')}"
    assert lines[3] == "outcome    kept"
    assert lines[4].startswith("file       sha256 ")
    assert lines[6].startswith("seconds    fetch ")
    assert lines[8] == "  good_00000000_00001750  kept"
    assert lines[9].startswith("      0 to 1.75 s, ") and lines[9].endswith("-000000.tar")
    assert "speech_share 0" in lines[10]
    for other_way in ("good", "good_00000000_00001750", links["good"].replace("secret", "other")):
        assert shown(capsys, output, other_way) == lines


def test_what_failed_or_was_rejected_says_why_and_what_another_run_does(
    told: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, links = told
    outcome = "outcome    "
    assert outcome + (
        "failed at fetch: http_410: the server answered 410 Gone (another run would fail in the same way and "
        "tries again only with execution.try_failed_again=true)"
    ) in shown(capsys, output, links["gone"])
    assert outcome + (
        "failed at fetch: http_5xx: the server answered 503 Service Unavailable (another run tries again)"
    ) in shown(capsys, output, "down")
    assert outcome + "rejected: no_audio (the file has no sound track)" in shown(capsys, output, links["deaf"])
    entries = [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]
    (bad,) = (entry["source_id"] for entry in entries if entry["source_id"].startswith("bad-row"))
    lines = shown(capsys, output, bad)
    assert 'row        {"id": "broken"}' in lines
    assert any(line.startswith("outcome    failed at sources: bad_row: ") for line in lines)


def test_json_has_every_measure(told: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    output, _ = told
    (line,) = shown(capsys, output, "good", "--json")
    values = json.loads(line)
    assert values["state"] == "kept"
    assert values["timings"].keys() >= {"fetch", "measure", "cut"}
    assert values["measures"]["good_00000000_00001750"]["num_frames"] == 44


def test_what_is_not_there_is_said(
    told: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, _ = told
    assert main(["show", str(output), "http://elsewhere.example/?token=secret"]) == 1
    assert "http://elsewhere.example/?token=***: no source of" in capsys.readouterr().err
    assert main(["show", str(tmp_path), "good"]) == 2
    assert "does not exist: it is written when a build ends" in capsys.readouterr().err
    (tmp_path / "ledger.jsonl").write_text('{"source_id": "a"')
    assert main(["show", str(tmp_path), "good"]) == 2
    assert "ledger.jsonl:1 is damaged" in capsys.readouterr().err
    output = tmp_path / "damaged"
    shutil.copytree(told[0], output, ignore=shutil.ignore_patterns("state", "shards"))
    os.truncate(output / "samples.parquet", 1000)
    assert main(["show", str(output), "good"]) == 2
    assert f"error: {output}/samples.parquet cannot be read" in capsys.readouterr().err
