"""Checkpoints to continue from: tensors as safetensors, everything else as JSON in the same file. Nothing is ever unpickled.

A file is written under another name and renamed: under its own name there is the complete file, or the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import CheckpointError

FORMAT = "hearscape_fit"
VERSION = 1


def save_state(path: Path, stage: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Writes ``tensors`` and ``values`` (JSON) of a stage to ``path``."""
    text = json.dumps({"version": VERSION, "stage": stage, "values": values}, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata={FORMAT: text})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and values that :func:`save_state` wrote.

    Raises CheckpointError for a file that is damaged, foreign, of another stage or of another version.
    """
    values = read_values(path, stage)
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, values  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove {path.parent} to begin this stage anew") from error


def read_values(path: Path, stage: str) -> dict[str, Any]:
    """The values of a checkpoint, without its tensors. Raises what :func:`load_state` raises."""
    again = f"remove {path.parent} to begin this stage anew"
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}; {again}") from error
    if text is None:
        raise CheckpointError(f"{path} was not written by this trainer; {again}")
    try:
        header = json.loads(text)
        version, written_by, values = header["version"], header["stage"], dict(header["values"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error!r}); {again}") from error
    if version != VERSION or written_by != stage:
        raise CheckpointError(
            f"{path} is version {version!r} of a checkpoint of the stage {written_by!r}, "
            f"not version {VERSION} of {stage!r}; {again}"
        )
    return values


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter: ``prefix.<number of the parameter>.<name>``.

    Its settings (rate, decay) are the recipe's and are not among it.
    """
    found = {}
    for number, memory in optimizer.state_dict()["state"].items():
        for name, value in memory.items():
            found[f"{prefix}.{number}.{name}"] = torch.as_tensor(value)
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """The inverse of :func:`optimizer_tensors`. Raises CheckpointError when the parameters are others."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    memories: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors_below(tensors, prefix).items():
        number, _, name = full_name.partition(".")
        is_ours = number.isdecimal() and int(number) < len(parameters)
        if not is_ours or (tensor.ndim and tensor.shape != parameters[int(number)].shape):
            raise CheckpointError(
                f"{path} holds an optimizer of other parameters ({prefix}.{full_name} {tuple(tensor.shape)}); "
                f"remove {path.parent} to begin this stage anew"
            )
        memories.setdefault(int(number), {})[name] = tensor
    if memories and len(memories) != len(parameters):
        raise CheckpointError(
            f"{path} holds an optimizer of {len(memories)} parameters, this one has {len(parameters)}; "
            f"remove {path.parent} to begin this stage anew"
        )
    optimizer.load_state_dict({"state": memories, "param_groups": optimizer.state_dict()["param_groups"]})
