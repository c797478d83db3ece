import fcntl
import functools
import hashlib
import http.server
import os
import pickle
import socket
import sys
import threading
import types
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoders.weights import (
    cached_path,
    default_cache_dir,
    file_sha256,
    load_into,
    read_state_dict,
    resolve_weights,
)
from pipeline.errors import EncoderError
from tests.needs import needs_proc

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/short"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.pt").write_bytes(CONTENT)
    handler = type("Recording", (Handler,), {"asked": []})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield types.SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", asked=handler.asked)
        running.shutdown()
        thread.join()


def test_a_path_is_itself_and_its_sum_is_checked(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(CONTENT)
    assert resolve_weights(str(path)) == path
    assert resolve_weights(str(path), SHA256.upper()) == path
    with pytest.raises(EncoderError, match=f"sound_weights: .* has SHA-256 {SHA256}, the recipe says {OTHER}"):
        resolve_weights(str(path), OTHER, field="sound_weights")


def test_a_missing_file_names_the_field(tmp_path):
    with pytest.raises(EncoderError, match=r"^encoders\.sound_weights: there is no file 'nowhere.pt'"):
        resolve_weights("nowhere.pt", field="encoders.sound_weights")


def test_a_url_is_fetched_once(server, tmp_path):
    cache = tmp_path / "cache"
    first = resolve_weights(f"{server.url}/weights.pt?download=1", SHA256, cache)
    assert first == cache / f"{SHA256}.pt"
    assert first.read_bytes() == CONTENT
    assert resolve_weights(f"{server.url}/weights.pt?download=1", SHA256, cache) == first
    assert server.asked == ["/weights.pt?download=1"]
    assert list(cache.iterdir()) == [first]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    first = resolve_weights(f"{server.url}/weights.pt", SHA256, tmp_path)
    first.write_bytes(CONTENT[:-1])
    assert resolve_weights(f"{server.url}/weights.pt", SHA256, tmp_path).read_bytes() == CONTENT


def test_a_url_needs_its_sum(tmp_path):
    with pytest.raises(EncoderError, match="needs its SHA-256"):
        resolve_weights("http://127.0.0.1:1/weights.pt", None, tmp_path)


def test_another_file_than_the_sum_says_is_not_kept(server, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(EncoderError, match=f"SHA-256 {SHA256}, wanted {OTHER}; not kept"):
        resolve_weights(f"{server.url}/weights.pt", OTHER, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"), [("absent.pt", "answered 404"), ("short.pt", "gave 1000 bytes|cannot fetch")]
)
def test_a_failed_fetch_leaves_nothing(server, tmp_path, name, message):
    cache = tmp_path / "cache"
    with pytest.raises(EncoderError, match=message):
        resolve_weights(f"{server.url}/{name}", SHA256, cache)
    assert list(cache.iterdir()) == []


def test_what_a_killed_fetch_left_is_removed_and_one_that_runs_is_not(server, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("killed", "running", "begun"):
        (cache / f".fetching-{name}").write_bytes(b"half")
    for name in ("killed", "running"):
        os.utime(cache / f".fetching-{name}", (1.0, 1.0))
    with (cache / ".fetching-running").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetched = resolve_weights(f"{server.url}/weights.pt", SHA256, cache)
    assert {path.name for path in cache.iterdir()} == {fetched.name, ".fetching-running", ".fetching-begun"}


@pytest.mark.slow
def test_offline_says_where_to_put_the_file_by_hand(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.safetensors"
    by_hand = cached_path(url, SHA256, tmp_path / "cache")
    with pytest.raises(EncoderError) as caught:
        resolve_weights(url, SHA256, tmp_path / "cache", field="picture_weights")
    assert f"put it at {by_hand}, or set picture_weights to the path of a local copy" in str(caught.value)
    by_hand.write_bytes(CONTENT)
    assert resolve_weights(url, SHA256, tmp_path / "cache") == by_hand


def test_any_fsspec_url(tmp_path):
    fsspec.filesystem("memory").pipe("/store/weights.bin", CONTENT)
    assert resolve_weights("memory://store/weights.bin", SHA256, tmp_path).read_bytes() == CONTENT
    with pytest.raises(EncoderError, match="cannot fetch nonsense://weights"):
        resolve_weights("nonsense://weights.pt", SHA256, tmp_path)


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("HEARSCAPE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "weights"
    monkeypatch.delenv("HEARSCAPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "hearscape" / "weights"


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_state_dicts_of_every_kind_are_read(tmp_path, wrap):
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not legacy)
        read = read_state_dict(path)
        assert list(read) == list(STATE)
        assert all(torch.equal(read[name], STATE[name]) for name in STATE)


def test_safetensors_are_known_by_content(tmp_path):
    path = tmp_path / "misnamed.pt"
    save_file(STATE, path)
    assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


class Evaluating:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (eval, (f"open({str(self.target)!r}, 'w')",))


@pytest.mark.parametrize("kind", [Hostile, Evaluating])
@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_pickled_code_never_runs(tmp_path, kind, how):
    target, path = tmp_path / "was run", tmp_path / "hostile.pt"
    content = {**STATE, "c": kind(target)}
    if how == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(EncoderError, match="wants to run"):
        read_state_dict(path)
    assert not target.exists()


def test_a_checkpoint_of_lightning_gives_its_weights_without_lightning(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.early_stopping")

    class EarlyStopping:
        pass

    EarlyStopping.__module__, EarlyStopping.__qualname__ = module.__name__, "EarlyStopping"
    module.EarlyStopping = EarlyStopping
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "last.ckpt"
    stopping = EarlyStopping()
    stopping.patience = 3
    torch.save({"state_dict": STATE, "callbacks": {EarlyStopping: {"best": 1}}, "object": stopping}, path)
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    assert list(read_state_dict(path)) == list(STATE)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_and_overwritten_files_are_refused(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    (torch.save if suffix == ".pt" else save_file)(STATE, whole)
    content = whole.read_bytes()
    path = tmp_path / f"broken{suffix}"
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(EncoderError, match="broken"):
            read_state_dict(path)


def test_bytes_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "page.pt"
    for content in (
        b"<!DOCTYPE html><html>Not found</html>",
        b"PK\x03\x04 and then nothing",
        b"\x80\x02}q\x00.",
        b"12345678{",
    ):
        path.write_bytes(content)
        with pytest.raises(EncoderError, match=r"page\.pt"):
            read_state_dict(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1.5, "b": "text"}, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(EncoderError, match="save the network's state_dict"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
        (torch.zeros(2, 2, device="meta"), "a shape without numbers"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, tensor, kind):
    torch.save({**STATE, "odd": tensor}, tmp_path / "odd.pt")
    with pytest.raises(EncoderError, match=f"odd is {kind}"):
        read_state_dict(tmp_path / "odd.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch would rather have other archives made
def test_a_torchscript_archive_is_told_from_a_damaged_file(tmp_path):
    """OpenAI's own files are such archives."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(EncoderError, match=r"is a TorchScript archive, .* Name the tag 'openai' instead"):
        read_state_dict(tmp_path / "ViT-B-32.pt")


@needs_proc
def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(EncoderError, match=r"^/proc/self/mem cannot be read: Input/output error"):
        file_sha256(Path("/proc/self/mem"))


def test_whole_numbers_are_no_weights():
    network = torch.nn.Linear(3, 2)
    state = {name: tensor.int() for name, tensor in network.state_dict().items()}
    with pytest.raises(EncoderError, match=r"weight holds whole numbers \(torch.int32\), wanted torch.float32"):
        load_into(network, state, Path("w.pt"))


def test_the_first_mismatches_are_named(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = dict(network.state_dict())
    del state["1.num_batches_tracked"]
    load_into(network, state, tmp_path)
    state |= {"0.weight": torch.ones(2, 4), "9.bias": torch.ones(1)}
    del state["0.bias"]
    with pytest.raises(EncoderError) as caught:
        load_into(network, state, Path("w.pt"))
    assert str(caught.value) == (
        "w.pt does not fit Sequential: 0.bias is missing; 9.bias is not part of the network; "
        "0.weight has shape (2, 4), wanted (2, 3)"
    )


def test_nan_in_the_weights_is_named():
    network = torch.nn.Linear(3, 2)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["weight"][0, 0] = float("nan")
    with pytest.raises(EncoderError, match=r"w\.pt is damaged: weight holds NaN"):
        load_into(network, state, Path("w.pt"))
