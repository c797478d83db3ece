"""Everything that goes wrong at once: each bad source costs one entry of the ledger, and nothing else."""

import json
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.manifest import read_manifest
from pipeline.events import ignore
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots

HTML = b"<!doctype html><html><head><title>Not here</title></head><body>Gone fishing.</body></html>"
RECIPE = """
name = "bad"
output = "{output}"
sources = ["{sources}"]
probe = {{ min_short_side_px = 96 }}
clips = {{ length_seconds = 3.0, min_seconds = 2.5 }}
cut = {{ renditions = [{{ name = "96", short_side_px = 96 }}], preset = "ultrafast" }}
download = {{ retries = 0, stall_seconds = 1.0, socket_timeout_seconds = 2.0, pause_after = 1000 }}
dedup = {{ reject_duplicates = false }}
"""
HOSTILE_NAMES = [
    "two words.mp4",
    'it\'s "quoted".mp4',
    "line\nbreak.mp4",
    "-rf.mp4",
    "..hidden..mp4",
    "a" * 250 + ".mp4",
    "x.mp4?sig=1",
]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, shots([3.0]), noise(3, seed=5), fps=FPS, faststart=True, gop=25)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """Local files: what is bad by content, and what is good under a bad name."""
    folder = tmp_path_factory.mktemp("files")
    content = film.read_bytes()
    for name in HOSTILE_NAMES:
        (folder / name).write_bytes(content)
    (folder / "wrong.jpg").write_bytes(content)
    (folder / "text.mp4").write_text("no film at all\n" * 50)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    write_video(folder / "deaf.mp4", shots([3.0]), None, fps=FPS)
    write_video(folder / "blind.m4a", None, noise(3))
    (folder / "below").mkdir()
    return folder


def test_each_bad_source_costs_one_entry_and_nothing_else(folder: Path, film: Path, tmp_path: Path) -> None:
    content = film.read_bytes()
    with FaultyServer() as server:
        wanted = {
            server.serve("/good.mp4", Answer(body=content)): "kept",
            server.serve("/missing.mp4", Answer(status=404)): "http_404",
            server.serve("/forbidden.mp4", Answer(status=403)): "http_403",
            server.serve("/busy.mp4", Answer(status=429)): "http_429",
            server.serve("/stalled.mp4", Answer(body=content, fault=Fault.STALL, fault_after=2000)): "stalled",
            server.serve("/page.mp4", Answer(body=HTML, content_type="text/html")): "not_media",
            server.serve("/moved.mp4", Answer(status=302, headers={"Location": "/page.mp4"})): "not_media",
            server.serve("/half.mp4", Answer(body=content[: len(content) // 2])): "truncated",
            server.serve("/text.mp4", Answer(body=b"hello\n" * 300)): "not_media",
            server.serve("/nothing.mp4", Answer(body=b"")): "empty",
            server.serve("/..%2f..%2fetc%2fpasswd", Answer(body=content)): "kept",
        }
        wanted |= {str(folder / name): "kept" for name in [*HOSTILE_NAMES, "wrong.jpg", "below/../two words.mp4"]}
        wanted |= {
            str(folder / "text.mp4"): "not_media",
            str(folder / "zero.mp4"): "empty",
            str(folder / "cut.mp4"): "truncated",
            str(folder / "deaf.mp4"): "no_audio",
            str(folder / "blind.m4a"): "no_video",
            str(folder / "below"): "is_folder",
            str(folder / "absent.mp4"): "missing_file",
            str(folder / ("b" * 300 + ".mp4")): "missing_file",
        }
        rows = [
            json.dumps({"id": f"s{number:02d}", "url" if "://" in link else "path": link})
            for number, link in enumerate(wanted)
        ]
        (tmp_path / "list.jsonl").write_text("\n".join([*rows[:3], '{"url": "http://127.0.0.1/', *rows[3:]]) + "\n")
        (tmp_path / "bad.toml").write_text(RECIPE.format(output=tmp_path / "bad", sources=tmp_path / "list.jsonl"))
        build = Build(load_recipe(tmp_path / "bad.toml"))
        try:
            build.check()
            for batch in build.plan().batches:
                build.run_batch(batch, ignore)
            build.finish(ignore)
        finally:
            build.close()

    entries = [json.loads(line) for line in (tmp_path / "bad" / "ledger.jsonl").read_text().splitlines()]
    found = {entry["source_id"]: entry for entry in entries}
    assert len(found) == len(entries) == len(wanted) + 1
    outcome = {}
    for number, link in enumerate(wanted):
        entry = found[f"s{number:02d}"]
        failure = entry["failure"] or {}
        outcome[link] = failure.get("code") or entry["reason"] or entry["state"]
        assert entry["state"] == "kept" or failure.get("message") or entry["detail"], f"{link}: no word on why"
    assert outcome == wanted
    (bad_row,) = (entry for entry in entries if entry["source_id"].startswith("bad-row"))
    assert bad_row["listed_at"].endswith("list.jsonl:4")
    manifest = read_manifest(tmp_path / "bad")
    assert manifest.sources.states["kept"] == sum(state == "kept" for state in wanted.values())
    assert [file.name for file in tmp_path.iterdir() if file.name not in {"bad", "bad.toml", "list.jsonl"}] == []
    assert list((tmp_path / "bad" / "state" / "tmp").iterdir()) == []
