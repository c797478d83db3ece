"""Damaged and hostile checkpoints, and sounds that are none: generate, evaluate, convert and sample say so in a line, and run nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.trainer.sounding import GENERATOR, saved_run, tone
from tests.unreadable import permissions_count
from trainer import evaluate, generate
from trainer.model import convert, sample
from trainer.model.generator import build_generator
from trainer.model.load import save_generator

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a generator of its own, and a sound."""
    folder = tmp_path_factory.mktemp("made")
    saved_run(folder / "run")
    torch.manual_seed(0)
    save_generator(folder / "generator.safetensors", GENERATOR, build_generator(GENERATOR))
    soundfile.write(folder / "tone.wav", tone(440, 0.5), 44_100)
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/hearscape-was-run",)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nulled(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path) -> None:
    path.chmod(0)


def a_pickle_with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"G_ema": Evil()}))


def a_torch_file_with_code(path: Path) -> None:
    torch.save({"g_ema": Evil()}, path)


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def a_deep_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def _again(path: Path, tensors: dict[str, torch.Tensor] | None = None, header: Callable[[str], str] = str) -> None:
    """The same file with other tensors, or another header."""
    with safe_open(path, framework="pt") as opened:
        metadata = {name: header(text) for name, text in opened.metadata().items()}
    save_file(load_file(path) if tensors is None else tensors, path, metadata=metadata)


def of_nan(path: Path) -> None:
    _again(path, {name: tensor * float("nan") for name, tensor in load_file(path).items()})


def of_other_shapes(path: Path) -> None:
    _again(path, {name: tensor.reshape(-1)[:1].clone() for name, tensor in load_file(path).items()})


def of_whole_numbers(path: Path) -> None:
    _again(path, {name: tensor.to(torch.int32) for name, tensor in load_file(path).items()})


def with_a_deep_header(path: Path) -> None:
    _again(path, header=lambda _: "[" * 100_000)


def with_another_header(path: Path) -> None:
    _again(path, header=lambda _: "5")


def of_a_network_that_no_machine_holds(path: Path) -> None:
    def wide(text: str) -> str:
        values = json.loads(text)
        values["generator"] |= {"w_dim": 65536, "z_dim": 65536}
        if "model" in values:
            values["model"]["hidden_width"] = 65536
        return json.dumps(values)

    _again(path, header=wide)


DAMAGES = [
    halved, nulled, emptied, a_folder, unreadable, a_pickle_with_code, a_torch_file_with_code, deep, a_deep_pickle, of_nan,
    of_other_shapes, of_whole_numbers, with_a_deep_header, with_another_header, of_a_network_that_no_machine_holds,
]  # fmt: skip


def refused(command: Callable[[list[str]], int], words: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with permissions_count():
        assert command([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_hostile_model(damage: Damage, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = files / "run" / "video" / "best.safetensors"
    damage(checkpoint)
    said = [["--sound", files / "tone.wav", "--out", files / "out.mp4", "--device", "cpu"], ["--shards", files]]
    for command, words in zip((generate.main, evaluate.main), said, strict=True):
        err = refused(command, ["--checkpoint", checkpoint, *words], capsys)
        assert str(checkpoint) in err
    assert not (files / "out.mp4").exists()
    assert not Path("/tmp/hearscape-was-run").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pkl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_hostile_generator(damage: Damage, suffix: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = files / f"hostile{suffix}", files / "converted.safetensors"
    shutil.copy(files / "generator.safetensors", path)
    target.write_text("was there before")
    damage(path)
    assert str(path) in refused(convert.main, [path, target], capsys)
    assert target.read_text() == "was there before"
    assert str(path) in refused(sample.main, [path, "--out", files / "grid.png"], capsys)
    assert not (files / "grid.png").exists()
    assert not Path("/tmp/hearscape-was-run").exists()


def test_a_window_that_is_too_short_for_its_segments(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = files / "run" / "video" / "best.safetensors"

    def short(text: str) -> str:
        values = json.loads(text)
        values["model"] |= {"window_seconds": 1e-6}
        return json.dumps(values)

    _again(checkpoint, header=short)
    words = ["--checkpoint", checkpoint, "--sound", files / "tone.wav", "--out", files / "out.mp4"]
    assert "a window of 1e-06 s has no 3 segments of sound" in refused(generate.main, words, capsys)


SOUNDS: dict[str, bytes | np.ndarray] = {
    "empty.wav": b"",
    "nul.wav": bytes(10_000),
    "text.wav": b"hello " * 1000,
    "picture.wav": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "playlist.m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "no-samples.wav": np.zeros(0, np.float32),
    "nothing.flac": np.zeros(0, np.float32),
    "nan.wav": np.full(44_100, np.nan, np.float32),
    "infinite.wav": np.full(44_100, np.inf, np.float32),
    "never-scaled.wav": np.full(44_100, 1e38, np.float32),
}


def test_sounds_that_are_none_cost_their_own_video_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, content in SOUNDS.items():
        path = files / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, 44_100, subtype="FLOAT" if path.suffix == ".wav" else None)
        paths.append(path)
    soundfile.write(files / "cut.flac", tone(440, 1.0), 44_100)
    halved(files / "cut.flac")
    shutil.copy(files / "tone.wav", files / "shut.wav")
    unreadable(files / "shut.wav")
    paths += [files / "cut.flac", files / "shut.wav", files / "nowhere.wav", files]
    words = [
        "--checkpoint",
        files / "run",
        "--out",
        files / "videos",
        "--device",
        "cpu",
        "--sound",
        *paths,
        files / "tone.wav",
    ]
    with permissions_count():
        assert generate.main([str(word) for word in words]) == 1
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("failed: ")]
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"failed: {path}: ")
    assert [path.name for path in (files / "videos").iterdir()] == ["tone.mp4"]
