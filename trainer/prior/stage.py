"""The prior stage: trains a generator on the frames of datasets, or on the pictures of a folder.

Shape suffixes: B samples, T frames, N = B T pictures, C = 3 colours, H W rows and columns, F features.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.settings import Settings
from trainer.adversarial.ada import next_p
from trainer.engine.ema import average_weight, move_average
from trainer.engine.learner import BEST, LAST, Learner, damaged, run_stage
from trainer.engine.loop import Ended
from trainer.engine.ranks import average_over_ranks, gather_numbers
from trainer.engine.run import Run
from trainer.engine.stats import Display
from trainer.model.frame_encoder import FrameCodes
from trainer.model.load import save_generator
from trainer.prior.drawn_pictures import fake_features, real_features, write_grid, write_pairs
from trainer.prior.fidelity import Fidelity
from trainer.prior.networks import clips_per_group, generator_config
from trainer.prior.phases import Adversaries, make_networks, prior_phases, start_encoder
from trainer.prior.reconstruction import Reconstruction, reconstruction_phases
from trainer.prior.reconstruction_settings import ReconstructionSettings
from trainer.prior.settings import GROUP_SIZE
from trainer.prior.source import make_source
from trainer.streaming.batches import Batch

if TYPE_CHECKING:
    from trainer.prior.settings import PriorRecipe

logger = logging.getLogger(__name__)

NAME = "prior"
AVERAGES = ("w_avg", "spread", "magnitude_ema")
"""Names of buffers of the generator that are averages over its pictures."""
NUM_RECONSTRUCTED = 32
"""Largest number of frames whose reconstructions a validation shows."""


class Prior(Learner):
    """The stage: generator, averaged generator, discriminator, their optimizers, and the probability of augmentation."""

    name = NAME
    group_size = GROUP_SIZE

    def __init__(self, recipe: PriorRecipe, run: Run) -> None:
        settings = recipe.prior
        super().__init__(run)
        self.recipe, self.settings = recipe, settings
        self.made = generator_config(settings)
        torch.manual_seed(run.settings.seed)
        generator, discriminator, self.discriminator_config = make_networks(settings)
        if run.settings.precision == "bf16":
            generator.use_half(torch.bfloat16)
            discriminator.half_dtype = torch.bfloat16
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        """The average of the generator over training; this network draws the pictures and is exported."""
        self.compile(self.generator.synthesis, self.discriminator)
        self.adversaries = Adversaries(
            settings,
            self.generator,
            self.discriminator,
            torch.zeros((), device=self.device),
            settings.ada_fixed_p or 0.0,
        )
        self.average_codes: FrameCodes | None = None
        """The average of the encoder of frames over training; this one is exported. None: the prior does not learn by reconstruction."""
        self.reconstruction = None if settings.reconstruction is None else self._reconstruction(settings.reconstruction)
        self.phases = (
            prior_phases(self.adversaries)
            if self.reconstruction is None
            else reconstruction_phases(self.reconstruction)
        )
        self.sign_sum, self.sign_count = 0.0, 0.0
        """Sum and number of the signs of the discriminator's outputs for real pictures since the last adaptation."""
        self.latest_measures: dict[str, float] = {}
        """The latest value of every measure: some phases do not run in every step. Checkpoints store it as ``told``."""
        self.fidelity = Fidelity(settings.fidelity, self.device) if settings.fidelity.num_pictures else None
        """None: fidelity is not measured."""
        self._real_NF: Tensor | None = None

    def _reconstruction(self, settings: ReconstructionSettings) -> Reconstruction:
        codes = start_encoder(self.settings, self.device)
        if codes is None:
            codes = FrameCodes(settings.encoder, self.generator.num_ws, self.generator.w_dim, self.device)
        codes.encoder.train().requires_grad_()
        self.average_codes = copy.copy(codes)
        self.average_codes.encoder = copy.deepcopy(codes.encoder).eval().requires_grad_(False)
        return Reconstruction(settings, self.adversaries, codes)

    def samples_per_step(self) -> int:
        frames = 1 if self.settings.pictures is not None else self.settings.frames_per_clip
        return self.settings.batch_size * frames

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Runs the phases that are due. Returns the measures; empty if no rank has a picture.

        Raises FitError for a loss or gradient that is not finite; the stage is then unchanged.
        """
        self.draw_alike()
        reals_BTCHW = self._reals(batch)
        num_own = len(reals_BTCHW) * reals_BTCHW.shape[1]
        total = int(gather_numbers([num_own], self.device).sum())
        if not total:
            return {}
        self.adversaries.blur_px = self.settings.blur_at(self.samples_seen)
        parts = [(part, part.shape[0] * part.shape[1] / total) for part in self._micro_batches(reals_BTCHW)]
        networks = [network for name, network in self.networks().items() if not name.startswith("average")]
        settings = self.settings
        weight = average_weight(total, settings.ema_half_life, self.samples_seen, settings.ema_ramp_up)
        if self.reconstruction is not None:
            self.reconstruction.set_rates(self.phases, self.samples_seen)
        try:
            self.latest_measures |= self.learn(self.phases, parts, networks, batch)
            if self.reconstruction is not None:
                self.reconstruction.learn_average(weight)
        finally:
            if self.reconstruction is not None:
                self.reconstruction.drawn_of.clear()
        # every rank has drawn other latents: the running averages are averaged over ranks
        averages = [one for name, one in self.generator.named_buffers() if name.endswith(AVERAGES)]
        average_over_ranks([*averages, self.adversaries.path_mean])
        move_average(self.average, self.generator, weight)
        if self.reconstruction is not None and self.average_codes is not None:
            move_average(self.average_codes.encoder, self.reconstruction.codes.encoder, weight)
        self._adapt_augmentation(total)
        self.num_steps += 1
        self.samples_seen += total
        return {"loss": self._loss(), **self.latest_measures, "augment_p": self.adversaries.p}

    def _loss(self) -> float:
        """What the progress shows."""
        measures = self.latest_measures
        if self.reconstruction is not None:
            return measures["reconstruction_loss"]
        return measures["generator_loss"] + measures["discriminator_loss"]

    def _reals(self, batch: Batch) -> Tensor:
        """(B, T, 3, H, W), -1..1, mirrored half of the time. The last clips are left out if their pictures do not fill a group."""
        frames = batch.frames_BTCHW
        num_frames = max(1, frames.shape[1])
        if len(frames) * num_frames > GROUP_SIZE:
            frames = frames[: len(frames) - len(frames) % clips_per_group(num_frames)]
        reals = frames.to(self.device).float() / 127.5 - 1
        if self.settings.mirror:
            mirrored_B = torch.rand(len(reals)) < 0.5
            reals = torch.where(mirrored_B.to(self.device)[:, None, None, None, None], reals.flip(-1), reals)
        return reals

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
        """Adapts p every ``ada_every`` steps, by the mean sign of the discriminator's outputs for real pictures since the last time."""
        signs, settings = self.adversaries.signs, self.settings
        own = [float(sum(float(one.sum()) for one in signs)), float(sum(one.numel() for one in signs))]
        signs.clear()
        total, count = gather_numbers(own, self.device).sum(0).tolist()
        self.sign_sum, self.sign_count = self.sign_sum + total, self.sign_count + count
        if (self.num_steps + 1) % settings.ada_every:
            return
        mean_sign = self.sign_sum / max(1.0, self.sign_count)
        self.latest_measures["real_sign"] = mean_sign
        if settings.ada is not None and settings.ada_fixed_p is None:
            pictures_seen = num_new * settings.ada_every
            self.adversaries.p = next_p(
                self.adversaries.p, mean_sign, settings.ada_target, pictures_seen, settings.ada_samples
            )
        self.sign_sum = self.sign_count = 0.0

    # validation

    def validate(self) -> dict[str, float]:
        """Writes a grid of generated pictures, and measures their distance from real ones. Empty if fidelity is not measured."""
        settings = self.settings
        if self.run.fabric.is_global_zero:
            write_grid(self.average, settings.grid_seeds, settings.grid_truncation, self.samples_seen, self.run)
        if self.average_codes is not None:
            self._show_reconstructions(self.average_codes)
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

    def _show_reconstructions(self, codes: FrameCodes) -> None:
        """Writes frames of the validation split, each beside its reconstruction; of the training split if there is no other."""
        source = make_source(
            self.recipe,
            self.run,
            shuffle=self.settings.pictures is not None,  # the first of a folder, by name, may all show one thing
            split="validation" if self.run.mixes("validation") else "train",
        )
        try:
            batch = next(iter(source), None)
        finally:
            source.close()
        if batch is None or not self.run.fabric.is_global_zero:
            return
        reals = (batch.frames_BTCHW[:, 0].to(self.device).float() / 127.5 - 1)[:NUM_RECONSTRUCTED]
        with torch.no_grad():
            drawn = self.average.synthesis(codes(reals), noise_mode="const")
        write_pairs(reals, drawn, self.samples_seen, self.run)

    # checkpoints

    def export(self) -> None:
        self._save_generator(LAST)
        if self.best is None:
            self._save_generator(BEST)

    def _save_generator(self, name: str) -> None:
        codes = self.average_codes
        save_generator(
            self.folder / name,
            self.made,
            self.average,
            self.discriminator_config,
            self.discriminator,
            None if codes is None else codes.config,
            None if codes is None else codes.encoder,
        )

    def networks(self) -> Mapping[str, nn.Module]:
        networks = {"generator": self.generator, "average": self.average, "discriminator": self.discriminator}
        if self.reconstruction is not None and self.average_codes is not None:
            networks |= {"encoder": self.reconstruction.codes.encoder, "average_encoder": self.average_codes.encoder}
        return networks

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {f"optimizer_{phase.name}": phase.optimizer for phase in self.phases if phase.is_main}

    def config(self) -> Settings:
        return self.made

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "path_mean": self.adversaries.path_mean}

    def numbers(self) -> dict[str, Any]:
        own = {"augment_p": self.adversaries.p, "sign_sum": self.sign_sum, "sign_count": self.sign_count}
        return {**super().numbers(), **own, "told": dict(self.latest_measures)}

    def put(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], path: Path) -> None:
        super().put(tensors, numbers, path)
        try:
            self.adversaries.p = float(numbers["augment_p"])
            self.sign_sum, self.sign_count = float(numbers["sign_sum"]), float(numbers["sign_count"])
            self.latest_measures = dict(numbers["told"])
            path_mean = tensors["path_mean"]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
        if self.settings.ada_fixed_p is not None:
            self.adversaries.p = self.settings.ada_fixed_p
        self.adversaries.path_mean.copy_(path_mean)
        self.adversaries.signs.clear()

    def close(self) -> None:
        """Does nothing: the stage keeps no file or process open."""


def fit_prior(recipe: PriorRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one. Writes ``best.safetensors`` and ``last.safetensors``."""
    source = make_source(recipe, run, shuffle=True)
    return run_stage(lambda: Prior(recipe, run), source, recipe.prior, run, display)
