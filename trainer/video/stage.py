"""The video stage: recurrent blocks learn to move the styles with the sound, against discriminators of frames and of clips.

Shape suffixes: B samples, T frames (one for each segment of sound), C H W of pictures, D width of the space.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.encoders.pair import check_settings as check_pair
from pipeline.errors import CheckpointError
from trainer.engine.ema import average_weight, move_average
from trainer.engine.learner import BEST, CHECKPOINT, LAST, damaged, run_stage
from trainer.engine.loop import Ended
from trainer.engine.ranks import gather_numbers
from trainer.engine.run import Run, changes
from trainer.engine.stats import Display
from trainer.invert.checks import check_codes, check_invert
from trainer.invert.shared import SoundVideoStage, clip_reader, draws_pictures, generator_file, model_config
from trainer.invert.stage import NAME as INVERT
from trainer.model.discriminator import Discriminator
from trainer.model.generator import build_discriminator
from trainer.model.generator_file import GeneratorFile
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import load_model
from trainer.model.video_discriminator import VideoDiscriminator
from trainer.streaming.batches import Batch
from trainer.video.balance import Balance
from trainer.video.motion import measured_directions
from trainer.video.phases import Clips, Contest, code_phase, video_phases
from trainer.video.settings import VideoSettings
from trainer.video.validation import BEST_BY, VideoValidation

if TYPE_CHECKING:
    from trainer.video.settings import VideoRecipe

logger = logging.getLogger(__name__)

NAME = "video"
HEADLINE = (
    "num_clips", "agreement_right", "agreement_wrong", "right_minus_wrong", "right_minus_wrong_low", "right_minus_wrong_high",
    "class_accuracy", "class_chance",
)  # fmt: skip


class Video(SoundVideoStage):
    """The stage: the model, the averaged model, both discriminators, and their optimizers."""

    name = NAME
    headline: Sequence[str] = HEADLINE

    def __init__(self, recipe: VideoRecipe, run: Run, model: SoundVideoModel, prior_file: GeneratorFile) -> None:
        """``prior_file``: the generator's file, which may hold a discriminator too."""
        super().__init__(recipe, run, model, prior_file.config)
        self.settings = settings = recipe.video
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        """The average of the model over training; this model generates and is exported."""
        self.contest = Contest(
            settings,
            recipe.invert,
            self.model,
            self.guide if settings.guide_weight else None,
            self.code_mean,
            self._image_discriminator(prior_file).to(self.device) if settings.image_weight else None,
            self._video_discriminator().to(self.device) if settings.video_weight else None,
            Balance(settings.loss_weights, is_on=settings.balance_gradients),
            run.fabric.autocast,
        )
        encoder = self.guide.partner.network if settings.guide_weight else None
        self.compile(self.model.generator.synthesis, self.contest.image, self.contest.video, encoder)
        self.phases = video_phases(self.contest)
        self.code_phase = code_phase(self.contest, self.phases)
        self.frame_codes = None if settings.codes is None else prior_file.frame_codes(self.device)
        self.latest_measures: dict[str, float] = {}
        """The latest value of every measure: some phases do not run in every step. Checkpoints store it as ``told``."""
        self.validation = VideoValidation(recipe, run, self.guide.encoder_ids)

    def _image_discriminator(self, prior_file: GeneratorFile) -> Discriminator:
        """In the recipe's precision, as in the prior stage."""
        discriminator = make_image_discriminator(self.settings, prior_file)
        if self.run.settings.precision == "bf16":
            discriminator.half_dtype = torch.bfloat16
        return discriminator

    def _video_discriminator(self) -> VideoDiscriminator:
        settings = self.settings
        return VideoDiscriminator(
            self.model.config.num_frames,
            settings.discriminator_px,
            settings.discriminator_widths,
            sound_width=self.guide.partner.width if settings.hears else 0,
        )

    def measure_directions(self, recipe: VideoRecipe) -> None:
        """Measures the directions of the fast path, if the model has one. Raises DataError."""
        if self.frame_codes is None or self.model.motion is None or self.average.motion is None:
            return
        directions_KLD = measured_directions(recipe, self.run, self.frame_codes, self.model.generator.resolution)
        for path in (self.model.motion, self.average.motion):
            path.directions_KLD.copy_(directions_KLD)

    @property
    def draws(self) -> bool:
        """Whether the current step draws pictures. False: it learns from codes alone."""
        return draws_pictures(self.settings.codes, self.samples_seen, self.settings.num_samples)

    def networks(self) -> Mapping[str, nn.Module]:
        networks: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        judges = {"image_discriminator": self.contest.image, "video_discriminator": self.contest.video}
        return networks | {name: network for name, network in judges.items() if network is not None}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {f"optimizer_{phase.name}": phase.optimizer for phase in self.phases if phase.is_main}

    def numbers(self) -> dict[str, Any]:
        gradients = dict(self.contest.balance.lengths)
        return {**super().numbers(), "told": dict(self.latest_measures), "gradients": gradients}

    def put(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], path: Path) -> None:
        super().put(tensors, numbers, path)
        try:
            self.latest_measures = dict(numbers["told"])
            self.contest.balance.lengths = dict(numbers.get("gradients", {}))  # earlier versions measured none
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error

    def generates(self) -> SoundVideoModel:
        return self.average

    def close(self) -> None:
        """Does nothing: the stage keeps no file or process open."""

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Runs the phases that are due. Returns the measures; empty if no rank has a sample.

        Raises FitError for a loss or gradient that is not finite; the stage is then unchanged.
        """
        self.draw_alike()
        total = int(gather_numbers([len(batch)], self.device).sum())
        if not total:
            return {}
        clips = self._clips(batch)
        parts = [(part, len(part.rows_B) / total) for part in clips.split(self.settings.micro_batch_size)]
        self.model.inversion.train()
        self.code_mean.begin()
        self.contest.begin(clips)
        networks = [network for name, network in self.networks().items() if name != "average"]
        balance = self.contest.balance
        balance.is_due = self.draws and self.num_steps % self.settings.measure_gradients_every == 0
        phases = self.phases if self.draws else [self.code_phase]
        try:
            self.latest_measures |= self.learn(phases, parts, networks, batch)
            if balance.is_due:
                self.latest_measures |= balance.update(self.device)
        finally:
            balance.clear()
            self.contest.end()
            self.model.inversion.eval()
        settings = self.settings
        self.code_mean.move(total)
        self.share_statistics()
        weight = average_weight(total, settings.ema_half_life, self.samples_seen, settings.ema_ramp_up)
        move_average(self.average, self.model, weight)
        self.num_steps += 1
        self.samples_seen += total
        return self.latest_measures

    def _clips(self, batch: Batch) -> Clips:
        """The clips of a batch, on the device. Some are spliced: frames and sound change to the next clip's at a random segment.

        Real clips are spliced, too: the video discriminator would else learn that a change is a sign of generated clips.
        """
        own_BD = texts_BD = torch.zeros(len(batch), self.guide.partner.width, device=self.device)
        if self.draws:
            own_BD, texts_BD = self.guide.sounds(batch), self.guide.texts(batch, *self.identity())
        mels_BMT = self.heard_mels(batch)
        segments_BTMS = self.model.segments_of(mels_BMT, batch.seconds_B)
        batch_size, steps = segments_BTMS.shape[:2]
        order = torch.arange(batch_size).roll(-1)
        change_B = torch.randint(1, steps, (batch_size,))
        change_B = torch.where(torch.rand(batch_size) < self.settings.spliced_share, change_B, steps)
        changed_BT = (torch.arange(steps) >= change_B[:, None]).to(self.device)
        differs_B = torch.tensor(
            [not set(batch.labels[one]) & set(batch.labels[int(other)]) for one, other in enumerate(order)],
            dtype=torch.bool,
        )

        def spliced(rows: Tensor) -> Tensor:
            """(B, T, ...) of rows (B, T, ...): those of the next clip where the clip has changed to it."""
            return torch.where(changed_BT.view(batch_size, steps, *[1] * (rows.ndim - 2)), rows[order], rows)

        def repeated(rows_BD: Tensor) -> Tensor:
            return rows_BD[:, None].expand(-1, steps, -1)

        model, codes = self.model, self.settings.codes
        num_walks = 1 if codes is None else codes.draws
        starts_B = torch.zeros(batch_size, dtype=torch.int64) if batch.burst_starts_B is None else batch.burst_starts_B
        reals_BTCHW = spliced(batch.frames_BTCHW.to(self.device)).float() / 127.5 - 1
        return Clips(
            reals_BTCHW=reals_BTCHW,
            segments_BTMS=spliced(segments_BTMS),
            sounds_BTD=spliced(repeated(own_BD)),
            texts_BTD=spliced(repeated(texts_BD)),
            other_BD=own_BD[order],
            differs_B=(differs_B & (change_B == steps)).to(self.device),
            codes_BTLD=self._codes(reals_BTCHW),
            latents_BKZ=torch.randn(batch_size, num_walks, model.generator.z_dim).to(self.device),
            noise_BKTN=torch.randn(batch_size, num_walks, steps, model.num_noise).to(self.device),
            mels_BMT=mels_BMT,
            is_whole_B=(change_B == steps).to(self.device),
            burst_codes_BJLD=self._codes(self._bursts(batch)),
            burst_starts_B=starts_B.to(self.device),
            rows_B=torch.arange(batch_size, device=self.device),
        )

    def _bursts(self, batch: Batch) -> Tensor:
        """(B, J, C, H, W): the neighbouring frames of a batch, -1..1; J is 0 if none were read."""
        if batch.bursts_BKCHW is None:
            return torch.zeros(len(batch), 0, *batch.frames_BTCHW.shape[2:], device=self.device)
        return batch.bursts_BKCHW.to(self.device).float() / 127.5 - 1

    def _codes(self, reals_BTCHW: Tensor) -> Tensor:
        """(B, T, L, D): the codes of real frames; L is 0 if none are learned from."""
        batch_size, steps = reals_BTCHW.shape[:2]
        if self.frame_codes is None or not batch_size * steps:
            return torch.zeros(batch_size, steps, 0, self.model.generator.w_dim, device=self.device)
        codes_NLD = self.frame_codes(reals_BTCHW.flatten(0, 1))
        return codes_NLD.view(batch_size, steps, *codes_NLD.shape[1:])

    # validation

    def validate(self) -> dict[str, float]:
        """Writes frames and videos of the validation split, and measures whether the sound matters. Empty if there is no such split."""
        measures = self.validation.measure(self.average, self.samples_seen)
        self.keep_if_best(measures.get(BEST_BY))
        return measures


def make_image_discriminator(settings: VideoSettings, prior_file: GeneratorFile) -> Discriminator:
    """The discriminator in the generator's file, if it has one and the settings use it; else one with random weights."""
    if settings.image_discriminator_from_prior and prior_file.discriminator_config is not None:
        return prior_file.discriminator().train()
    return build_discriminator(prior_file.config)


def start_model(recipe: VideoRecipe, run: Run) -> tuple[SoundVideoModel, GeneratorFile]:
    """The initial model of the stage, with the encoder of the invert stage and new recurrent blocks; and the generator's file.

    Raises CheckpointError if the invert stage has written no model, or one with other settings.
    """
    path = next((run.folder / INVERT / name for name in (BEST, LAST) if (run.folder / INVERT / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{run.folder / INVERT / BEST} is not there: run the stage invert before this one")
    inverted, header = load_model(path)
    wanted = model_config(recipe)
    blocks = {"blocks", "pull", "hidden_width", "noise_width", "motion_fps", "motion_width", "motion_directions"}
    if differing := changes(header.model.model_dump(exclude=blocks), wanted.model_dump(exclude=blocks)):
        raise CheckpointError(
            f"{path} is of another model ({'; '.join(differing)}): set back what was changed, or run the stage invert anew "
            f"in another folder"
        )
    torch.manual_seed(run.settings.seed)
    model = SoundVideoModel(wanted, inverted.generator)
    model.inversion.load_state_dict(inverted.inversion.state_dict())
    return model, generator_file(recipe, run.folder)


def fit_video(recipe: VideoRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one. Writes ``best.safetensors`` and ``last.safetensors``."""
    model, prior_file = start_model(recipe, run)
    settings = recipe.video

    def make() -> Video:
        stage = Video(recipe, run, model, prior_file)
        if not (stage.folder / CHECKPOINT).exists():  # a checkpoint has the directions
            stage.measure_directions(recipe)
        return stage

    source = clip_reader(recipe, run, "train", settings.batch_size, model.generator.resolution, bursts=True)
    return run_stage(make, source, settings, run, display)


def check_video(recipe: VideoRecipe) -> None:
    """Raises UserError for settings that can be refused before any work."""
    check_invert(recipe)
    if recipe.video.codes is not None:
        check_codes(recipe, "video.codes")
    check_pair(recipe.video.judge, "video.judge")
