"""Where and how a network runs: device, precision, batches."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

import pipeline.runtime.processor  # noqa: F401 - before any network computes
from pipeline.errors import EncoderError

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
T = TypeVar("T")
R = TypeVar("R")


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
class ComputeOptions:
    """How an encoder runs its network."""

    device: torch.device
    batch_size: int = 32
    """Inputs of one batch on a GPU. A CPU's numbers do not depend on it."""
    precision: Precision = "fp32"
    num_threads: int | None = None
    """Inputs that a CPU works on side by side, each on one thread. None: as many as torch has threads."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What layers compute in. None: float32."""
        return _DTYPES.get(self.precision)

    def batch(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """``function`` of one batch in the wanted precision, without gradients; float32 on the CPU."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            result = function(batch.to(self.device))
            return result.float().cpu()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of every item: side by side on a CPU, one after another on a GPU."""
        return side_by_side(function, items, self.num_threads if self.device.type == "cpu" else 1)

    def each(self, function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """``function`` of every input, (len(inputs), D). On a GPU, inputs of one shape share batches.

        On a CPU each runs alone: convolutions gain nothing from batches there, and no result depends on the others.
        """
        if self.device.type == "cpu":
            return torch.cat(self.map(lambda one: self.batch(function, one.unsqueeze(0)), inputs))
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, one in enumerate(inputs):
            by_shape[one.shape].append(index)
        outputs: dict[int, Tensor] = {}
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                some = indices[start : start + self.batch_size]
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
    """Lets torch use one thread inside the block: sums then have one order, whatever the number of cores.

    Not for two threads of Python at once: the number is put back for all of them.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(function: Callable[[T], R], items: Sequence[T], num_threads: int | None = None) -> list[R]:
    """``function`` of every item, each computed by one thread of torch, ``num_threads`` of them at once (None: as many as torch has).

    How many work at once changes no number, while a sum that torch shares out among threads differs in its last bits with their
    number (seen with MKL and oneDNN on Intel). It also costs less than sharing out each small operation.
    """
    num_threads = min(num_threads or torch.get_num_threads(), len(items))
    with one_thread():
        if num_threads <= 1:
            return [function(item) for item in items]
        # a new thread begins with OpenMP's own number of threads, not with ours
        with ThreadPoolExecutor(num_threads, "encoder", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, items))
