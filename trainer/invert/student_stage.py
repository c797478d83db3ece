"""The student stage: the student learns the picture encoder's embeddings of frames and of generated pictures.

Shape suffixes: B samples, T frames, N pictures, C = 3 colours, H W rows and columns, L layers that take a style each,
D numbers of a style or of the space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.settings import Settings
from trainer.align.frozen_encoders import load_partner
from trainer.engine.learner import LAST, Learner, run_stage
from trainer.engine.loop import Ended
from trainer.engine.optimizing import adamw, learning_rate_share
from trainer.engine.phases import Phase, Terms
from trainer.engine.ranks import average_over_ranks, gather_numbers, gather_rows
from trainer.engine.run import Run
from trainer.engine.stats import Display
from trainer.invert.checks import needs_student
from trainer.invert.guide import cutouts
from trainer.invert.shared import clip_reader, generator_file
from trainer.invert.student import Student, StudentConfig, save_student, teacher_embeddings
from trainer.model.generator import Generator
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader

if TYPE_CHECKING:
    from trainer.invert.settings import InvertRecipe

NAME = "student"
MEASURES = ("cosine",)
NUM_VALIDATED = 256
"""Largest number of frames in a validation; it uses a quarter as many generated pictures."""


class StudentStage(Learner):
    """The stage: the student, its optimizer, its teacher, and the generator that draws some of its pictures."""

    name = NAME

    def __init__(self, recipe: InvertRecipe, run: Run, generator: Generator) -> None:
        super().__init__(run)
        settings = recipe.student
        self.recipe, self.settings, self.generator = recipe, settings, generator.to(self.device).eval()
        self.teacher = load_partner(recipe.align.partner, self.device, run.settings.precision, "align.partner")
        torch.manual_seed(run.settings.seed)
        made = StudentConfig(
            teacher_id=self.teacher.encoder_id,
            width=self.teacher.width,
            backbone=settings.backbone,
            side_px=settings.side_px,
        )
        self.student = Student(made).to(self.device)
        self.optimizer = adamw(list(self.student.parameters()), settings.learning_rate, 0.01)
        self.phase = Phase("student", self.optimizer, 1, self._loss, MEASURES, max_gradient_norm=1.0)
        self._validation: Reader | None = None
        self._from_start: Mapping[str, object] = {}
        with torch.no_grad():
            many = generator.mapping(torch.randn(256, generator.z_dim, device=self.device))
        self._deviation_D = many[:, 0].std(0)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"student": self.student}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def config(self) -> Settings:
        return self.student.config

    def export(self) -> None:
        save_student(self.folder / LAST, self.student)

    def close(self) -> None:
        if self._validation is not None:
            self._validation.close()

    def step(self, batch: Batch) -> dict[str, float]:
        """Learns from the frames of one batch, and from generated pictures. Returns its measures; empty if no rank has a sample.

        Raises FitError for a loss that is not finite; the stage is then unchanged.
        """
        self.draw_alike()
        total = int(gather_numbers([len(batch)], self.device).sum())
        if not total:
            return {}
        settings = self.settings
        rate = settings.learning_rate * learning_rate_share(self.samples_seen, settings.num_samples, 0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        parts = [(self._pictures(batch), len(batch) / total)] if len(batch) else []
        measures = self.learn([self.phase], parts, [self.student], batch)
        average_over_ranks([buffer for buffer in self.student.buffers() if buffer.is_floating_point()])
        self.num_steps += 1
        self.samples_seen += total
        return {"loss": 1 - measures["cosine"], **measures, "learning_rate": rate}

    def _pictures(self, batch: Batch) -> Tensor:
        """(N, 3, side, side), -1..1: frames and generated pictures, cropped to one random square, half of them mirrored."""
        frames_NCHW = batch.frames_BTCHW.flatten(0, 1).to(self.device).float() / 127.5 - 1
        share = self.settings.generated_share
        count = round(len(frames_NCHW) * share / (1 - share))
        (cut,) = cutouts(torch.cat([frames_NCHW, self.generated(count)]), 1, self.recipe.invert.guide.smallest_cutout)
        mirrored_N = torch.rand(len(cut)) < 0.5
        return torch.where(mirrored_N.to(self.device)[:, None, None, None], cut.flip(-1), cut)

    @torch.no_grad()
    def generated(self, count: int) -> Tensor:
        """(count, 3, H, W) of random styles: layers mixed from two latents, random truncation, and noise that leaves W."""
        generator = self.generator
        one, other = (torch.randn(count, generator.z_dim).to(self.device) for _ in range(2))
        first_NLD, second_NLD = generator.mapping(one), generator.mapping(other)
        layers = torch.arange(generator.num_ws)
        takes_NL = layers >= torch.randint(1, generator.num_ws + 1, (count, 1))
        styles = torch.where(takes_NL.to(self.device)[:, :, None], second_NLD, first_NLD)
        psi = (0.2 + torch.rand(count, 1, 1)).to(self.device)
        moved = torch.randn(styles.shape).to(self.device) * torch.rand(count, 1, 1).to(self.device)
        styles = generator.w_avg + psi * (styles - generator.w_avg)
        pictures: Tensor = generator.synthesis(styles + moved * self._deviation_D * self.settings.style_spread)
        return pictures.clamp(-1, 1)

    def _loss(self, pictures_NCHW: Tensor) -> Terms:
        targets_ND = teacher_embeddings(self.teacher, pictures_NCHW)
        cosine = (self.student(pictures_NCHW) * targets_ND).sum(1).mean()
        return Terms(1 - cosine, {"cosine": float(cosine.detach())})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean cosine of student and teacher, on frames of the validation split and on new generated pictures."""
        self.draw_alike()
        self.student.eval()
        measures = {}
        mixes = self.run.mixes("validation")
        if mixes and self._validation is None:
            size = self.settings.batch_size
            side = self.generator.resolution
            self._validation = clip_reader(self.recipe, self.run, "validation", size, side, sound=False)
            self._from_start = self._validation.state_dict()
        if self._validation is not None:
            self._validation.load_state_dict(self._from_start)
            cosines = [torch.zeros(0)]
            for batch in self._validation:
                frames = batch.frames_BTCHW.flatten(0, 1).to(self.device).float() / 127.5 - 1
                cosines.append(gather_rows(self._cosines(frames))[0].cpu())
                if sum(map(len, cosines)) >= NUM_VALIDATED:
                    break
            measures["frame_cosine"] = float(torch.cat(cosines)[:NUM_VALIDATED].mean())
        drawn_N = gather_rows(self._cosines(self.generated(NUM_VALIDATED // 4)))[0]
        return {**measures, "generated_cosine": float(drawn_N.mean())}

    def _cosines(self, pictures_NCHW: Tensor) -> Tensor:
        if not len(pictures_NCHW):
            return torch.zeros(0, device=self.device)
        targets_ND = teacher_embeddings(self.teacher, pictures_NCHW)
        cosines_N: Tensor = (self.student(pictures_NCHW) * targets_ND).sum(1)
        return cosines_N


def fit_student(recipe: InvertRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage. Writes ``last.safetensors``. Returns at once if the picture encoder has gradients."""
    if not needs_student(recipe):
        return "done"
    generator = generator_file(recipe, run.folder).generator()
    settings = recipe.student
    source = clip_reader(recipe, run, "train", settings.batch_size, generator.resolution, sound=False)
    return run_stage(lambda: StudentStage(recipe, run, generator), source, settings, run, display)
