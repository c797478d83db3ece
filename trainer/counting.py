"""Counts what a pass of a network costs: operations, bytes moved and bytes kept. Nothing is computed: the network is on torch's device
``meta``, where tensors have shapes and no numbers. Convolutions and matrix products are counted as operations; bytes are those of all
kernels, as torch runs them one after the other (what torch.compile joins moves less).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

HALF = (torch.bfloat16, torch.float16)
BATCHES = (4, 8)
"""Items of the two passes that are counted; between them and beyond, costs are linear in the number of items. Discriminators take groups
of four."""

UTILISATION = 0.5
"""Speed of a whole step, as a share of the speed of one large convolution."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call of torch's: what it costs for each item of a batch, and for the batch."""

    operations: float
    """Floating-point operations of an item; an addition and a multiplication count as two."""
    is_half: bool
    item_bytes: float
    """Read and written for each item."""
    batch_bytes: float
    """Read and written once for a batch: weights."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The cost of a network's forward pass for one item: one picture, sound or clip."""

    kernels: tuple[Kernel, ...]
    saved_bytes: float
    """Size of the tensors of an item that are kept for the backward pass."""

    @property
    def operations(self) -> float:
        """Of an item."""
        return sum(kernel.operations for kernel in self.kernels)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a device is assumed to reach. The peaks are the data sheet's of an A100 with 80 GB."""

    half_operations_per_second: float = 312e12
    """Peak of products in bf16."""
    full_operations_per_second: float = 156e12
    """Peak of products in fp32, which convolutions compute in TF32."""
    bytes_per_second: float = 2.0e12
    """Peak of the memory."""
    utilisation: float = 0.3
    """Share of both peaks that is reached. It is set by one published figure (docs/explanation/cost.md)."""

    def seconds(self, forward: ForwardPass, num_items: int) -> float:
        """A forward pass of ``num_items``. Each kernel takes as long as its arithmetic or its memory, whichever is slower."""
        total = 0.0
        for kernel in forward.kernels:
            peak = self.half_operations_per_second if kernel.is_half else self.full_operations_per_second
            moved_bytes = kernel.item_bytes * num_items + kernel.batch_bytes
            total += max(kernel.operations * num_items / peak, moved_bytes / self.bytes_per_second)
        return total / self.utilisation


def count_pass(network: nn.Module, run: Callable[[int], Tensor], *, autocast: bool = False) -> ForwardPass:
    """Counts forward passes of ``run``, which gets a number of items and calls ``network``.

    A storage that several saved tensors share counts once, weights do not. ``autocast``: the network runs in half precision as a whole
    under torch's autocast, which does not know the device ``meta``: its products count as half, its bytes are halved.
    """
    few, many = BATCHES
    (few_calls, few_saved), (many_calls, many_saved) = _counted(network, run, few), _counted(network, run, many)
    assert len(few_calls) == len(many_calls), "the kernels of a network must not depend on the size of its batch"
    size, kernels = 0.5 if autocast else 1.0, []
    for one, other in zip(few_calls, many_calls, strict=True):
        item_bytes = (other.moved_bytes - one.moved_bytes) / (many - few)
        batch_bytes = max(0.0, one.moved_bytes - few * item_bytes)
        kernels.append(Kernel(other.operations / many, one.is_half or autocast, size * item_bytes, size * batch_bytes))
    return ForwardPass(tuple(kernels), size * (many_saved - few_saved) / (many - few))


def _counted(network: nn.Module, run: Callable[[int], Tensor], num_items: int) -> tuple[list[Call], int]:
    """The calls of a pass, and the bytes that are kept for the backward pass."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    saved_bytes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved_bytes[storage._cdata] = storage.nbytes()
        return tensor

    with Calls() as calls, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        run(num_items)
    return calls.calls, sum(saved_bytes.values())


@dataclass(frozen=True, slots=True)
class Call:
    """A call of torch's."""

    operations: int
    is_half: bool
    moved_bytes: int


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every call that reads or writes numbers. Views, which share the memory of their input, are left out.

    The operations are those of torch's FlopCounterMode, which itself cannot follow the gradient of a gradient.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = func(*args, **kwargs)
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        is_view = all(tensor.untyped_storage()._cdata in storages for tensor in outputs)
        if outputs and (func._schema.is_mutable or not is_view):
            operations = formula(*args, **kwargs, out_val=result) if formula else 0
            moved_bytes = sum(map(_num_bytes, (*inputs, *outputs)))
            self.calls.append(Call(operations, outputs[0].dtype in HALF, moved_bytes))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _num_bytes(tensor: Tensor) -> int:
    """Of what is read or written: an expanded tensor counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def operations_per_second(device: torch.device, precision: str) -> float:
    """Estimated operations a second of a training step on this device: ``UTILISATION`` of a convolution that is timed for half a second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    channels, side, batch = (256, 64, 16) if device.type == "cuda" else (64, 32, 8)
    maps = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.no_grad():
        torch.nn.functional.conv2d(maps, weight, padding=1)
        wait()
        started, num_runs = time.perf_counter(), 0
        while time.perf_counter() - started < 0.5:
            torch.nn.functional.conv2d(maps, weight, padding=1)
            wait()
            num_runs += 1
        elapsed_seconds = time.perf_counter() - started
    operations = 2 * num_runs * maps.numel() * channels * 9
    return UTILISATION * operations / elapsed_seconds
