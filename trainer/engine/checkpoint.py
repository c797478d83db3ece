"""Checkpoints to resume from: tensors as safetensors, everything else as JSON in the header of the same file. Nothing is unpickled.

A file is written under a temporary name and renamed, so that its own name always stands for a complete file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import CheckpointError, FitError

FORMAT = "hearscape_fit"
VERSION = 1


def save_state(path: Path, stage: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Writes the ``tensors`` and ``values`` of a stage to ``path``. ``values`` must fit into JSON, without NaN and infinity.

    Raises FitError if the disk does not take it; a file that was there under this name stays.
    """
    text = json.dumps({"version": VERSION, "stage": stage, "values": values}, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata={FORMAT: text})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise FitError(
            f"{path} cannot be written ({error}): the checkpoint before it, if there is one, is complete, and the same command "
            f"goes on from it"
        ) from error


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
    remedy = f"remove {path.parent} to begin this stage anew"
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}; {remedy}") from error
    if text is None:
        raise CheckpointError(f"{path} was not written by this trainer; {remedy}")
    try:
        header = json.loads(text)
        version, written_by, values = header["version"], header["stage"], dict(header["values"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error!r}); {remedy}") from error
    if version != VERSION or written_by != stage:
        raise CheckpointError(
            f"{path} is version {version!r} of a checkpoint of the stage {written_by!r}, "
            f"not version {VERSION} of {stage!r}; {remedy}"
        )
    return values


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The state of an optimizer, by the names ``prefix.<number of the parameter>.<name>``.

    Learning rate and weight decay come from the recipe and are not part of it.
    """
    tensors = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{prefix}.{number}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """The inverse of :func:`optimizer_tensors`. Raises CheckpointError for the state of other parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors_below(tensors, prefix).items():
        number, _, name = full_name.partition(".")
        is_ours = number.isdecimal() and int(number) < len(parameters)
        if not is_ours or (tensor.ndim and tensor.shape != parameters[int(number)].shape):
            raise CheckpointError(
                f"{path} holds an optimizer of other parameters ({prefix}.{full_name} {tuple(tensor.shape)}); "
                f"remove {path.parent} to begin this stage anew"
            )
        states.setdefault(int(number), {})[name] = tensor
    if states and len(states) != len(parameters):
        raise CheckpointError(
            f"{path} holds an optimizer of {len(states)} parameters, this one has {len(parameters)}; "
            f"remove {path.parent} to begin this stage anew"
        )
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
