"""Styles of a whole batch, and their gradients from micro-batches.

BatchNorm in the sound inversion encoder normalises over the sounds that pass together. Its passes are small beside those of the generator,
the discriminators and the guide: all sounds of a batch pass at once, and only what follows is divided into micro-batches. A step is then
the same whatever their size.

Shape suffixes: B clips of a batch or a micro-batch.
"""

from __future__ import annotations

from torch import Tensor


class WholeBatch:
    """The styles (B, ...) of all clips of a step on this rank."""

    def __init__(self, styles: Tensor) -> None:
        """``styles``: with their graph."""
        self._styles = styles
        self._leaf = styles.detach().requires_grad_()

    def of(self, rows_B: Tensor) -> Tensor:
        """The styles of a micro-batch, which takes the clips ``rows_B`` of the batch. Gradients go no further than to these styles."""
        return self._leaf[rows_B]

    def pass_back(self) -> None:
        """Passes the gradients of all micro-batches on to the parameters."""
        if self._leaf.grad is not None:
            self._styles.backward(self._leaf.grad)  # type: ignore[no-untyped-call]
