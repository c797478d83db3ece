"""What stages share: the folder, how far they are, checkpoints, taking up an earlier one, and their run from start to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.encoders.weights import load_into
from pipeline.errors import CheckpointError, FitError
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.engine.checkpoint import load_optimizer, load_state, optimizer_tensors, save_state, tensors_below
from trainer.engine.loop import BatchSource, Ended, Stage, fit
from trainer.engine.phases import Part, Phase, learn
from trainer.engine.ranks import num_ranks
from trainer.engine.run import Run, changes, ranks_agree
from trainer.engine.stats import Display
from trainer.streaming.batches import Batch
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

CHECKPOINT = "resume.safetensors"
LAST, BEST = "last.safetensors", "best.safetensors"


class Learner:
    """A stage's memory: networks and optimizers by name, and the numbers that a step changes. A stage derives from it."""

    name: str
    headline: Sequence[str] = ()

    def __init__(self, run: Run) -> None:
        self.run = run
        self.samples_seen = self.num_steps = 0
        self.best: float | None = None
        """The best that a validation found, smaller or larger as the stage has it."""
        self.folder = run.stage_folder(self.name)
        self.device = run.fabric.device

    def networks(self) -> Mapping[str, nn.Module]:
        """Everything with weights that a step changes."""
        raise NotImplementedError

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        raise NotImplementedError

    def config(self) -> Settings:
        """What the networks are: a checkpoint of others is refused."""
        raise NotImplementedError

    def export(self) -> None:
        """Writes what others may use of the stage. Rank 0 alone calls it."""
        raise NotImplementedError

    def draw_alike(self) -> None:
        """Seeds torch for the step in hand: everything random in a step comes from it, so none of it is in a checkpoint."""
        identity = (f"{self.name} step", self.run.settings.seed, self.num_steps, self.run.fabric.global_rank)
        torch.manual_seed(int(stable_hash(*identity, length=15), 16))

    def where(self, batch: Batch) -> str:
        """For a message: how far the stage is, and the batch in hand."""
        return f"after {self.samples_seen} samples in the batch of {', '.join(batch.keys[:3]) or 'other ranks'}"

    def learn(
        self,
        phases: Iterable[Phase[Part]],
        parts: Sequence[tuple[Part, float]],
        networks: Sequence[nn.Module],
        batch: Batch,
    ) -> dict[str, float]:
        """Runs the phases whose turn it is, as :func:`trainer.engine.phases.learn` does; their measures.

        Raises FitError for a loss or gradient that is not finite; all is then as before the first of them.
        """
        tensors, numbers = {name: one.detach().clone() for name, one in self.tensors().items()}, self.numbers()
        measures: dict[str, float] = {}
        try:
            for phase in phases:
                if self.num_steps % phase.every == 0:
                    measures |= learn(phase, parts, networks, self.device, lambda: self.where(batch))
        except FitError as error:
            self.put(tensors, numbers, self.folder / CHECKPOINT)
            raise FitError(f"{self.name}: {error}") from error
        return measures

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; not copied."""
        found = {
            f"{prefix}.{name}": tensor
            for prefix, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        for prefix, optimizer in self.optimizers().items():
            found |= optimizer_tensors(optimizer, prefix)
        return found

    def numbers(self) -> dict[str, Any]:
        """The numbers that a step changes."""
        return {"samples_seen": self.samples_seen, "num_steps": self.num_steps, "best": self.best}

    def put(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], path: Path) -> None:
        """The inverse of ``tensors`` and ``numbers``. Raises CheckpointError or EncoderError for those of another network."""
        try:
            self.samples_seen, self.num_steps = int(numbers["samples_seen"]), int(numbers["num_steps"])
            self.best = numbers["best"]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
        for prefix, network in self.networks().items():
            load_into(network, tensors_below(tensors, prefix), path)
        for prefix, optimizer in self.optimizers().items():
            load_optimizer(optimizer, tensors, prefix, path)

    def save(self, reader_state: Mapping[str, Any]) -> None:
        """Writes what others may use, and what is needed to resume; rank 0 does, the others wait for it."""
        if self.run.fabric.is_global_zero:
            self.export()
            values = {
                **self.numbers(),
                "config": self.config().model_dump(mode="json"),
                "reader": dict(reader_state),
            }
            save_state(self.folder / CHECKPOINT, self.name, self.tensors(), values)
        self.run.fabric.barrier()

    def resume(self) -> dict[str, Any] | None:
        """Takes up the checkpoint in the stage's folder; the reader's state in it, or None where there is no checkpoint.

        Raises CheckpointError or EncoderError for one that does not fit, or that not every rank sees.
        """
        path = self.folder / CHECKPOINT
        reader_state: dict[str, Any] | None = None
        if path.exists():
            tensors, values = load_state(path, self.name)
            differing = changes(values.get("config") or {}, self.config().model_dump(mode="json"))
            if differing:
                raise CheckpointError(
                    f"{path} is of another network ({'; '.join(differing)}): "
                    f"set back what was changed, or choose another folder with --out"
                )
            reader_state = values.get("reader")
            if not isinstance(reader_state, dict):
                raise damaged(path, "it has no state of the data")
            self.put(tensors, values, path)
        if not ranks_agree(self.samples_seen, self.device):
            raise CheckpointError(
                f"{path}: the ranks see different checkpoints; put the run's folder on a disk that all share"
            )
        return reader_state


def damaged(path: Path, why: object) -> CheckpointError:
    """The error for a checkpoint that holds nonsense."""
    return CheckpointError(f"{path} is damaged ({why!r}); remove {path.parent} to begin this stage anew")


class StageSettings(Protocol):
    """What the loop needs of a stage's settings."""

    @property
    def num_samples(self) -> int: ...

    @property
    def validate_every_samples(self) -> int: ...

    @property
    def save_every_samples(self) -> int: ...


class Resumable(Stage, Protocol):
    """A stage that takes up its own checkpoint."""

    def resume(self) -> dict[str, Any] | None: ...

    def close(self) -> None: ...


class ResumableSource(BatchSource, Protocol):
    """Batches that are taken up in mid-epoch, and end."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def run_stage(
    make: Callable[[], Resumable], source: ResumableSource, settings: StageSettings, run: Run, display: Display
) -> Ended:
    """Makes the stage, takes up its checkpoint if there is one, and runs it; closes stage and source in the end."""
    stage: Resumable | None = None
    try:
        stage = make()
        reader_state = stage.resume()
        if reader_state is not None:
            source.load_state_dict(reader_state)
        run.stats.resume(stage.name, stage.samples_seen)
        return fit(
            stage,
            source,
            run,
            display,
            num_samples=settings.num_samples,
            validate_every_samples=settings.validate_every_samples,
            save_every_samples=settings.save_every_samples,
        )
    finally:
        source.close()
        if stage is not None:
            stage.close()


def rank_reader(
    mixes: list[DatasetMix], settings: ReaderSettings, run: Run, split: str, *, whole: bool = False
) -> Reader:
    """This rank's reader of a split, shuffled for training only; ``whole``: a reader of all ranks' samples."""
    return Reader(
        mixes,
        settings,
        split=split,
        seed=run.settings.seed,
        rank=0 if whole else run.fabric.global_rank,
        num_ranks=1 if whole else num_ranks(),
        shuffle=split == "train",
    )
