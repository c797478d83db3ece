"""Where and how a network runs: device, precision, batches."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import EncoderError

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, field: str = "device") -> torch.device:
    """``auto``: the first CUDA device, else the CPU. Raises EncoderError for one that torch does not know or see."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EncoderError(f"{field}: {name!r} is no device; use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if device.type not in ("cpu", "cuda"):
        raise EncoderError(f"{field}: {name!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        num_devices = torch.cuda.device_count()
        raise EncoderError(f"{field}: {name!r} is not there: torch sees {num_devices} GPUs; use 'auto' or 'cpu'")
    return device


@dataclass(frozen=True, slots=True)
class Running:
    """How an encoder runs its network."""

    device: torch.device
    batch_size: int = 32
    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype | None:
        """What layers compute in. None: float32."""
        return _DTYPES.get(self.precision)

    def batch(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """``function`` of one batch in the wanted precision, without gradients; float32 on the CPU."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            result = function(batch.to(self.device))
            return result.float().cpu()

    def each(self, function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """``function`` of every input, (len(inputs), D). On a GPU, inputs of one shape share batches.

        On a CPU each runs alone: convolutions gain nothing from batches there, and no result depends on the others.
        """
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, one in enumerate(inputs):
            by_shape[one.shape].append(index)
        size = 1 if self.device.type == "cpu" else self.batch_size
        outputs: dict[int, Tensor] = {}
        for indices in by_shape.values():
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                rows = self.batch(function, torch.stack([inputs[index] for index in some]))
                outputs.update(zip(some, rows, strict=True))
        return torch.stack([outputs[index] for index in range(len(inputs))])


def unit_rows(rows: Tensor, name: str) -> Tensor:
    """Rows of length 1. Raises EncoderError when one is zero or not finite, which only damaged weights give."""
    lengths = rows.norm(dim=-1, keepdim=True)
    if not bool(((lengths > 1e-12) & lengths.isfinite()).all()):
        raise EncoderError(f"{name} gives embeddings that are zero or not finite: its weights are damaged")
    unit: Tensor = rows / lengths
    return unit


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For what is computed of one picture or sample at a time: too little to be shared out, and threads that wait cost as much again."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
