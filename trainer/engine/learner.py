"""What all stages share: folder, progress, checkpoints, resuming from a checkpoint, and the run from start to end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.encoders.weights import load_into
from pipeline.errors import CheckpointError, DataError, EncoderError, FitError, LostRankError
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.engine.checkpoint import load_optimizer, load_state, optimizer_tensors, save_state, tensors_below
from trainer.engine.compiling import compile_networks
from trainer.engine.full_device import out_of_memory
from trainer.engine.loop import BatchSource, Ended, Stage, fit
from trainer.engine.phases import Part, Phase, learn
from trainer.engine.ranks import num_ranks
from trainer.engine.run import Run, changes, ranks_agree
from trainer.engine.stats import Display
from trainer.engine.undo import Undo
from trainer.engine.writing import BackgroundWriter
from trainer.streaming.batches import Batch
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

CHECKPOINT = "resume.safetensors"
LAST, BEST = "last.safetensors", "best.safetensors"


class Learner:
    """Base class of the stages: keeps networks and optimizers by name, and the numbers that a step changes, and saves them."""

    name: str
    headline: Sequence[str] = ()
    group_size = 1
    """A micro-batch is a multiple of it, or smaller."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.samples_seen = self.num_steps = 0
        self.best: float | None = None
        """Best value of the measure that decides which network is kept; the stage says whether lower or higher is better."""
        self.folder = run.stage_folder(self.name)
        self.device = run.fabric.device
        self._writer = BackgroundWriter()
        self._copies: dict[str, Tensor] = {}

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks whose weights a step changes, by name."""
        raise NotImplementedError

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers of ``networks``, by name."""
        raise NotImplementedError

    def config(self) -> Settings:
        """The settings that define the networks. A checkpoint with other settings is refused."""
        raise NotImplementedError

    def export(self) -> None:
        """Writes the files that later stages and commands use. Only rank 0 calls it."""
        raise NotImplementedError

    def samples_per_step(self) -> int | None:
        """Number of samples in a batch of all ranks, in the unit of ``micro_batch_size``. None: not known."""
        return getattr(getattr(self, "settings", None), "batch_size", None)

    def out_of_memory(self, error: BaseException) -> str:
        """What to say of a device that is full."""
        settings = getattr(self, "settings", None)
        return out_of_memory(
            self.name, settings, error, samples_per_step=self.samples_per_step(), group_size=self.group_size
        )

    def compile(self, *networks: nn.Module | None) -> None:
        """Compiles networks in place (:func:`compile_networks`), if ``run.compile`` is set."""
        if self.run.settings.compile:
            compile_networks(*networks)

    def draw_alike(self) -> None:
        """Seeds torch for the current step from the run's seed, the step's number and the rank.

        All that is random in a step follows from this seed, so that a checkpoint needs no state of random generators.
        """
        identity = (f"{self.name} step", self.run.settings.seed, self.num_steps, self.run.fabric.global_rank)
        torch.manual_seed(int(stable_hash(*identity, length=15), 16))

    def where(self, batch: Batch) -> str:
        """The stage's progress and the current batch, for an error message."""
        return f"after {self.samples_seen} samples in the batch of {', '.join(batch.keys[:3]) or 'other ranks'}"

    def learn(
        self,
        phases: Iterable[Phase[Part]],
        parts: Sequence[tuple[Part, float]],
        networks: Sequence[nn.Module],
        batch: Batch,
    ) -> dict[str, float]:
        """Runs the phases that are due in this step (:func:`trainer.engine.phases.learn`), and returns their measures.

        Raises FitError as ``undone_on_failure`` has it.
        """
        due = [phase for phase in phases if self.num_steps % phase.every == 0]
        measures: dict[str, float] = {}
        with self.undone_on_failure() as undo:
            for phase in due:
                step = partial(undo.step, phase.optimizer, is_last=phase is due[-1])
                measures |= learn(phase, parts, networks, self.device, lambda: self.where(batch), step)
        return measures

    @contextmanager
    def undone_on_failure(self) -> Iterator[Undo]:
        """Puts weights and numbers back to those from before the block, if a loss or gradient in it is not finite, or the device is full.
        The block makes the steps of its optimizers by what it gets.

        Raises FitError then. Raises OutOfMemoryError, which ends this rank, where the step cannot be undone: in the last optimizer's step,
        and on one of several ranks, since the others are in the middle of theirs.
        """
        undo, numbers = Undo(self._statistics()), self.numbers()
        try:
            yield undo
        except FitError as error:
            self._undo(undo, numbers)
            raise FitError(f"{self.name}: {error}") from error
        except torch.OutOfMemoryError as error:
            if num_ranks() > 1 or not undo.is_possible:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the activations
            self._undo(undo, numbers)
            raise FitError(self.out_of_memory(error)) from error

    def _undo(self, undo: Undo, numbers: Mapping[str, Any]) -> None:
        undo.restore()
        with suppress(EncoderError):  # weights that were not finite before this step
            self.put(self.tensors(), numbers, self.folder / CHECKPOINT)

    def _statistics(self) -> list[Tensor]:
        """What a step changes besides weights and optimizers."""
        learned = {
            f"{prefix}.{name}" for prefix, network in self.networks().items() for name, _ in network.named_parameters()
        }
        kept_by_optimizers = tuple(f"{prefix}." for prefix in self.optimizers())
        return [
            tensor
            for name, tensor in self.tensors().items()
            if name not in learned and not name.startswith(kept_by_optimizers)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step changes, by name; not copied."""
        tensors = {
            f"{prefix}.{name}": tensor
            for prefix, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        for prefix, optimizer in self.optimizers().items():
            tensors |= optimizer_tensors(optimizer, prefix)
        return tensors

    def numbers(self) -> dict[str, Any]:
        """The numbers that a step changes."""
        return {"samples_seen": self.samples_seen, "num_steps": self.num_steps, "best": self.best}

    def put(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], path: Path) -> None:
        """Restores what ``tensors`` and ``numbers`` returned. Raises CheckpointError or EncoderError if they are of another network."""
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
        """Writes the exported files on rank 0, and starts to write the checkpoint there from a copy of all tensors.

        Raises FitError if the checkpoint before could not be written.
        """
        if not self.run.fabric.is_global_zero:
            return
        self._writer.wait()
        self.export()
        values = {**self.numbers(), "config": self.config().model_dump(mode="json"), "reader": dict(reader_state)}
        tensors = self._copied_tensors()
        self._writer.start(lambda: save_state(self.folder / CHECKPOINT, self.name, tensors, values))

    def _copied_tensors(self) -> dict[str, Tensor]:
        """Copies in memory that is kept from one checkpoint to the next: to get new memory takes several times as long as the copying."""
        names = []
        for name, tensor in self.tensors().items():
            kept = self._copies.get(name)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._copies[name].copy_(tensor.detach())
            names.append(name)
        return {name: self._copies[name] for name in names}

    def finish_saving(self) -> None:
        """Returns when the checkpoint is on the disk. Raises FitError if it could not be written."""
        self._writer.wait()

    def resume(self) -> dict[str, Any] | None:
        """Loads the checkpoint in the stage's folder. Returns the reader's state, or None if there is no checkpoint.

        Raises CheckpointError or EncoderError for a checkpoint of other networks, or one that some ranks cannot see.
        """
        path = self.folder / CHECKPOINT
        reader_state: dict[str, Any] | None = None
        if path.exists():
            tensors, values = load_state(path, self.name)
            differing = changes(
                _completed(values.get("config") or {}, self.config()), self.config().model_dump(mode="json")
            )
            if differing:
                raise CheckpointError(
                    f"{path} is of another network ({'; '.join(differing)}): "
                    f"set back what was changed, or choose another folder with --out"
                )
            reader_state = values.get("reader")
            if not isinstance(reader_state, dict):
                raise damaged(path, "it has no state of the reader")
            self.put(tensors, values, path)
        if not ranks_agree(self.samples_seen, self.device):
            raise CheckpointError(
                f"{path}: the ranks see different checkpoints; put the run's folder on a disk that all share"
            )
        return reader_state


def _completed(stored: dict[str, Any], config: Settings) -> dict[str, Any]:
    """``stored`` with the defaults of the settings that did not exist yet when it was written."""
    try:
        return type(config).model_validate(stored).model_dump(mode="json") if stored else stored
    except ValidationError:
        return stored


def damaged(path: Path, why: object) -> CheckpointError:
    """The error for a checkpoint with invalid contents."""
    return CheckpointError(f"{path} is damaged ({why!r}); remove {path.parent} to begin this stage anew")


class StageSettings(Protocol):
    """The settings of a stage that the loop uses."""

    @property
    def num_samples(self) -> int: ...

    @property
    def validate_every_samples(self) -> int: ...

    @property
    def save_every_samples(self) -> int: ...


class Resumable(Stage, Protocol):
    """A stage that can resume from its own checkpoint."""

    folder: Path

    def resume(self) -> dict[str, Any] | None: ...

    def out_of_memory(self, error: BaseException) -> str: ...

    def close(self) -> None: ...


class ResumableSource(BatchSource, Protocol):
    """A source of batches that can resume in the middle of an epoch, and must be closed."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def run_stage(
    make: Callable[[], Resumable], source: ResumableSource, settings: StageSettings, run: Run, display: Display
) -> Ended:
    """Makes the stage, resumes from its checkpoint if there is one, and runs it. Closes stage and source in the end."""
    stage: Resumable | None = None
    try:
        stage = make()
        reader_state = stage.resume()
        if reader_state is not None:
            _go_on(source, reader_state, stage.folder)
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
    except torch.OutOfMemoryError as error:
        problem = (
            out_of_memory("the stage", settings, error, samples_per_step=None)
            if stage is None
            else stage.out_of_memory(error)
        )
        raise FitError(f"{problem}. {_what_stays(stage)}") from error
    except LostRankError as error:
        raise LostRankError(f"{error}. {_what_stays(stage)}") from error
    finally:
        source.close()
        if stage is not None:
            try:
                stage.finish_saving()
            finally:
                stage.close()


def _go_on(source: ResumableSource, reader_state: Mapping[str, Any], folder: Path) -> None:
    """Sets the source to the checkpoint's position. Raises CheckpointError if the position is of other data or settings."""
    try:
        source.load_state_dict(reader_state)
    except DataError as error:
        raise CheckpointError(
            f"{folder / CHECKPOINT} does not fit what is to be read now: {error}. To begin the stage anew, remove {folder}, or "
            f"choose another folder with --out"
        ) from error


def _what_stays(stage: Resumable | None) -> str:
    """What a run that ends in the middle of a step leaves."""
    if stage is None or not (stage.folder / CHECKPOINT).exists():
        return "There is no checkpoint yet"
    return (
        f"What was learned since the last checkpoint is not kept: {stage.folder / CHECKPOINT} is complete, and the same "
        f"command goes on from it"
    )


def rank_reader(
    mixes: list[DatasetMix], settings: ReaderSettings, run: Run, split: str, *, whole: bool = False
) -> Reader:
    """This rank's reader of a split. Only the split ``train`` is shuffled. ``whole``: it reads the samples of all ranks."""
    return Reader(
        mixes,
        settings,
        split=split,
        seed=run.settings.seed,
        rank=0 if whole else run.fabric.global_rank,
        num_ranks=1 if whole else num_ranks(),
        shuffle=split == "train",
    )
