"""Which recipe is chosen where none is named, and what the command prints about it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.runtime.recipe_file import read_recipe
from trainer.choice import CANDIDATES, Circumstances, is_available, objections
from trainer.fit import main
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe
from trainer.rehearsal import paint_dataset

BIG = Circumstances("cuda", 80 * 10**9, 50_000, 1080)
MODEL, TAG = "ViT-B-32-quickgelu", "openai"


class Answers(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status if self.path.startswith("/timm/") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> str:
    """A server on loopback that has the encoders."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return address


def chosen(circumstances: Circumstances, needed_bytes: float = 24e9) -> str:
    """The name of the first candidate without objections."""
    for candidate in CANDIDATES:
        if not objections(candidate, read_recipe(FitRecipe, candidate.path), circumstances, needed_bytes):
            return candidate.name
    return "none"


def test_every_candidate_is_a_recipe_of_its_size() -> None:
    for candidate in CANDIDATES:
        recipe = read_recipe(FitRecipe, candidate.path)
        assert generator_config(recipe.prior).resolution == candidate.side_px
    assert [one.side_px for one in CANDIDATES] == sorted((one.side_px for one in CANDIDATES), reverse=True)


@pytest.mark.usefixtures("hub")
def test_device_clips_renditions_and_memory_decide() -> None:
    assert chosen(BIG) == "fit-1024"
    assert chosen(Circumstances("cuda", 80 * 10**9, 50_000, 360)) == "fit-256"
    assert chosen(Circumstances("cuda", 80 * 10**9, 3000, 1080)) == "fit-256"
    assert chosen(Circumstances("cuda", 80 * 10**9, 50_000, None)) == "fit-1024"
    assert chosen(Circumstances("cuda", 80 * 10**9, 25, 1080)) == "fit-tiny"
    assert chosen(Circumstances("cpu", 80 * 10**9, 50_000, 1080)) == "fit-tiny"
    reasons = objections(CANDIDATES[1], read_recipe(FitRecipe, CANDIDATES[1].path), BIG, 90e9)
    assert reasons == ["it needs about 90 GB of memory, and the device (cuda) has 80"]


def test_an_encoder_without_weights_is_an_objection_to_a_recipe(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_available(MODEL, TAG)
    monkeypatch.setattr(Answers, "status", 404)
    assert not is_available(MODEL, TAG)
    assert chosen(BIG) == "fit-tiny"
    (reason,) = objections(CANDIDATES[0], read_recipe(FitRecipe, CANDIDATES[0].path), BIG, 1e9)
    assert reason.startswith(f"the weights {TAG} of {MODEL} are not on this machine, and no server offers them")
    monkeypatch.setattr(Answers, "status", 200)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_available(MODEL, TAG)
    assert hub


@pytest.mark.slow
def test_the_command_prints_its_choice_and_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint_dataset(tmp_path / "sets" / "painted")
    words = ["--shards", str(tmp_path / "sets"), "--set", "reader.upscale=true", "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr().out
    first, larger, large = output.splitlines()[:3]
    assert first.startswith("recipe   fit-tiny, videos of 64 pixels, about ")
    assert "20 clips to train on, pictures of 32 pixels, a cpu device with" in first
    assert larger.startswith("         not fit-1024, videos of 1024 pixels, about ")
    assert large.startswith("         not fit-256, videos of 256 pixels, about ")
    for line in (larger, large):
        assert "there is no GPU; it needs " in line and "clips, and there are 20; it needs a rendition of " in line
    assert '"name": "tiny"' in output
    assert "cost     total: " in output and "an estimate, from counted operations and" in output

    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps({"run": {"name": "256"}}))
    assert main([*words, "--out", str(run)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("recipe   fit-256, videos of 256 pixels")
    assert f": {run} was started with it" in output.splitlines()[0]
    assert '"name": "256"' in output
