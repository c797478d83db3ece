"""The prior stage: a generator learns to draw the frames of datasets, or the pictures of a folder.

Shape suffixes: B samples, T frames, N = B T pictures, C = 3 colours, H W rows and columns, F features.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.encoders.weights import load_into
from pipeline.errors import CheckpointError, FitError
from pipeline.schema import stable_hash
from trainer.ada import next_p
from trainer.batches import Batch
from trainer.checkpoint import below, load_optimizer, load_state, optimizer_tensors, save_state
from trainer.ema import average_weight, move_average
from trainer.fidelity import Fidelity
from trainer.gather import add_over_ranks, average_over_ranks, gather_numbers
from trainer.loop import Ended, fit
from trainer.model.load import save_generator
from trainer.optimizing import gradients_of
from trainer.prior_phases import Adversaries, Phase, make_networks, make_phases
from trainer.prior_samples import fake_features, real_features, write_samples
from trainer.prior_settings import GROUP_SIZE, clips_per_group, generator_config
from trainer.prior_source import make_source
from trainer.run import Run, changes, ranks_agree
from trainer.stats import Display

if TYPE_CHECKING:
    from trainer.config import FitRecipe

logger = logging.getLogger(__name__)

NAME = "prior"
CHECKPOINT = "resume.safetensors"
LAST, BEST = "last.safetensors", "best.safetensors"


class Prior:
    """The stage: generator, its average, discriminator, their optimizers, and the probability of augmentation."""

    name = NAME
    headline: Sequence[str] = ()

    def __init__(self, recipe: FitRecipe, run: Run) -> None:
        settings = recipe.prior
        self.recipe, self.settings, self.run = recipe, settings, run
        self.samples_seen = self.num_steps = 0
        self.folder = run.stage_folder(NAME)
        self.device = run.fabric.device
        self.config = generator_config(settings)
        torch.manual_seed(run.settings.seed)
        generator, discriminator, self.discriminator_config = make_networks(settings)
        if run.settings.precision == "bf16":
            generator.use_half(torch.bfloat16)
            discriminator.half_dtype = torch.bfloat16
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        """What generates: the average of the generator over training."""
        self.adversaries = Adversaries(
            settings,
            self.generator,
            self.discriminator,
            torch.zeros((), device=self.device),
            settings.ada_fixed_p or 0.0,
        )
        self.phases = make_phases(self.adversaries)
        self.sign_sum, self.sign_count = 0.0, 0.0
        """Of the discriminator's outputs for real pictures, since augmentation was adapted last."""
        self.best: float | None = None
        """The smallest distance from the real pictures that a validation found."""
        self.told: dict[str, float] = {}
        """The latest value of every measure: some phases are not run in every step."""
        of_fidelity = settings.fidelity
        self.fidelity = Fidelity(of_fidelity, self.device) if of_fidelity.num_pictures else None
        """None: nothing is measured."""
        self._real_NF: Tensor | None = None

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Runs the phases whose turn it is; the measures, or none where no rank has a picture.

        Raises FitError for a loss or gradient that is not finite; all is then as before the step.
        """
        # everything random in a step comes from here: nothing of it needs to be in a checkpoint
        identity = ("prior step", self.run.settings.seed, self.num_steps, self.run.fabric.global_rank)
        torch.manual_seed(int(stable_hash(*identity, length=15), 16))
        reals_BTCHW = self._reals(batch)
        num_own = len(reals_BTCHW) * reals_BTCHW.shape[1]
        total = int(gather_numbers([num_own], self.device).sum())
        if not total:
            return {}
        self.adversaries.blur_px = self.settings.blur_at(self.samples_seen)
        tensors, values = {name: one.detach().clone() for name, one in self._tensors().items()}, self._values()
        try:
            for phase in self.phases:
                if self.num_steps % phase.every == 0:
                    self.told |= self._learn(phase, reals_BTCHW, total, batch)
        except FitError:
            self._put(tensors, values, self.folder / CHECKPOINT)
            raise
        # ranks saw other latents: averages that the networks keep of them are made one
        kept = [one for name, one in self.generator.named_buffers() if name.endswith(("w_avg", "magnitude_ema"))]
        average_over_ranks([*kept, self.adversaries.path_mean])
        settings = self.settings
        weight = average_weight(total, settings.ema_half_life, self.samples_seen, settings.ema_ramp_up)
        move_average(self.average, self.generator, weight)
        self._adapt_augmentation(total)
        self.num_steps += 1
        self.samples_seen += total
        losses = self.told["generator_loss"] + self.told["discriminator_loss"]
        return {"loss": losses, **self.told, "augment_p": self.adversaries.p}

    def _reals(self, batch: Batch) -> Tensor:
        """(B, T, 3, H, W), -1..1, mirrored half of the time. Few may be left out, so that groups of pictures are whole."""
        frames = batch.frames_BTCHW
        num_frames = max(1, frames.shape[1])
        if len(frames) * num_frames > GROUP_SIZE:
            frames = frames[: len(frames) - len(frames) % clips_per_group(num_frames)]
        reals = frames.to(self.device).float() / 127.5 - 1
        if self.settings.mirror:
            mirrored_B = torch.rand(len(reals)) < 0.5
            reals = torch.where(mirrored_B.to(self.device)[:, None, None, None, None], reals.flip(-1), reals)
        return reals

    def _learn(self, phase: Phase, reals_BTCHW: Tensor, total: int, batch: Batch) -> dict[str, float]:
        """One optimizer step. The loss is the mean over the pictures of all micro-batches and ranks."""
        for network in (self.generator, self.discriminator):
            network.requires_grad_(False)
        for parameter in phase.parameters:
            parameter.requires_grad_()
        phase.optimizer.zero_grad()
        measures: dict[str, float] = {}
        for part in self._micro_batches(reals_BTCHW):
            share = part.shape[0] * part.shape[1] / total
            terms = phase.loss(part)
            (terms.loss * (share * phase.every)).backward()  # type: ignore[no-untyped-call]
            for name, value in terms.measures.items():
                measures[name] = measures.get(name, 0.0) + value * share
        gradients = gradients_of(phase.parameters)
        add_over_ranks(gradients)
        length = float(torch.nn.utils.get_total_norm(gradients))
        sums = gather_numbers([measures.get(name, 0.0) for name in phase.measures], self.device).sum(0)
        measures = dict(zip(phase.measures, sums.tolist(), strict=True))
        if not all(math.isfinite(value) for value in [length, *measures.values()]):
            said = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
            keys = ", ".join(batch.keys[:3]) or "other ranks"
            raise FitError(
                f"prior: the loss of the phase {phase.name} is not finite after {self.samples_seen} pictures "
                f"({said}, gradient {length:.4g}) in the batch of {keys}"
            )
        phase.optimizer.step()
        return measures

    def _micro_batches(self, reals_BTCHW: Tensor) -> Iterator[Tensor]:
        size, num_frames = self.settings.micro_batch_size, reals_BTCHW.shape[1]
        if not len(reals_BTCHW):
            return
        clips = len(reals_BTCHW) if size is None else max(1, size // num_frames)
        if clips * num_frames > GROUP_SIZE:
            whole = clips_per_group(num_frames)
            clips = max(whole, clips - clips % whole)
        yield from torch.split(reals_BTCHW, clips)

    def _adapt_augmentation(self, num_new: int) -> None:
        """Every ``ada_every`` steps, by the mean sign of what the discriminator said of real pictures since the last time."""
        signs, settings = self.adversaries.signs, self.settings
        own = [float(sum(float(one.sum()) for one in signs)), float(sum(one.numel() for one in signs))]
        signs.clear()
        total, count = gather_numbers(own, self.device).sum(0).tolist()
        self.sign_sum, self.sign_count = self.sign_sum + total, self.sign_count + count
        if (self.num_steps + 1) % settings.ada_every:
            return
        mean_sign = self.sign_sum / max(1.0, self.sign_count)
        self.told["real_sign"] = mean_sign
        if settings.ada is not None and settings.ada_fixed_p is None:
            pictures_seen = num_new * settings.ada_every
            self.adversaries.p = next_p(
                self.adversaries.p, mean_sign, settings.ada_target, pictures_seen, settings.ada_samples
            )
        self.sign_sum = self.sign_count = 0.0

    # validation

    def validate(self) -> dict[str, float]:
        """Writes a grid of samples, and measures how far generated pictures are from real ones."""
        settings = self.settings
        if self.run.fabric.is_global_zero:
            write_samples(self.average, settings.grid_seeds, settings.grid_truncation, self.samples_seen, self.run)
        if self.fidelity is None:
            return {}
        if self._real_NF is None:
            source = make_source(self.recipe, self.run, shuffle=False)
            self._real_NF = real_features(
                source, self.fidelity, settings.fidelity.num_pictures, settings.grid_seeds, self.run
            )
        fake_NF = fake_features(self.average, self.fidelity, len(self._real_NF), self.run)
        measures = self.fidelity.measure(self._real_NF, fake_NF)
        distance = next(iter(measures.values()), None)
        if distance is not None and (self.best is None or distance < self.best):
            self.best = distance
            if self.run.fabric.is_global_zero:
                self._save_generator(BEST)
        return measures

    # checkpoints

    def save(self, reader_state: Mapping[str, Any]) -> None:
        """Writes ``last.safetensors`` (the averaged generator, the discriminator) and what is needed to resume."""
        if self.run.fabric.is_global_zero:
            self._save_generator(LAST)
            if self.best is None:
                self._save_generator(BEST)
            values = {**self._values(), "config": self.config.model_dump(mode="json"), "reader": dict(reader_state)}
            save_state(self.folder / CHECKPOINT, NAME, self._tensors(), values)
        self.run.fabric.barrier()

    def _save_generator(self, name: str) -> None:
        save_generator(self.folder / name, self.config, self.average, self.discriminator_config, self.discriminator)

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "average": self.average, "discriminator": self.discriminator}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {f"optimizer_{phase.name}": phase.optimizer for phase in self.phases if phase.is_main}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; not copied."""
        found = {
            f"{prefix}.{name}": tensor
            for prefix, network in self._networks().items()
            for name, tensor in network.state_dict().items()
        }
        for prefix, optimizer in self._optimizers().items():
            found |= optimizer_tensors(optimizer, prefix)
        return {**found, "path_mean": self.adversaries.path_mean}

    def _values(self) -> dict[str, Any]:
        """The numbers that a step changes."""
        return {
            "samples_seen": self.samples_seen,
            "num_steps": self.num_steps,
            "augment_p": self.adversaries.p,
            "sign_sum": self.sign_sum,
            "sign_count": self.sign_count,
            "best": self.best,
            "told": dict(self.told),
        }

    def _put(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], path: Path) -> None:
        """The inverse of ``_tensors`` and ``_values``. Raises CheckpointError or EncoderError for those of another network."""
        try:
            self.samples_seen, self.num_steps = int(values["samples_seen"]), int(values["num_steps"])
            self.adversaries.p = float(values["augment_p"])
            self.sign_sum, self.sign_count = float(values["sign_sum"]), float(values["sign_count"])
            self.best, self.told = values["best"], dict(values["told"])
            path_mean = tensors["path_mean"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error!r}); remove {path.parent} to begin this stage anew"
            ) from error
        if self.settings.ada_fixed_p is not None:
            self.adversaries.p = self.settings.ada_fixed_p
        for prefix, network in self._networks().items():
            load_into(network, below(tensors, prefix), path)
        for prefix, optimizer in self._optimizers().items():
            load_optimizer(optimizer, tensors, prefix, path)
        self.adversaries.path_mean.copy_(path_mean)
        self.adversaries.signs.clear()

    def resume(self) -> dict[str, Any] | None:
        """Takes up the checkpoint in the stage's folder; the reader's state in it, or None where there is no checkpoint.

        Raises CheckpointError or EncoderError for one that does not fit, or that not every rank sees.
        """
        path = self.folder / CHECKPOINT
        reader_state: dict[str, Any] | None = None
        if path.exists():
            tensors, values = load_state(path, NAME)
            differing = changes(values.get("config") or {}, self.config.model_dump(mode="json"))
            if differing or not isinstance(values.get("reader"), dict):
                raise CheckpointError(
                    f"{path} is of another network ({'; '.join(differing) or 'it has no state of the data'}): "
                    f"set back what was changed, or choose another folder with --out"
                )
            self._put(tensors, values, path)
            reader_state = values["reader"]
        if not ranks_agree(self.samples_seen, self.device):
            raise CheckpointError(
                f"{path}: the ranks see different checkpoints; put the run's folder on a disk that all share"
            )
        return reader_state


def fit_prior(recipe: FitRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one, and leaves ``best.safetensors`` and ``last.safetensors``."""
    settings = recipe.prior
    source = make_source(recipe, run, shuffle=True)
    try:
        stage = Prior(recipe, run)
        reader_state = stage.resume()
        if reader_state is not None:
            source.load_state_dict(reader_state)
        run.stats.resume(NAME, stage.samples_seen)
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
