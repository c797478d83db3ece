"""One run of the trainer: folder, device, ranks, datasets, and the request to stop."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pydantic import Field

from pipeline.dataset.manifest import Manifest
from pipeline.encoders.device import pick_device
from pipeline.errors import OutputError, RecipeError
from pipeline.settings import Settings
from trainer.engine.ranks import gather_numbers, num_ranks
from trainer.engine.stats import Stats
from trainer.streaming.reader import DatasetMix

logger = logging.getLogger(__name__)


class RunSettings(Settings):
    """Where and how a fit runs."""

    name: str = Field("fit", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run. Its folder is ``runs/NAME`` unless ``out`` is set."""
    out: str | None = None
    """Folder of the run, on a disk that all ranks share. None: runs/NAME."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and all random numbers."""
    device: str = "auto"
    """auto (one GPU for each rank if there is a GPU, else the CPU), cpu or cuda."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format inside the networks. Weights and losses stay in fp32."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads of one rank. None: torch's default, one for each core. Another number of threads changes the last bits of results."""
    deterministic: bool = False
    """Whether torch uses slower deterministic operations where it has them. On a CPU a fit is reproducible without it. On a GPU it is
    reproducible only with it; an operation without a deterministic form is logged as a warning."""
    compile: bool = False
    """Whether torch.compile compiles generator, discriminators and frozen picture encoder, and in align the sound network. It needs a C++
    compiler. The first steps take minutes, the others less time; results differ by rounding. Steps of R1 and of path lengths, and
    validations, run uncompiled."""
    tick_seconds: float = Field(10.0, gt=0)
    """Seconds from one line of progress and statistics to the next."""
    pause_after_samples: int | None = Field(None, ge=1)
    """Each stage writes a checkpoint and ends after this many samples of this run; the same command continues it. None: no pause."""


@dataclass(frozen=True, slots=True)
class FitDataset:
    """A dataset that the run streams from."""

    mix: DatasetMix
    manifest: Manifest


@dataclass
class Run:
    """What every stage gets: folder, settings, datasets, Fabric and statistics."""

    folder: Path
    settings: RunSettings
    datasets: Sequence[FitDataset]
    fabric: Fabric
    stats: Stats
    signalled: list[int] = field(default_factory=list)
    """Signals that asked this process to stop, by number."""

    def mixes(self, split: str) -> list[DatasetMix]:
        """The datasets with samples of a split, with their weights."""
        return [dataset.mix for dataset in self.datasets if dataset.manifest.clips.splits.get(split)]

    @property
    def classes(self) -> list[str]:
        """All labels of kept clips, sorted."""
        return sorted({label for dataset in self.datasets for label in dataset.manifest.clips.classes})

    def stage_folder(self, stage: str) -> Path:
        """The folder of a stage; it is made if it is missing."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def stop_signal(self) -> int:
        """The number of a signal that asked a rank to stop; 0 without one. All ranks get the same answer, and every rank must call it."""
        own = self.signalled[0] if self.signalled else 0
        return int(gather_numbers([float(own)], self.fabric.device).max())


def make_fabric(settings: RunSettings) -> Fabric:
    """Fabric for this process, and for all ranks if ``torchrun`` started it. Raises EncoderError for a device that this machine lacks."""
    device = pick_device(settings.device, "run.device")
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else None
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if environment else 1
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if environment else 1
    several = ranks > 1
    if device.type == "cuda" and per_node > torch.cuda.device_count():
        raise RecipeError(
            f"run.device: {per_node} ranks on this machine need as many GPUs, and it has {torch.cuda.device_count()}"
        )
    chosen: int | list[int] = [device.index] if device.index is not None and not several else per_node
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
        torch.use_deterministic_algorithms(True, warn_only=True)
    return Fabric(
        accelerator=device.type,
        devices=chosen,
        num_nodes=ranks // per_node,
        strategy="ddp" if several else "auto",
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        plugins=[environment] if environment and several else None,
    )


@contextmanager
def locked(folder: Path, is_first: bool) -> Iterator[None]:
    """Makes the folder, and locks it against a second run. Raises OutputError. ``is_first``: this is rank 0, which takes the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_first:
            yield
            return
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; choose another folder with --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{folder}: another run is at work there. Wait for it, or choose another with --out"
            ) from error
        yield


def save_recipe(folder: Path, recipe: Settings) -> None:
    """Writes ``recipe.json`` with all settings. Each difference to the settings of an earlier run in this folder is logged as a warning."""
    path = folder / "recipe.json"
    values = recipe.model_dump(mode="json")
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        for change in changes(before, values) if isinstance(before, dict) else ["recipe.json could not be read"]:
            logger.warning("%s was begun with other settings: %s", folder, change)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def changes(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> list[str]:
    """A line such as ``align.learning_rate was 0.001, is 0.0005`` for every setting that differs; settings of ``run`` are left out."""
    lines = []
    for name in sorted({*before, *now}):
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_, dict):
            lines += changes(was, is_, f"{prefix}{name}.")
        elif was != is_ and prefix != "run.":
            lines.append(f"{prefix}{name} was {was}, is {is_}")
    return lines


def ranks_agree(number: float, device: torch.device) -> bool:
    """Whether every rank has the same number. Every rank must call it."""
    return num_ranks() == 1 or len(set(gather_numbers([number], device)[:, 0].tolist())) == 1
