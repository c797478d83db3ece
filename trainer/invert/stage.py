"""The invert stage: the sound inversion encoder E_a learns to put sounds into W+, where the generator draws what fits them.

ŵ_a = E_a(x_a) + w, and L_enc = L_CLIP(a↔v) + L_CLIP(a↔t) + λ_b |ŵ_a - w̄|² ("Sound-Guided Semantic Video Generation",
section 3.1). It hears whole windows in one half of the steps and single segments in the other, since the recurrent blocks
of the next stage are driven by segments.

Shape suffixes: B samples, S segments, M mel bands, T mel frames, K cutouts, C H W of pictures, L layers that take a style
each, D numbers of a style or of the space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.encoders.pair import EncoderPair
from pipeline.encoders.sound import read_align_config
from pipeline.encoders.weights import read_state_dict
from trainer.engine.learner import run_stage
from trainer.engine.loop import Ended
from trainer.engine.optimizing import adamw, learning_rate_share
from trainer.engine.phases import Phase, Terms
from trainer.engine.ranks import gather_items, gather_numbers, gather_rows
from trainer.engine.run import Run
from trainer.engine.stats import Display
from trainer.invert.guide import ALIGN_CHECKPOINT, Guide, clip_loss, cutouts
from trainer.invert.judge import judged_pictures, judged_sounds, load_judge
from trainer.invert.shared import SoundVideoStage, clip_reader, generator_file, model_config
from trainer.model.generator import GeneratorConfig
from trainer.model.pictures import grid, to_uint8, write_png
from trainer.model.sound_video import SoundVideoModel
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader

if TYPE_CHECKING:
    from trainer.invert.settings import InvertRecipe

NAME = "invert"
MEASURES = ("sound_loss", "text_loss", "style_loss", "loss")
NUM_SHOWN = 16
"""Sounds of the validation split whose pictures are in the sample grid, at the most."""


@dataclass(frozen=True, slots=True)
class GuidedClips:
    """Some clips of a batch, on the device: what the losses take."""

    reals_BTCHW: Tensor
    """Real frames, -1..1."""
    mels_BMT: Tensor
    seconds_B: Tensor
    """Length of the real sound in each window."""
    sounds_BD: Tensor
    """F_a of the clips' sounds."""
    texts_BD: Tensor
    """F_t of their captions or classes."""

    def split(self, size: int | None) -> Iterator[GuidedClips]:
        """Micro-batches of at most ``size`` clips; None: one of all."""
        for start in range(0, len(self.mels_BMT), size or max(1, len(self.mels_BMT))):
            rows = slice(start, start + (size or len(self.mels_BMT)))
            yield GuidedClips(*(getattr(self, one.name)[rows] for one in fields(self)))


class Invert(SoundVideoStage):
    """The stage: the model whose inversion encoder learns, its optimizer, and the guide."""

    name = NAME

    def __init__(
        self, recipe: InvertRecipe, run: Run, model: SoundVideoModel, generator_config: GeneratorConfig
    ) -> None:
        super().__init__(recipe, run, model, generator_config)
        self.settings = settings = recipe.invert
        self.optimizer = adamw(list(model.inversion.parameters()), settings.learning_rate, 0.01)
        longest = settings.max_gradient_norm
        self.phases = [
            Phase(NAME, self.optimizer, 1, self._loss, MEASURES, max_gradient_norm=longest),
            *self.guide.lesson_phase(self._shown, recipe.student.refresh_pictures),
        ]
        self._segment: int | None = None
        """The segment of the windows that this step hears; None: the whole windows."""
        self._judge: EncoderPair | None = None
        self._validation: Reader | None = None
        self._from_start: Mapping[str, object] = {}

    def networks(self) -> Mapping[str, nn.Module]:
        return {"inversion": self.model.inversion, **self.guide.networks()}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, **self.guide.optimizers()}

    def close(self) -> None:
        if self._validation is not None:
            self._validation.close()

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Learns from one batch; its measures, or none where no rank has a sample.

        Raises FitError for a loss or gradient that is not finite; all is then as before the step.
        """
        self.draw_alike()
        total = int(gather_numbers([len(batch)], self.device).sum())
        if not total:
            return {}
        settings = self.settings
        rate = settings.learning_rate * learning_rate_share(self.samples_seen, settings.num_samples, 0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.inversion.train()
        # the same on every rank: the windows of one step are of one length
        chosen = (self.num_steps * 7919 + self.run.settings.seed) % (2 * self.model.config.num_frames)
        self._segment = chosen if chosen < self.model.config.num_frames else None
        parts = [(part, len(part.mels_BMT) / total) for part in self._heard(batch).split(settings.micro_batch_size)]
        measures = self.learn(self.phases, parts, [self.model, *self.guide.networks().values()], batch)
        self.share_statistics()
        self.num_steps += 1
        self.samples_seen += total
        return {**measures, "learning_rate": rate}

    def _heard(self, batch: Batch) -> GuidedClips:
        sounds_BD, texts_BD = self.guide.sounds(batch), self.guide.texts(batch, *self.identity())
        return GuidedClips(self.reals(batch), self.heard_mels(batch), batch.seconds_B, sounds_BD, texts_BD)

    def _styles(self, part: GuidedClips) -> Tensor:
        model = self.model
        mels = part.mels_BMT
        if self._segment is not None:
            mels = model.segments_of(mels, part.seconds_B)[:, self._segment]
        latents = torch.randn(len(mels), model.generator.z_dim).to(self.device)
        with self.run.fabric.autocast():
            return model.invert(mels, model.base_styles(latents)).float()

    @torch.no_grad()
    def _shown(self, part: GuidedClips) -> Tensor:
        """(N, 3, H, W): a generated picture and a real frame of each clip, a random square of them all."""
        pictures = torch.cat([self.model.draw(self._styles(part)).clamp(-1, 1), part.reals_BTCHW[:, 0]])
        return cutouts(pictures, 1, self.settings.guide.smallest_cutout)[0]

    def _loss(self, part: GuidedClips) -> Terms:
        settings, model = self.settings, self.model
        styles_BLD = self._styles(part)
        parts = guided_losses(model, self.guide, styles_BLD, part.sounds_BD, part.texts_BD)
        loss = (
            settings.sound_weight * parts["sound_loss"]
            + settings.text_weight * parts["text_loss"]
            + settings.style_weight * parts["style_loss"]
        )
        parts["loss"] = loss
        return Terms(loss, {name: float(value.detach()) for name, value in parts.items()})

    # validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cosines of generated pictures with their own sound and with those of other classes, by the judge; and a sample grid.

        ``guide_own_minus_wrong`` is the same difference by the guide: where it alone grows, pictures learn to deceive it.
        """
        mixes = self.run.mixes("validation")
        if not mixes:
            return {}
        if self._validation is None:
            size = self.settings.batch_size
            side = self.model.generator.resolution
            self._validation = clip_reader(self.recipe, self.run, "validation", size, side, mel=True)
            self._from_start = self._validation.state_dict()
        self._validation.load_state_dict(self._from_start)
        if self._judge is None:
            self._judge = load_judge(self.settings.judge, self.guide.encoder_ids, "invert.judge")
        self.model.eval()
        self.draw_alike()
        seen, heard, guided, guiding, described, shown = [], [], [], [], [], []
        for batch in self._validation:
            rows_BD, pictures_BCHW = self._drawn(batch)
            guided.append(gather_rows(rows_BD)[0])
            guiding.append(gather_rows(self.guide.sounds(batch))[0])
            seen.append(gather_rows(judged_pictures(self._judge, pictures_BCHW).to(self.device))[0])
            heard.append(gather_rows(judged_sounds(self._judge, batch).to(self.device))[0])
            shown.append(gather_rows(pictures_BCHW)[0].cpu())
            described += gather_items(list(batch.labels))
            if len(described) >= self.settings.validation_samples:
                break
        own, wrong = _own_and_wrong(torch.cat(seen), torch.cat(heard), described)
        if self.run.fabric.is_global_zero and described:
            pictures = grid(to_uint8(torch.cat(shown)[:NUM_SHOWN]))
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            write_png(folder / f"{self.samples_seen:010d}.png", pictures)
            self.run.stats.picture(NAME, "samples", self.samples_seen, pictures)
        measures = {"num_samples": float(len(described)), "own_cosine": own}
        if wrong is not None:
            measures |= {"wrong_cosine": wrong, "own_minus_wrong": own - wrong}
            of_guide, others = _own_and_wrong(torch.cat(guided), torch.cat(guiding), described)
            measures["guide_own_minus_wrong"] = of_guide - (others or 0.0)
        self.keep_if_best(own if wrong is None else own - wrong)
        return measures

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch) or batch.mels_BMT is None:
            side = self.model.generator.resolution
            empty = torch.zeros(0, self.guide.partner.width, device=self.device)
            return empty, torch.zeros(0, 3, side, side, device=self.device)
        latents = torch.randn(1, self.model.generator.z_dim).to(self.device).expand(len(batch), -1)
        styles = self.model.invert(batch.mels_BMT.to(self.device), self.model.base_styles(latents))
        pictures = self.model.draw(styles)
        return self.guide.looking.look(pictures.clamp(-1, 1)), pictures


def start_hearing(model: SoundVideoModel, path: Path) -> None:
    """Puts an align checkpoint's convolutions into the inversion encoder, where there is one and it has the same backbone."""
    if not path.is_file() or read_align_config(path).backbone != model.config.backbone:
        return
    held = read_state_dict(path)
    own = model.inversion.state_dict()
    renamed = {name.replace("feature_extractor.", "body.", 1): tensor for name, tensor in held.items()}
    known = {name: tensor for name, tensor in renamed.items() if name in own and own[name].shape == tensor.shape}
    model.inversion.load_state_dict({**own, **known})


def guided_losses(
    model: SoundVideoModel, guide: Guide, styles_NLD: Tensor, sounds_ND: Tensor, texts_ND: Tensor
) -> dict[str, Tensor]:
    """The three terms of L_enc, each the mean over the pictures of ``styles_NLD``, without their weights."""
    seen_KND = guide.pictures(model.draw(styles_NLD))
    return {
        "sound_loss": clip_loss(seen_KND, sounds_ND).mean(),
        "text_loss": clip_loss(seen_KND, texts_ND).mean(),
        "style_loss": (styles_NLD - model.w_avg).square().mean(),
    }


def _own_and_wrong(seen_ND: Tensor, heard_ND: Tensor, labels: list[tuple[str, ...]]) -> tuple[float, float | None]:
    """Mean cosine of pictures with their own sounds, and with sounds that share no label with them; None: there are none."""
    cosines_NN = torch.nn.functional.normalize(seen_ND, dim=1) @ torch.nn.functional.normalize(heard_ND, dim=1).T
    apart = torch.tensor([[not set(one) & set(other) for other in labels] for one in labels])
    wrong = cosines_NN.cpu()[apart]
    return float(cosines_NN.diagonal().mean()), float(wrong.mean()) if len(wrong) else None


def fit_invert(recipe: InvertRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one, and leaves ``best.safetensors`` and ``last.safetensors``."""
    held = generator_file(recipe, run.folder)
    torch.manual_seed(run.settings.seed)
    model = SoundVideoModel(model_config(recipe), held.generator())
    settings = recipe.invert
    if settings.start_from_align:
        start_hearing(model, run.folder / ALIGN_CHECKPOINT)
    source = clip_reader(recipe, run, "train", settings.batch_size, model.generator.resolution)
    return run_stage(lambda: Invert(recipe, run, model, held.config), source, settings, run, display)
