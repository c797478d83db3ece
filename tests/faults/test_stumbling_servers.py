"""Commands that read a built dataset, or weights, from a server which fails now and then: they ask again, and say the same in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline import ledger
from pipeline.agreement import __main__ as calibration_command
from pipeline.encoders.weights import file_sha256, resolve_weights
from pipeline.errors import EncoderError, ManifestError
from pipeline.report.__main__ import main as report_main
from pipeline.runtime.folder import Folder
from pipeline.runtime.remote import Retries
from pipeline.runtime.remote_folder import RemoteFolder, read_folder
from tests import paired
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.reported import make_rows, write_dataset
from tests.trainer.sounding import saved_run
from trainer import evaluate
from trainer.proof.evaluation import locations_with

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PAUSE = 0.01


def stumbling(body: bytes) -> list[Answer]:
    """Answers that another request does not meet again, and then the right one."""
    half = len(body) // 2
    if len(body) > 50_000:  # a shard: the faulty answers are whole files, as of a server without range requests
        return [Answer(status=503), Answer(status=500), Answer(body=body)]
    return [
        Answer(status=503),
        Answer(body=body, fault=Fault.RESET, fault_after=half),
        Answer(body=body, fault=Fault.TRUNCATE, fault_after=half),
        Answer(body=body),
    ]


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.remote.time.sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write_dataset(Folder(str(folder)), [row for row in make_rows(120) if row.agreement])
    return folder


def serve(server: FaultyServer, folder: Path) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            server.serve(f"/data/{path.relative_to(folder)}", *stumbling(path.read_bytes()))
    listing = Answer(body=b'<a href="manifest.json">manifest.json</a>', content_type="text/html")
    server.serve("/data/", Answer(status=503), listing)
    return server.url("/data")


def printed(command: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert command(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_calibrate_and_ledger(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (calibration_command.main, ["calibrate", "{}", "--json"]),
        (ledger.main, ["show", "{}", "source000", "--json"]),
    ]
    for command, words in commands:
        with FaultyServer() as server:
            url = serve(server, dataset)
            here = printed(command, [word.format(dataset) for word in words], capsys)
            assert printed(command, [word.format(url) for word in words], capsys) == here


def test_report_and_comparison(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultyServer() as server:
        url = serve(server, dataset)
        printed(report_main, [url, "--compare", url, "--out", str(tmp_path / "there"), "--clips", "1"], capsys)
        printed(report_main, [str(dataset), "--out", str(tmp_path / "here"), "--clips", "1"], capsys)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("here", "there")]
    assert cards[0].replace(str(dataset), "") == cards[1].replace(url, "")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paired.build_paired(tmp_path / "set", {"train": 1, "validation": 1})
    saved_run(tmp_path / "run")
    words = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--set", "encoders.device=cpu", "--clips", "4"]
    here = printed(evaluate.main, [*words, "--shards", str(tmp_path / "set")], capsys)
    with FaultyServer() as server:
        url = serve(server, tmp_path / "set")
        assert printed(evaluate.main, [*words, "--shards", url], capsys) == here
        server.serve("/data/manifest.json", Answer(status=500))
        assert evaluate.main([*words, "--shards", url, "--set", "retries.num=1"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {url}/manifest.json: it cannot be read: HTTP 500")


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARSCAPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.pt"
    file.write_bytes(bytes(range(256)) * 400)
    with FaultyServer() as server:
        answer = Answer(body=file.read_bytes())
        url = server.serve("/w.pt", *stumbling(answer.body))
        assert resolve_weights(url, file_sha256(file)).read_bytes() == answer.body
        server.serve("/w.pt", Answer(status=404))
        before = server.hits("/w.pt")
        with pytest.raises(EncoderError, match="answered 404"):
            resolve_weights(url, "0" * 64)
        assert server.hits("/w.pt") == before + 1


def test_a_server_that_stays_away_is_not_taken_for_an_empty_folder(dataset: Path) -> None:
    at_once = Retries(num=1, pause_seconds=PAUSE)
    with FaultyServer() as server:
        url = serve(server, dataset)
        folder = read_folder(url, at_once)
        assert isinstance(folder, RemoteFolder)
        server.serve("/data/manifest.json", Answer(body=b"{}"))
        assert folder.exists("manifest.json")
        assert not folder.exists("no.json")
        server.serve("/data/manifest.json", Answer(status=503))
        with pytest.raises(Exception, match="503"):
            folder.exists("manifest.json")
        with pytest.raises(ManifestError, match=r"manifest\.json: it cannot be read: HTTP 503"):
            locations_with(url, "train", at_once)
