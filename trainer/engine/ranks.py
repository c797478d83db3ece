"""Exchange of data between the ranks of one fit. With one rank, each function returns its input.

Each function raises LostRankError where another rank has ended or cannot be reached.

Shape suffixes: B rows of this rank, N rows of all ranks, in the order of the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pipeline.errors import LostRankError

T = TypeVar("T")
SOURCE_LINE = re.compile(r"^\[[^]]*\] ")
"""What gloo's messages begin with."""


def num_ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def _exchange() -> Iterator[None]:
    """A block that exchanges data with the other ranks."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        cause = SOURCE_LINE.sub("", str(error).strip().partition("\n")[0])
        raise LostRankError(
            f"another rank has ended, or its machine cannot be reached ({cause}); its own message says why it ended"
        ) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    """gloo raises a plain RuntimeError whose text names its source file; the other backends raise errors of torch.distributed."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def wait_for_all() -> None:
    """Returns when every rank has called it."""
    if num_ranks() > 1:
        with _exchange():
            distributed.barrier()


def leave() -> None:
    """Waits for all ranks, then ends the process group. gloo's threads may abort a process that exits while they run."""
    if num_ranks() > 1:
        wait_for_all()
        distributed.destroy_process_group()


def gather_rows(rows_B: Tensor) -> tuple[Tensor, slice]:
    """The rows (B, ...) of all ranks, (N, ...), no gradient, and the slice of this rank's rows. Ranks may differ in B, and B may be 0."""
    rows_B = rows_B.detach()
    if num_ranks() == 1:
        return rows_B, slice(0, len(rows_B))
    counts = gather_numbers([len(rows_B)], rows_B.device)[:, 0].long().tolist()
    padded = rows_B.new_zeros((max(counts), *rows_B.shape[1:]))
    padded[: len(rows_B)] = rows_B
    each = [torch.empty_like(padded) for _ in counts]
    with _exchange():
        distributed.all_gather(each, padded)
    start = sum(counts[: distributed.get_rank()])
    rows_N = torch.cat([rows[:count] for rows, count in zip(each, counts, strict=True)])
    return rows_N, slice(start, start + len(rows_B))


def gather_numbers(numbers: Sequence[float], device: torch.device) -> Tensor:
    """The numbers of all ranks: (ranks, len(numbers)), float64, on the CPU."""
    own = torch.tensor(numbers, dtype=torch.float64, device=device)
    if num_ranks() == 1:
        return own.unsqueeze(0).cpu()
    each = [torch.empty_like(own) for _ in range(num_ranks())]
    with _exchange():
        distributed.all_gather(each, own)
    return torch.stack(each).cpu()


def gather_items(items: Sequence[T]) -> list[T]:
    """The items of all ranks, in the order of the ranks. They are pickled between the processes, so keep them small."""
    if num_ranks() == 1:
        return list(items)
    each: list[Sequence[T]] = [[] for _ in range(num_ranks())]
    with _exchange():
        distributed.all_gather_object(each, list(items))
    return [item for of_rank in each for item in of_rank]


def from_rank_0(item: T) -> T:
    """The item of rank 0, on every rank. It is pickled, so keep it small."""
    if num_ranks() == 1:
        return item
    each = [item]
    with _exchange():
        distributed.broadcast_object_list(each, src=0)
    return each[0]


def add_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the ranks, in place; one message for all tensors."""
    _reduce(list(tensors), divide_by=1)


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the ranks, in place; one message for all tensors."""
    _reduce(list(tensors), divide_by=num_ranks())


def _reduce(tensors: Sequence[Tensor], divide_by: int) -> None:
    if num_ranks() == 1 or not tensors:
        return
    with torch.no_grad():
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        with _exchange():
            distributed.all_reduce(flat)
        flat /= divide_by
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
