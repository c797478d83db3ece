"""Device, precision and batches of networks."""

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
    """``auto``: the first CUDA device, else the CPU. Raises EncoderError for a device that is unknown or not present."""
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
    """Inputs of one batch on a GPU. A CPU does not use it."""
    precision: Precision = "fp32"
    num_threads: int | None = None
    """Inputs that a CPU computes at the same time, each on one thread. None: the number of torch's threads."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The number format of layers under autocast. None: float32."""
        return _DTYPES.get(self.precision)

    def batch(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """``function`` of one batch in the wanted precision, without gradients; float32 on the CPU."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            result = function(batch.to(self.device))
            return result.float().cpu()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of every item: in several threads on a CPU, one after another on a GPU."""
        return side_by_side(function, items, self.num_threads if self.device.type == "cpu" else 1)

    def each(self, function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """``function`` of every input, (len(inputs), D). On a GPU, inputs of one shape share batches.

        On a CPU each runs alone: batches make convolutions no faster there, and no result depends on the other inputs.
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
    """Rows scaled to length 1. Raises EncoderError for zero or non-finite rows, which only damaged weights give."""
    lengths = rows.norm(dim=-1, keepdim=True)
    if not bool(((lengths > 1e-12) & lengths.isfinite()).all()):
        raise EncoderError(f"{name} gives embeddings that are zero or not finite: its weights are damaged")
    unit: Tensor = rows / lengths
    return unit


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread inside the block, so that the order of sums does not depend on the number of cores.

    Must not be used in two Python threads at once: the number of threads is one for the whole process.
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
    """``function`` of every item, each on one thread, ``num_threads`` at the same time (None: the number of torch's threads).

    The results do not depend on ``num_threads``. Where torch itself splits a sum among threads, its last bits depend on their
    number (seen with MKL and oneDNN on Intel); splitting each small operation is also slower.
    """
    num_threads = min(num_threads or torch.get_num_threads(), len(items))
    with one_thread():
        if num_threads <= 1:
            return [function(item) for item in items]
        # OpenMP's number of threads is set for each Python thread, and a new one begins with the default
        with ThreadPoolExecutor(num_threads, "encoder", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, items))
