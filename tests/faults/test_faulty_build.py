"""A build from a server that fails three times in ten ends with what a build from a good one ends with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.events import ignore
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots

NUM_GOOD = 10
RECIPE = """
name = "faulty"
output = "{output}"
sources = ["{sources}"]
probe = {{ min_short_side_px = 64 }}
clips = {{ length_seconds = 2.0, min_seconds = 1.5 }}
cut = {{ renditions = [{{ name = "64", short_side_px = 64 }}], preset = "ultrafast" }}
dedup = {{ reject_duplicates = false }}

[download]
retries = 8
backoff_seconds = 0.01
socket_timeout_seconds = 0.8
stall_seconds = 1.0
pause_after = 1000
max_per_host = 4
max_bytes = 2_000_000
retry_after_max_seconds = 5.0
"""
# a busy machine is no stall
PATIENT = ["download.retries=0", "download.socket_timeout_seconds=60.0", "download.stall_seconds=5.0"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(NUM_GOOD):
        path = folder / f"{number}.mp4"
        write_video(path, shots([2.0], size=(160, 96)), noise(2, seed=number), fps=FPS, faststart=True)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


def build(folder: Path, name: str, links: Sequence[str], changes: Sequence[str] = ()) -> Path:
    """Runs the build to its end. Returns the output."""
    rows = [json.dumps({"id": f"s{number:02d}", "url": link}) for number, link in enumerate(links)]
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    (folder / f"{name}.toml").write_text(RECIPE.format(output=folder / name, sources=folder / "list.jsonl"))
    running = Build(load_recipe(folder / f"{name}.toml", changes))
    try:
        running.check()
        for batch in running.plan().batches:
            running.run_batch(batch, ignore)
        running.finish(ignore)
    finally:
        running.close()
    return folder / name


def ends(output: Path, links: Sequence[str]) -> dict[str, str]:
    entries = [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]
    assert len(entries) == len(links)
    return {
        links[int(entry["source_id"][1:])].rpartition("/")[2]: (entry["failure"] or {}).get("code") or entry["state"]
        for entry in entries
    }


def files(output: Path) -> dict[str, bytes]:
    found = [*output.glob("shards/**/*"), *output.glob("*.json"), *output.glob("*.parquet"), output / "ledger.jsonl"]
    return {str(path.relative_to(output)): path.read_bytes() for path in found if path.is_file()}


def test_three_faulty_answers_in_ten_change_nothing(server: FaultyServer, videos: list[bytes], tmp_path: Path) -> None:
    links = [server.serve(f"/{number}.mp4", Answer(body=video)) for number, video in enumerate(videos)]
    clean = build(tmp_path, "clean", links)
    assert ends(clean, links) == {f"{number}.mp4": "kept" for number in range(NUM_GOOD)}
    asked = server.hits()
    server.disturb(0.3, seed=4)
    faulty = build(tmp_path, "faulty", links)
    for _ in range(2):
        if set(ends(faulty, links).values()) != {"kept"}:  # a busy machine may add stalls of its own
            faulty = build(tmp_path, "faulty", links)
    assert server.num_spoilt >= 0.2 * (server.hits() - asked)
    assert server.num_spoilt >= NUM_GOOD / 2
    expected = files(clean)
    expected["manifest.json"] = expected["manifest.json"].replace(b'"clean"', b'"faulty"')
    assert files(faulty).keys() == expected.keys()
    assert [
        name for name, content in files(faulty).items() if content != expected[name] and name != "ledger.jsonl"
    ] == []
    assert list((faulty / "state" / "tmp").iterdir()) == list((faulty / "state" / "downloads" / "tmp").iterdir()) == []


def test_what_no_other_try_can_mend_has_its_reason(server: FaultyServer, videos: list[bytes], tmp_path: Path) -> None:
    video = videos[0]
    with FaultyServer() as elsewhere:
        secret = elsewhere.serve("/secret.mp4", Answer(body=video))
        answers = {
            "good.mp4": ([Answer(body=video)], "kept"),
            "missing.mp4": ([Answer(status=404)], "http_404"),
            "forbidden.mp4": ([Answer(status=403)], "http_403"),
            "gone.mp4": ([Answer(status=410)], "http_410"),
            "busy.mp4": ([Answer(status=429, headers={"Retry-After": "9999"})], "http_429"),
            "down.mp4": ([Answer(status=503, headers={"Retry-After": "9999"})], "http_5xx"),
            "circle.mp4": ([Answer(status=302, headers={"Location": "/circle.mp4"})], "redirect_loop"),
            "file.mp4": ([Answer(status=302, headers={"Location": "file:///etc/passwd"})], "unsupported_url"),
            "inside.mp4": ([Answer(status=302, headers={"Location": secret})], "private_address"),
            "metadata.mp4": ([Answer(status=302, headers={"Location": "http://169.254.169.254/"})], "private_address"),
            "page.mp4": ([Answer(body=b"<!doctype html><html>gone</html>", content_type="text/html")], "not_media"),
            "kind.mp4": ([Answer(body=video, content_type="application/pdf")], "kept"),
            "short.mp4": ([Answer(body=video[: len(video) // 3])], "truncated"),
            "empty.mp4": ([Answer(body=b"")], "empty"),
            "endless.mp4": ([Answer(body=video, fault=Fault.ENDLESS)], "too_large"),
            "drip.mp4": ([Answer(body=video, fault=Fault.DRIP, fault_after=100, drip_seconds=0.1)], "stalled"),
        }
        links = [server.serve(f"/{name}", *given) for name, (given, _) in answers.items()]
        output = build(tmp_path, "permanent", links, [*PATIENT, "execution.downloads=8"])
        assert ends(output, links) == {name: end for name, (_, end) in answers.items()}
        assert elsewhere.hits() == 0
