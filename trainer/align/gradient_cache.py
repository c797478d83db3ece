"""Gradients of a loss over more samples than fit into memory with their activations (gradient caching, Gao et al. 2021).

A contrastive loss needs the embeddings of the whole batch, and activations need memory for every sample. Therefore: embed every
micro-batch without activations; compute the loss of all embeddings and its gradient with respect to them; then run each micro-batch
again, with activations, and pass on its part of that gradient. The result is the gradient of the whole batch, at the cost of a second
forward pass.

This is exact for networks that treat every sample alone, as with GroupNorm. BatchNorm in training normalises each micro-batch by itself:
the gradients are then those of the loss with that normalisation, and the running statistics are updated once for each micro-batch, in
the first pass. Layers with random numbers get the same numbers in both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.engine.ranks import gather_rows

EmbedFunction = Callable[[Tensor], Tensor]
"""One micro-batch (b, ...) -> its embeddings (b, ...)."""


def backward_through(
    network: nn.Module,
    embed: EmbedFunction,
    micro_batches: Sequence[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    no_rows: Tensor,
) -> Tensor:
    """Adds the gradient of ``loss_of(embeddings of all ranks)`` to the parameters; returns the loss, detached.

    ``embed`` runs ``network``. Each rank calls this with its own micro-batches, of which there may be none; ``no_rows`` is the
    embedding of 0 samples. Every rank computes the same loss, and the gradient through its own samples: the sum over ranks is the
    gradient of the whole batch. Other parameters inside ``loss_of`` get the whole gradient on every rank.
    """
    outputs: list[Tensor] = []
    states: list[tuple[Tensor, Tensor | None]] = []
    kept: Tensor | None = None
    if len(micro_batches) == 1:
        kept = embed(micro_batches[0])
        outputs.append(kept.detach())
    else:
        for micro_batch in micro_batches:
            states.append(_random_state(micro_batch.device))
            with torch.no_grad():
                outputs.append(embed(micro_batch))
    own = torch.cat(outputs) if outputs else no_rows
    gathered, place = gather_rows(own)
    own = own.detach().requires_grad_()
    loss = loss_of(torch.cat([gathered[: place.start], own, gathered[place.stop :]]))
    if not bool(loss.isfinite()):
        return loss.detach()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = own.grad
    if gradient is None or not len(own):
        return loss.detach()
    if kept is not None:
        kept.backward(gradient)  # type: ignore[no-untyped-call]
        return loss.detach()
    parts = torch.split(gradient, [len(output) for output in outputs])
    after = _random_state(gradient.device)
    with _statistics_held(network):
        for micro_batch, state, part in zip(micro_batches, states, parts, strict=True):
            _set_random_state(state, micro_batch.device)
            embed(micro_batch).backward(part)  # type: ignore[no-untyped-call]
    _set_random_state(after, gradient.device)
    return loss.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def _statistics_held(network: nn.Module) -> Iterator[None]:
    """Restores the buffers (BatchNorm's running statistics) after the block: the first pass has counted these samples already."""
    saved = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), saved, strict=True):
                buffer.copy_(value)
