"""The invert stage: the sound inversion encoder E_a learns to map sounds to styles in W+ whose pictures fit the sounds.

ŵ_a = E_a(x_a) + w, and L_enc is the loss ("Sound-Guided Semantic Video Generation", section 3.1).
In one half of the steps the encoder gets whole windows, in the other half single segments, which drive the recurrent blocks of the
video stage.

Shape suffixes: B samples, S segments, M mel bands, T mel frames, K cutouts, C H W of pictures, L layers that take a style
each, D numbers of a style or of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from trainer.invert.guide import ALIGN_CHECKPOINT, Guide
from trainer.invert.inversion_loss import code_loss, inversion_terms
from trainer.invert.judge import judged_pictures, judged_sounds, load_judge
from trainer.invert.shared import SoundVideoStage, clip_reader, draws_pictures, generator_file, model_config
from trainer.invert.whole_batch import WholeBatch
from trainer.model.code_mapping import CodeMapping
from trainer.model.frame_encoder import FrameCodes
from trainer.model.generator import GeneratorConfig
from trainer.model.pictures import grid, to_uint8, write_png
from trainer.model.sound_video import SoundVideoModel
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader

if TYPE_CHECKING:
    from trainer.invert.settings import InvertRecipe, InvertSettings

NAME = "invert"
MEASURES = ("sound_loss", "text_loss", "style_loss", "loss")
CODE_MEASURES = ("code_loss", "loss")
NUM_SHOWN = 16
"""Largest number of pictures in the grid of a validation."""


@dataclass(frozen=True, slots=True)
class GuidedClips:
    """Some clips of a batch, on the device, as the losses take them."""

    mels_BMT: Tensor
    seconds_B: Tensor
    """Length of the sound in each window, in seconds; silence follows it."""
    sounds_BD: Tensor
    """F_a of the clips' sounds."""
    texts_BD: Tensor
    """F_t of their captions or classes."""
    codes_BLD: Tensor
    """Codes of frames that belong to the sounds; without ``invert.codes``, (B, 0, D)."""
    latents_BKZ: Tensor
    """The latents of the K inversions of each sound."""
    rows_B: Tensor
    """Index of each clip in the batch."""

    def split(self, size: int | None) -> Iterator[GuidedClips]:
        """Micro-batches of at most ``size`` clips; None: one of all."""
        for start in range(0, len(self.mels_BMT), size or max(1, len(self.mels_BMT))):
            rows = slice(start, start + (size or len(self.mels_BMT)))
            yield GuidedClips(*(getattr(self, one.name)[rows] for one in fields(self)))


class Invert(SoundVideoStage):
    """The stage: the model, the optimizer of its inversion encoder, and the guide."""

    name = NAME

    def __init__(
        self, recipe: InvertRecipe, run: Run, model: SoundVideoModel, generator_config: GeneratorConfig
    ) -> None:
        super().__init__(recipe, run, model, generator_config)
        self.settings = settings = recipe.invert
        self.compile(self.model.generator.synthesis, self.guide.partner.network)
        self.optimizer = adamw(list(model.inversion.parameters()), settings.learning_rate, 0.01)
        self.frame_codes: FrameCodes | None = None
        """The encoder of frames. None: no codes are learned from."""
        if settings.codes is not None:
            self.frame_codes = generator_file(recipe, run.folder).frame_codes(self.device)
        measures = MEASURES if settings.codes is None else ("code_loss", *MEASURES)
        self.drawn_phase = self._phase(self._loss, measures)
        self.code_phase = self._phase(self._code_terms, CODE_MEASURES)
        self._clips: GuidedClips | None = None
        """All clips of this step on this rank."""
        self._styles: WholeBatch | None = None
        """The styles of their inversions."""
        self._segment: int | None = None
        """The segment of the windows that is the input of this step. None: the whole windows."""
        self._places_K3 = self.guide.places()
        """The cutouts of this step."""
        self._judge: EncoderPair | None = None
        self._validation: Reader | None = None
        self._from_start: Mapping[str, object] = {}

    def _phase(self, loss: Callable[[GuidedClips], Terms], measures: tuple[str, ...]) -> Phase[GuidedClips]:
        longest = self.settings.max_gradient_norm
        before, after = self._invert_all, self._pass_back
        return Phase(NAME, self.optimizer, 1, loss, measures, max_gradient_norm=longest, before=before, after=after)

    @property
    def draws(self) -> bool:
        """Whether the current step draws pictures. False: it learns from codes alone."""
        return draws_pictures(self.settings.codes, self.samples_seen, self.settings.num_samples)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"inversion": self.model.inversion}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def close(self) -> None:
        if self._validation is not None:
            self._validation.close()

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Learns from one batch. Returns its measures; empty if no rank has a sample.

        Raises FitError for a loss or gradient that is not finite; the stage is then unchanged.
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
        self.code_mean.begin()
        # the same choice on every rank, so that all inputs of a step have one length
        chosen = (self.num_steps * 7919 + self.run.settings.seed) % (2 * self.model.config.num_frames)
        self._segment = chosen if chosen < self.model.config.num_frames else None
        self._places_K3 = self.guide.places()
        self._clips = self._guided(batch)
        parts = [(part, len(part.rows_B) / total) for part in self._clips.split(settings.micro_batch_size)]
        try:
            phase = self.drawn_phase if self.draws else self.code_phase
            measures = self.learn([phase], parts, [self.model], batch)
        finally:
            self._clips = self._styles = None
        self.code_mean.move(total)
        self.share_statistics()
        self.num_steps += 1
        self.samples_seen += total
        return {**measures, "learning_rate": rate}

    def _guided(self, batch: Batch) -> GuidedClips:
        sounds_BD = texts_BD = torch.zeros(len(batch), self.guide.partner.width, device=self.device)
        if self.draws:
            sounds_BD, texts_BD = self.guide.sounds(batch), self.guide.texts(batch, *self.identity())
        num_draws = 1 if self.settings.codes is None else self.settings.codes.draws
        latents_BKZ = torch.randn(len(batch), num_draws, self.model.generator.z_dim).to(self.device)
        rows_B = torch.arange(len(batch), device=self.device)
        codes_BLD = self._codes(batch)
        return GuidedClips(self.heard_mels(batch), batch.seconds_B, sounds_BD, texts_BD, codes_BLD, latents_BKZ, rows_B)

    def _codes(self, batch: Batch) -> Tensor:
        """(B, L, D): the code of a frame of each clip: that of the segment that is heard, or a random one for whole windows."""
        generator = self.model.generator
        if self.frame_codes is None or not len(batch):
            num_layers = 0 if self.frame_codes is None else generator.num_ws
            return torch.zeros(len(batch), num_layers, generator.w_dim, device=self.device)
        frames_BTCHW = batch.frames_BTCHW
        chosen_B = torch.randint(frames_BTCHW.shape[1], (len(batch),))
        if self._segment is not None:
            chosen_B = torch.full_like(chosen_B, self._segment)
        frames_BCHW = frames_BTCHW[torch.arange(len(batch)), chosen_B].to(self.device)
        return self.frame_codes(frames_BCHW.float() / 127.5 - 1)

    def _invert_all(self) -> None:
        """Computes the styles of all clips of the step."""
        if self._clips is not None and len(self._clips.rows_B):
            styles_BKLD = self._inverted(self._clips)
            self.code_mean.add(styles_BKLD[:, 0])
            self._styles = WholeBatch(styles_BKLD)

    def _inverted(self, clips: GuidedClips) -> Tensor:
        """(B, K, L, D): the inversions of the clips, or of one segment of each."""
        model, mels, num_draws = self.model, clips.mels_BMT, clips.latents_BKZ.shape[1]
        if self._segment is not None:
            mels = model.segments_of(mels, clips.seconds_B)[:, self._segment]
        with self.run.fabric.autocast():
            features_BF = model.inversion.features(mels)
            features_NF = features_BF.repeat_interleave(num_draws, 0)
            styles_N1LD = model.inverted(features_NF[:, None], model.start(clips.latents_BKZ.flatten(0, 1)))
        return styles_N1LD.view(len(features_BF), num_draws, *styles_N1LD.shape[2:]).float()

    def _pass_back(self) -> None:
        """Passes the gradients at the styles on to the encoder."""
        if self._styles is not None:
            self._styles.pass_back()

    def _loss(self, part: GuidedClips) -> Terms:
        assert self._styles is not None
        styles_BKLD = self._styles.of(part.rows_B)
        terms = guided_losses(
            self.settings, self.model, self.guide, styles_BKLD[:, 0], self._places_K3, part.sounds_BD, part.texts_BD
        )
        measures = {name: float(value.detach()) for name, value in terms.items()}
        if self.settings.codes is None:
            return Terms(terms["loss"], measures)
        of_codes = self._code_terms(part)
        loss = terms["loss"] + of_codes.loss
        return Terms(loss, {**of_codes.measures, **measures, "loss": float(loss.detach())})

    def _code_terms(self, part: GuidedClips) -> Terms:
        """The distance of inversions from codes, weighted."""
        codes, mapping = self.settings.codes, self.model.generator.mapping
        assert self._styles is not None and codes is not None and isinstance(mapping, CodeMapping)
        scale = mapping.spread.square().mean()
        distance = code_loss(self._styles.of(part.rows_B), part.codes_BLD, scale, codes.mean_share)
        loss = codes.weight * distance
        return Terms(loss, {"code_loss": float(distance.detach()), "loss": float(loss.detach())})

    # validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean cosines, by the judge, of generated pictures with their own sounds and with sounds of other classes. Writes a picture grid.

        ``guide_own_minus_wrong`` is the same difference by the guide. If it alone grows, the pictures deceive the guide.
        """
        mixes = self.run.mixes("validation")
        if not mixes:
            return {}
        if self._validation is None:
            size = self.settings.batch_size
            side = self.model.generator.resolution
            self._validation = clip_reader(self.recipe, self.run, "validation", size, side, pictures=False)
            self._from_start = self._validation.state_dict()
        self._validation.load_state_dict(self._from_start)
        if self._judge is None:
            self._judge = load_judge(self.settings.judge, self.guide.encoder_ids, "invert.judge")
        self.model.eval()
        self.draw_alike()
        pictures: list[Tensor] = []
        judge_pictures, judge_sounds = [], []
        guide_pictures, guide_sounds = [], []
        labels: list[tuple[str, ...]] = []
        for batch in self._validation:
            rows_BD, pictures_BCHW = self._drawn(batch)
            guide_pictures.append(gather_rows(rows_BD)[0])
            guide_sounds.append(gather_rows(self.guide.sounds(batch))[0])
            judge_pictures.append(gather_rows(judged_pictures(self._judge, pictures_BCHW).to(self.device))[0])
            judge_sounds.append(gather_rows(judged_sounds(self._judge, batch).to(self.device))[0])
            pictures.append(gather_rows(pictures_BCHW)[0].cpu())
            labels += gather_items(list(batch.labels))
            if len(labels) >= self.settings.validation_samples:
                break
        own, wrong = _own_and_wrong(torch.cat(judge_pictures), torch.cat(judge_sounds), labels)
        if self.run.fabric.is_global_zero and labels:
            picture_grid = grid(to_uint8(torch.cat(pictures)[:NUM_SHOWN]))
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            write_png(folder / f"{self.samples_seen:010d}.png", picture_grid)
            self.run.stats.picture(NAME, "samples", self.samples_seen, picture_grid)
        measures = {"num_samples": float(len(labels)), "own_cosine": own}
        if wrong is not None:
            measures |= {"wrong_cosine": wrong, "own_minus_wrong": own - wrong}
            guide_own, guide_wrong = _own_and_wrong(torch.cat(guide_pictures), torch.cat(guide_sounds), labels)
            measures["guide_own_minus_wrong"] = guide_own - (guide_wrong or 0.0)
        self.keep_if_best(own if wrong is None else own - wrong)
        return measures

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The guide's embeddings (B, D) of the pictures of a batch's sounds, and the pictures (B, 3, H, W), about -1..1."""
        if not len(batch):
            side = self.model.generator.resolution
            empty = torch.zeros(0, self.guide.partner.width, device=self.device)
            return empty, torch.zeros(0, 3, side, side, device=self.device)
        latents = torch.randn(1, self.model.generator.z_dim).to(self.device).expand(len(batch), -1)
        mels_BMT = self.model.front_end(batch.sounds_BN.to(self.device))
        styles = self.model.invert(mels_BMT, self.model.start(latents))
        pictures = self.model.draw(styles)
        return self.guide.partner.look(pictures.clamp(-1, 1)), pictures


def start_hearing(model: SoundVideoModel, path: Path) -> None:
    """Copies the convolutions of an align checkpoint into the inversion encoder, if the file exists and has the same backbone."""
    if not path.is_file() or read_align_config(path).backbone != model.config.backbone:
        return
    align_tensors = read_state_dict(path)
    own = model.inversion.state_dict()
    renamed = {name.replace("feature_extractor.", "body.", 1): tensor for name, tensor in align_tensors.items()}
    known = {name: tensor for name, tensor in renamed.items() if name in own and own[name].shape == tensor.shape}
    model.inversion.load_state_dict({**own, **known})


def guided_losses(
    settings: InvertSettings,
    model: SoundVideoModel,
    guide: Guide,
    styles_NLD: Tensor,
    places_K3: Tensor,
    sounds_ND: Tensor,
    texts_ND: Tensor,
) -> dict[str, Tensor]:
    """The terms of L_enc for the pictures of ``styles_NLD``, and their weighted sum ``loss``."""
    pictures_KND = guide.pictures(model.draw(styles_NLD), places_K3)
    return inversion_terms(settings, pictures_KND, sounds_ND, texts_ND, styles_NLD - model.style_mean)


def _own_and_wrong(pictures_ND: Tensor, sounds_ND: Tensor, labels: list[tuple[str, ...]]) -> tuple[float, float | None]:
    """Mean cosine of pictures with their own sounds, and with sounds without a common label. None: there are no such sounds."""
    cosines_NN = torch.nn.functional.normalize(pictures_ND, dim=1) @ torch.nn.functional.normalize(sounds_ND, dim=1).T
    apart = torch.tensor([[not set(one) & set(other) for other in labels] for one in labels])
    wrong = cosines_NN.cpu()[apart]
    return float(cosines_NN.diagonal().mean()), float(wrong.mean()) if len(wrong) else None


def fit_invert(recipe: InvertRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one. Writes ``best.safetensors`` and ``last.safetensors``."""
    prior_file = generator_file(recipe, run.folder)
    torch.manual_seed(run.settings.seed)
    model = SoundVideoModel(model_config(recipe), prior_file.generator())
    settings = recipe.invert
    if settings.start_from_align:
        start_hearing(model, run.folder / ALIGN_CHECKPOINT)
    side = model.generator.resolution
    source = clip_reader(recipe, run, "train", settings.batch_size, side, pictures=settings.codes is not None)
    return run_stage(lambda: Invert(recipe, run, model, prior_file.config), source, settings, run, display)
