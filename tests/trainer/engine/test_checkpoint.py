"""Checkpoints: what is written comes back; what is damaged, foreign or hostile is refused by name and never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from trainer.engine.checkpoint import (
    load_optimizer,
    load_state,
    optimizer_tensors,
    read_values,
    save_state,
    tensors_below,
)

VALUES = {"samples_seen": 7, "reader": {"epoch": 1, "batch": 2}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "stage" / "resume.safetensors"
    path.parent.mkdir()
    save_state(path, "align", {"network.a": torch.arange(6.0).view(2, 3), "scale": torch.tensor(2.5)}, VALUES)
    return path


def test_what_was_saved_comes_back(saved: Path) -> None:
    tensors, values = load_state(saved, "align")
    assert values == VALUES == read_values(saved, "align")
    assert torch.equal(tensors["network.a"], torch.arange(6.0).view(2, 3))
    assert float(tensors["scale"]) == 2.5
    assert list(tensors_below(tensors, "network")) == ["a"]
    assert [path.name for path in saved.parent.iterdir()] == ["resume.safetensors"]


@pytest.mark.parametrize("size", [0, 5, 60, 500])
def test_a_truncated_file_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size] if size < 500 else saved.read_bytes()[:-4])
    with pytest.raises(
        CheckpointError, match=r"resume\.safetensors is damaged.*remove .*stage to begin this stage anew"
    ):
        load_state(saved, "align")


def test_a_pickle_under_that_name_is_not_run(saved: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(saved.parent / "was-run"),)

    saved.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_state(saved, "align")
    torch.save({"a": Hostile()}, saved)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_state(saved, "align")
    assert not (saved.parent / "was-run").exists()


def test_a_file_of_someone_else_is_refused(saved: Path) -> None:
    save_file({"a": torch.zeros(2)}, saved, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was not written by this trainer"):
        load_state(saved, "align")
    save_file({"a": torch.zeros(2)}, saved, metadata={"hearscape_fit": '{"version": 1}'})
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        load_state(saved, "align")


def test_a_checkpoint_of_another_stage_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="of the stage 'align', not version 1 of 'video'"):
        load_state(saved, "video")


def trained(num_outputs: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, num_outputs)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def test_an_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    layer, optimizer = trained(4)
    path = tmp_path / "resume.safetensors"
    save_state(path, "align", optimizer_tensors(optimizer, "optimizer"), {})
    copy = torch.nn.Linear(3, 4)
    copy.load_state_dict(layer.state_dict())
    again = torch.optim.AdamW(copy.parameters(), lr=0.1)
    load_optimizer(again, load_state(path, "align")[0], "optimizer", path)
    for one, its_optimizer in ((layer, optimizer), (copy, again)):
        its_optimizer.zero_grad()
        one(torch.full((2, 3), 2.0)).sum().backward()
        its_optimizer.step()
    assert torch.equal(layer.weight, copy.weight) and torch.equal(layer.bias, copy.bias)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resume.safetensors"
    tensors = optimizer_tensors(trained(4)[1], "optimizer")
    with pytest.raises(CheckpointError, match=r"other parameters \(optimizer\.0\.exp_avg \(4, 3\)\)"):
        load_optimizer(trained(5)[1], tensors, "optimizer", path)
    bigger = torch.optim.AdamW([*trained(4)[0].parameters(), torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(CheckpointError, match="an optimizer of 2 parameters, this one has 3"):
        load_optimizer(bigger, tensors, "optimizer", path)
