"""torch.compile for the networks of a fit, as ``run.compile`` has it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pipeline.errors import RecipeError

BACKEND = "inductor"
"""What torch.compile makes code with."""


def compile_networks(*networks: nn.Module | None) -> None:
    """Compiles networks in place, at their first call; those that are None are left out. Names of weights stay the same.

    A deep copy of a compiled network is not compiled. Each size of an input, and each choice of what needs gradients, is compiled by
    itself; after eight of them torch calls the network as it was written.
    """
    # the same random numbers as in a network that is not compiled
    torch._inductor.config.fallback_random = True
    # else a graph gives its gradients once, and trainer.video.balance takes them several times
    torch._functorch.config.donated_buffer = False
    for network in networks:
        if network is not None:
            network.compile(dynamic=False, backend=BACKEND)


def uncompiled() -> AbstractContextManager[object]:
    """Runs compiled networks as they were written. A gradient of a gradient cannot be taken through what torch.compile makes."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def check_compiler(device: torch.device) -> None:
    """Compiles one sum, as a trial. Raises RecipeError if torch.compile finds no compiler, or cannot use the device."""
    named = os.environ.get("CC" if device.type == "cuda" else "CXX")
    compilers = [named] if named else ["gcc", "clang"] if device.type == "cuda" else ["g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise RecipeError(
            f"run.compile: torch.compile needs a C++ compiler, and {' and '.join(compilers)} cannot be found; install one, or set "
            f"run.compile=false"
        )

    unknown = time.time_ns()  # no cache has its sum

    def total(numbers: Tensor) -> Tensor:
        return numbers + unknown

    try:
        torch.compile(total, dynamic=False)(torch.zeros(8, dtype=torch.int64, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(
            f"run.compile: torch.compile does not work here ({lines[0][:200]}); set run.compile=false"
        ) from error
