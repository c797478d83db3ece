"""Marked secrets go into a build wherever a user has any, and come out nowhere: not in what it writes, logs, or tells Prefect."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL
from rich.console import Console

from flows.dataset_flow import build_dataset
from flows.direct import run_now
from pipeline.build.recipe import load_recipe
from pipeline.errors import RecipeError
from pipeline.ledger import main as ledger_main
from tests.faulty_server import Answer, FaultyServer

pytestmark = pytest.mark.usefixtures("prefect_harness")

MARK = "HUSH"
SIGNED = f"http://media.example/%s?X-Amz-Signature={MARK}a&X-Amz-Credential={MARK}b&policy={MARK}c&id=7"
RECIPE = """
name = "hushed"
output = "{folder}/hushed"
sources = ["file://{folder}/list.jsonl?sig=HUSHd", "{folder}/more.csv"]
download = {{ proxy = "$OUR_PROXY", cookies_file = "{folder}/cookies.txt", retries = 0, pause_after = 100, socket_timeout_seconds = 5.0 }}
probe = {{ min_short_side_px = 200 }}
clips = {{ length_seconds = 4.0, min_seconds = 3.0 }}
cut = {{ renditions = [{{ name = "128", short_side_px = 128 }}], preset = "ultrafast" }}
execution = {{ workers = 1, min_free_bytes = 0 }}
"""
COOKIES = f"# Netscape HTTP Cookie File\nmedia.example\tFALSE\t/\tFALSE\t0\tsession\t{MARK}e\n"


@pytest.fixture
def server(video: Path) -> Iterator[FaultyServer]:
    """The proxy: asked for whole URLs. What it says of itself holds secrets as well."""
    with FaultyServer() as running:
        running.serve(SIGNED % "waves.mp4", Answer(body=video.read_bytes()))
        running.serve(SIGNED % "html", Answer(body=b"<html>no film</html>", content_type="text/html"))
        moved = {"Location": f"http://media.example/gone?token={MARK}f", "Set-Cookie": f"s={MARK}g"}
        running.serve(SIGNED % "moved.mp4", Answer(status=302, headers=moved))
        running.serve(SIGNED % "local.mp4", Answer(status=302, headers={"Location": f"file:///x?secret={MARK}h"}))
        yield running


@pytest.fixture
def recipe(tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUR_PROXY", f"http://me:{MARK}i@127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    links = [SIGNED % name for name in ("waves.mp4", "html", "moved.mp4", "local.mp4", "missing.mp4")]
    links.append(f"http://someone:{MARK}j@media.example/private.mp4")
    links.append(f"nonsense://someone:{MARK}k@media.example/a?sig={MARK}l")
    rows = [json.dumps({"id": f"s{number}", "url": link}) for number, link in enumerate(links)]
    rows += [f'{{"url": "{SIGNED % "broken"}"', json.dumps({"id": "s0", "url": SIGNED % "same-id"})]
    (tmp_path / "list.jsonl?sig=HUSHd").write_text("\n".join(rows) + "\n")
    shutil.copy(tmp_path / "list.jsonl?sig=HUSHd", tmp_path / "list.jsonl")
    (tmp_path / "more.csv").write_text(f"url,start\n{SIGNED % 'late.mp4'},never\n")
    (tmp_path / "cookies.txt").write_text(COOKIES)
    (tmp_path / "hushed.toml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path / "hushed.toml"


def test_no_secret_leaves_the_build(
    recipe: Path,
    server: FaultyServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    caplog.set_level(logging.DEBUG, "pipeline")
    caplog.set_level(logging.DEBUG, "flows")
    summary = run_now(load_recipe(recipe), Console(stderr=True))
    output = recipe.parent / "hushed"
    assert ledger_main(["show", str(output), SIGNED % "waves.mp4"]) == 0

    entries = [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]
    codes = sorted((entry["failure"] or {}).get("code") or entry["state"] for entry in entries)
    assert codes == [
        *["bad_row"] * 4, "http_404", "http_404", "http_404", "kept", "not_media", "unsupported_url"
    ]  # fmt: skip
    # the secrets were there: they were sent
    sent = [hit for hit in server.requests if MARK in hit.path]
    assert any(f"session={MARK}e" in hit.headers.get("Cookie", "") for hit in sent)
    assert all("Proxy-Authorization" in hit.headers for hit in sent)

    told = [record.getMessage() for record in caplog.records]
    assert len(told) > 10
    out, err = capfd.readouterr()
    assert "waves" in out
    assert not [text for text in [*told, out, err, summary.to_markdown(), str(summary.rows)] if MARK in text]
    files = [path for path in output.rglob("*") if path.is_file() and "state" not in path.relative_to(output).parts]
    assert len(files) >= 6
    assert not [path.name for path in files if MARK.encode() in path.read_bytes()]
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if "hushed" in run.name]
        assert [run.parameters["recipe"]["name"] for run in runs] == ["hushed"]
        assert MARK not in json.dumps(runs[0].parameters)
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    databases = list(database.parent.glob(f"{database.name}*"))  # with what is not yet written back
    assert any(b"hushed" in path.read_bytes() for path in databases)
    assert not [path.name for path in databases if MARK.encode() in path.read_bytes()]


def test_a_recipe_that_is_typed_with_a_secret_is_refused(recipe: Path) -> None:
    """Prefect has stored it by then: the user must know."""
    state = build_dataset(load_recipe(recipe), return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "delete the run, write the recipe to a file" in state.message
    assert MARK not in state.message
    assert not (recipe.parent / "hushed").exists()


def test_a_recipe_with_a_password_is_refused_without_repeating_it(recipe: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"download\.proxy: .*environment variable.*OUR_PROXY|HEARSCAPE_PROXY"
    ) as caught:
        load_recipe(recipe, [f"download.proxy=me:{MARK}@127.0.0.1:3128", f'judge={{ x = "http://a:{MARK}@b" }}'])
    assert MARK not in str(caught.value)
