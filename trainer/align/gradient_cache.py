"""Losses over more samples than a network can hold at once (gradient caching, Gao et al. 2021).

A contrastive loss needs the embeddings of the whole batch, and a network's memory goes with the samples that it keeps
activations of. So: embed every micro-batch without keeping anything, take the loss of all the embeddings and its gradient
with respect to them, then run each micro-batch again, with activations, and pass its part of that gradient on. What comes
out is the gradient of the whole batch at once, for one more forward pass.

That holds for networks that treat every sample alone. BatchNorm in training takes its statistics from one micro-batch: the
gradients are then those of the whole loss with each micro-batch normalised by itself, and the running statistics are
updated once for each micro-batch, in the first pass. Layers that draw random numbers draw the same ones in both passes.
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
    """Puts the gradient of ``loss_of(embeddings of all ranks)`` into the parameters; returns the loss, detached.

    ``embed`` runs ``network``. With several ranks each calls this with its own micro-batches (there may be none:
    ``no_rows`` are embeddings of zero samples), computes the same loss, and gets the gradient by way of its own samples:
    the gradients' sum over ranks is the whole one. Other parameters inside ``loss_of`` get the whole gradient on every rank.
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
    """Buffers (BatchNorm's running statistics) are put back after the block: the first pass has counted these samples."""
    saved = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), saved, strict=True):
                buffer.copy_(value)
