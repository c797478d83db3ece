"""The phases of a step of the video stage: the model learns from the discriminators and the guide, then the discriminators learn.

total = L_Dv + L_DI + λ_enc L_enc ("Sound-Guided Semantic Video Generation", section 3.3), with the non-saturating logistic
loss, lazy R1, and for the video discriminator pairs of a clip and a sound (Reed et al., arXiv:1605.05396, section 4.2): a real clip
with the sound of another class counts as wrong.

Shape suffixes: B clips, K walks of a clip, T frames (one for each segment of sound), J neighbouring frames, R moments of the fast path, W
numbers of its state, M mel bands, C H W of pictures, L layers that take a style each, D numbers of a style or of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.adversarial.ada import augment
from trainer.adversarial.losses import discriminator_loss, generator_loss, lazy_adam_settings, r1_penalty
from trainer.engine.phases import Phase, Terms
from trainer.invert.guide import Guide
from trainer.invert.inversion_loss import CodeMean, code_loss, inversion_terms
from trainer.invert.settings import InvertSettings
from trainer.invert.whole_batch import WholeBatch
from trainer.model.code_mapping import CodeMapping
from trainer.model.discriminator import Discriminator
from trainer.model.fast_path import FastPath, Moves
from trainer.model.sound_video import SoundVideoModel
from trainer.model.video_discriminator import VideoDiscriminator
from trainer.video.balance import Balance
from trainer.video.motion import motion_loss, movement
from trainer.video.settings import VideoSettings

GENERATOR = "generator"


@dataclass(frozen=True, slots=True)
class Clips:
    """Some clips of a batch, on the device, as the losses take them."""

    reals_BTCHW: Tensor
    """Real frames, -1..1."""
    segments_BTMS: Tensor
    """Mels of the segments of sound that drive the walk. In spliced clips, the later frames and segments are another clip's."""
    sounds_BTD: Tensor
    """F_a of the clip that each segment comes from."""
    texts_BTD: Tensor
    """F_t of the clip that each segment comes from; zeros without caption and label."""
    other_BD: Tensor
    """F_a of another clip's sound."""
    differs_B: Tensor
    """bool: whether that other clip shares no label with this one, and no part with it."""
    codes_BTLD: Tensor
    """Codes of the real frames; without ``video.codes``, (B, T, 0, D)."""
    latents_BKZ: Tensor
    """The latents of the K walks of each clip. The first walk is drawn."""
    noise_BKTN: Tensor
    """The noise of the recurrent blocks in each walk."""
    mels_BMT: Tensor
    """Mels of the clips' own windows."""
    is_whole_B: Tensor
    """bool: whether the clip is not spliced."""
    burst_codes_BJLD: Tensor
    """Codes of J neighbouring real frames of the clip's own window; without a fast path, J or L is 0."""
    burst_starts_B: Tensor
    """The moment of the first of them, counted from the window's start."""
    rows_B: Tensor
    """Index of each clip in the batch."""

    @property
    def own_sounds(self) -> Tensor:
        """(B, D): F_a of the sound that belongs to the clip; for a spliced clip the mean of both, of length 1."""
        return functional.normalize(self.sounds_BTD.mean(1), dim=1)

    def split(self, size: int | None) -> Iterator[Clips]:
        """Micro-batches of at most ``size`` clips; None: one of all."""
        count = len(self.reals_BTCHW)
        for start in range(0, count, size or max(1, count)):
            rows = slice(start, start + (size or count))
            yield Clips(*(getattr(self, one.name)[rows] for one in fields(self)))


@dataclass
class Contest:
    """The model, the discriminators, the guide, and the losses between them."""

    settings: VideoSettings
    invert: InvertSettings
    model: SoundVideoModel
    guide: Guide | None
    """None: the CLIP losses are left out."""
    code_mean: CodeMean
    """Takes the encoder's codes, for w̄_a."""
    image: Discriminator | None
    """The discriminator of frames, D_I. None: it is left out."""
    video: VideoDiscriminator | None
    """The discriminator of clips, D_v. None: it is left out."""
    balance: Balance
    """Measures the gradients of the losses of generated clips, and weights them by it."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context for the precision of the networks."""
    clips: Clips | None = None
    """All clips of this step on this rank."""
    styles: WholeBatch | None = None
    """The styles of their walks, in the phase of the generator."""
    moved: WholeBatch | None = None
    """(B, J, 2K): the mean moves of the fast path at their neighbouring frames, and the spread of its chance ones."""
    drawn_of: list[tuple[Clips, Tensor]] = field(default_factory=list)
    """The micro-batches of this step and the frames (B, T, C, H, W) that were generated for them, without gradient."""
    chosen_J: Tensor | None = None
    """Indices of the frames that the image discriminator gets in this step."""
    places_K3: Tensor | None = None
    """The guide's cutouts of this step."""

    def begin(self, clips: Clips) -> None:
        """Takes all clips of a step, and makes the random choices that they share."""
        self.end()
        self.clips = clips
        self.chosen_J = torch.randperm(clips.reals_BTCHW.shape[1])[: self.settings.judged_frames]
        self.places_K3 = None if self.guide is None else self.guide.places()

    def end(self) -> None:
        """Frees what a step keeps."""
        self.clips, self.styles, self.moved, self.drawn_of = None, None, None, []

    def walk_all(self) -> None:
        """Computes the styles of all clips of the step."""
        assert self.clips is not None
        if not len(self.clips.rows_B):
            return
        features_BTF = self.features(self.clips)
        styles_BKTLD = self.walked(self.clips, features_BTF)
        self.code_mean.add(styles_BKTLD[:, 0, 0])  # the first styles of a walk are an inversion, and nothing else
        self.styles = WholeBatch(styles_BKTLD)
        if self.model.motion is not None:
            self.moved = WholeBatch(self._moved(self.model.motion, self.clips, features_BTF.detach()))

    @property
    def _scale(self) -> Tensor:
        """(): the codes' mean square distance from the average style."""
        mapping = self.model.generator.mapping
        assert isinstance(mapping, CodeMapping)
        return mapping.spread.square().mean()

    def _moved(self, motion: FastPath, clips: Clips, features_BTF: Tensor) -> Tensor:
        """(B, J, 2K): the moves of the fast path at the neighbouring frames."""
        with self.autocast():
            states_BRW, _ = motion.follow(clips.mels_BMT, features_BTF, self.model.config.num_moments)
            places_BJ = clips.burst_starts_B[:, None] + torch.arange(
                clips.burst_codes_BJLD.shape[1], device=states_BRW.device
            )
            places_BJ = places_BJ.clamp_max(states_BRW.shape[1] - 1)
            states_BJW = states_BRW.gather(1, places_BJ[:, :, None].expand(-1, -1, states_BRW.shape[2]))
            return torch.cat(motion.moves(states_BJW), 2).float()

    def pass_back(self) -> None:
        """Passes the gradients at the styles on to encoder, blocks and fast path."""
        for part in (self.styles, self.moved):
            if part is not None:
                part.pass_back()

    def features(self, clips: Clips) -> Tensor:
        """(B, T, F): the features of the segments."""
        with self.autocast():
            features_NF = self.model.inversion.features(clips.segments_BTMS.flatten(0, 1))
        return features_NF.view(*clips.segments_BTMS.shape[:2], -1)

    def walked(self, clips: Clips, features_BTF: Tensor) -> Tensor:
        """(B, K, T, L, D): the styles of every frame, in each of a clip's walks."""
        model, (num_clips, num_walks) = self.model, clips.latents_BKZ.shape[:2]
        start = model.start(clips.latents_BKZ.flatten(0, 1))
        with self.autocast():
            features_NTF = features_BTF.repeat_interleave(num_walks, 0)
            styles_NTLD = model.carry(features_NTF, start, clips.noise_BKTN.flatten(0, 1))
        return styles_NTLD.view(num_clips, num_walks, *styles_NTLD.shape[1:]).float()

    def drawn(self, styles_BTLD: Tensor) -> Tensor:
        """The frames (B, T, C, H, W) of the styles, about -1..1."""
        pictures = self.model.draw(styles_BTLD.flatten(0, 1))
        return pictures.view(*styles_BTLD.shape[:2], *pictures.shape[1:])

    def shown(self, clips_BTCHW: Tensor) -> Tensor:
        """The discriminators' input: the clips, augmented. All frames of a clip are changed in the same way."""
        settings = self.settings
        return clips_BTCHW if settings.augment is None else augment(clips_BTCHW, settings.augment_p, settings.augment)

    def judged(self, clips_BTCHW: Tensor) -> Tensor:
        """(N, C, H, W): the frames for the image discriminator, augmented. The last are left out if they do not fill a group."""
        assert self.image is not None and self.chosen_J is not None
        frames = self.shown(clips_BTCHW[:, self.chosen_J]).flatten(0, 1)
        group = self.image.b4.group_size
        if group and len(frames) > group:
            frames = frames[: len(frames) - len(frames) % group]
        return frames

    def judge_image(self, frames_NCHW: Tensor) -> Tensor:
        """Logits of frames by D_I, (N, 1)."""
        assert self.image is not None
        logits: Tensor = self.image(frames_NCHW)
        return logits

    def judge_video(self, clips_BTCHW: Tensor, sounds_BD: Tensor) -> Tensor:
        """Logits (B, 1) of pairs of a clip and a sound by D_v."""
        assert self.video is not None
        with self.autocast():
            logits: Tensor = self.video(clips_BTCHW, sounds_BD if self.video.sound_width else None)
        return logits.float()

    def generate(self, clips: Clips) -> Terms:
        """L_DI + L_Dv + λ_enc L_enc of generated clips."""
        assert self.styles is not None
        balance = self.balance
        styles_BKTLD = self.styles.of(clips.rows_B)
        styles_BTLD = styles_BKTLD[:, 0]
        pictures_BTCHW = self.drawn(styles_BTLD)
        if self.image is not None or self.video is not None:
            self.drawn_of.append((clips, pictures_BTCHW.detach()))
        losses = self._losses(styles_BTLD, pictures_BTCHW, clips)
        if balance.is_due:
            balance.measure(losses, styles_BTLD)
        loss = balance.sum_of(losses)
        measures = {f"{name}_loss": float(value.detach()) for name, value in losses.items()}
        if self.settings.codes is not None:
            of_codes = self.compare_codes(clips)
            loss, measures = loss + of_codes.loss, of_codes.measures | measures
        return Terms(loss, {**measures, "loss": float(loss.detach())})

    def compare_codes(self, clips: Clips) -> Terms:
        """The distance of the walks from the codes of real frames, weighted. Nothing is drawn."""
        codes = self.settings.codes
        assert self.styles is not None and codes is not None
        distance = code_loss(self.styles.of(clips.rows_B), clips.codes_BTLD, self._scale, codes.mean_share)
        loss, measures = codes.weight * distance, {"code_loss": float(distance.detach())}
        if self.moved is not None and self.model.motion is not None and self.settings.motion is not None:
            path = self.model.motion
            real_BJK = path.along(movement(clips.burst_codes_BJLD))
            moves = Moves(*self.moved.of(clips.rows_B).chunk(2, 2))
            gap, unlikely = motion_loss(moves, path.kept_share, real_BJK, clips.is_whole_B)
            loss = loss + self.settings.motion.weight * (gap + unlikely)
            measures |= {"motion_loss": float(gap.detach()), "chance_loss": float(unlikely.detach())}
        return Terms(loss, {**measures, "loss": float(loss.detach())})

    def _losses(self, styles_BTLD: Tensor, pictures_BTCHW: Tensor, clips: Clips) -> dict[str, Tensor]:
        """The losses of generated clips that are not left out, by name."""
        losses: dict[str, Tensor] = {}
        if self.image is not None:
            losses["image"] = generator_loss(self.judge_image(self.judged(pictures_BTCHW)))
        if self.video is not None:
            losses["video"] = generator_loss(self.judge_video(self.shown(pictures_BTCHW), clips.own_sounds))
        if self.guide is not None:
            losses["guide"] = self._guided(styles_BTLD, pictures_BTCHW, clips)
        return losses

    def _guided(self, styles_BTLD: Tensor, pictures_BTCHW: Tensor, clips: Clips) -> Tensor:
        assert self.guide is not None and self.places_K3 is not None
        pictures_KND = self.guide.pictures(pictures_BTCHW.flatten(0, 1), self.places_K3)
        sounds_ND, texts_ND = clips.sounds_BTD.flatten(0, 1), clips.texts_BTD.flatten(0, 1)
        return inversion_terms(self.invert, pictures_KND, sounds_ND, texts_ND, styles_BTLD - self.model.style_mean)[
            "loss"
        ]

    @torch.no_grad()
    def generated(self, clips: Clips) -> Tensor:
        """(B, T, C, H, W): the frames for these clips, without gradient. What the generator's phase has drawn in this step is used."""
        for drawn_for, pictures_BTCHW in self.drawn_of:
            if drawn_for is clips:
                return pictures_BTCHW
        self.drawn_of.append((clips, self.drawn(self.walked(clips, self.features(clips))[:, 0])))
        return self.drawn_of[-1][1]

    def discriminate_images(self, clips: Clips) -> Terms:
        """L_DI: frames of generated clips against frames of real ones."""
        fake = self.judge_image(self.judged(self.generated(clips)))
        real = self.judge_image(self.judged(clips.reals_BTCHW))
        loss = discriminator_loss(real, fake)
        return Terms(
            loss,
            {"image_discriminator_loss": float(loss.detach()), "image_real_score": float(real.detach().mean())},
        )

    def discriminate_videos(self, clips: Clips) -> Terms:
        """L_Dv: generated clips, and real clips with a sound of another class, against real clips with their own sound."""
        fake = self.judge_video(self.shown(self.generated(clips)), clips.own_sounds)
        shown = self.shown(clips.reals_BTCHW)
        real = self.judge_video(shown, clips.own_sounds)
        loss = discriminator_loss(real, fake)
        measures = {"video_discriminator_loss": float(loss.detach()), "video_real_score": float(real.detach().mean())}
        if self.video is not None and self.video.sound_width and self.settings.mismatch_weight:
            apart = functional.softplus(self.judge_video(shown, clips.other_BD))[:, 0] * clips.differs_B
            loss = loss + self.settings.mismatch_weight * apart.mean()
        return Terms(loss, measures)

    def r1_images(self, clips: Clips) -> Terms:
        """gamma / 2 · R1 of the image discriminator, at real frames after augmentation: the mean over frames, not over clips."""
        frames = self.judged(clips.reals_BTCHW).detach().requires_grad_()
        return self._r1(self.judge_image(frames), frames, "image_r1")

    def r1_videos(self, clips: Clips) -> Terms:
        """gamma / 2 · R1 of the video discriminator, at real clips after augmentation."""
        shown = self.shown(clips.reals_BTCHW).detach().requires_grad_()
        return self._r1(self.judge_video(shown, clips.own_sounds), shown, "video_r1")

    def _r1(self, logits: Tensor, shown: Tensor, name: str) -> Terms:
        penalty = r1_penalty(logits, shown)
        return Terms(penalty * (self.settings.r1_gamma / 2), {name: float(penalty.detach())})


def code_phase(contest: Contest, phases: Sequence[Phase[Clips]]) -> Phase[Clips]:
    """The phase of the model where codes alone teach, with the optimizer of ``video_phases``."""
    drawn = phases[0]
    return replace(drawn, loss=contest.compare_codes, measures=(*code_measures(contest.settings), "loss"))


def code_measures(settings: VideoSettings) -> tuple[str, ...]:
    """Names of the measures of what learns from codes."""
    of_codes = () if settings.codes is None else ("code_loss",)
    return of_codes if settings.motion is None else (*of_codes, "motion_loss", "chance_loss")


def video_phases(contest: Contest) -> Sequence[Phase[Clips]]:
    """The phases in the order in which a step runs them."""
    settings, model = contest.settings, contest.model
    learning: list[tuple[nn.Module, float]] = [(model.blocks, settings.block_learning_rate)]
    if model.motion is not None and settings.motion is not None:
        learning.append((model.motion, settings.motion.learning_rate))
    if settings.inversion_learning_rate is not None:
        learning.append((model.inversion, settings.inversion_learning_rate))
    if settings.generator_learning_rate is not None:
        learning.append((model.generator.synthesis, settings.generator_learning_rate))
    optimizer = torch.optim.AdamW(
        [{"params": list(network.parameters()), "lr": rate} for network, rate in learning],
        betas=(0.5, 0.99),
        weight_decay=0.0,
    )
    phases: list[Phase[Clips]] = [
        Phase(
            GENERATOR,
            optimizer,
            1,
            contest.generate,
            ("image_loss", "video_loss", "guide_loss", *code_measures(settings), "loss"),
            max_gradient_norm=settings.max_gradient_norm,
            before=contest.walk_all,
            after=contest.pass_back,
        )
    ]
    judges: list[tuple[str, nn.Module | None, Any, Any, tuple[str, ...], str]] = [
        ("image_discriminator", contest.image, contest.discriminate_images, contest.r1_images,
         ("image_discriminator_loss", "image_real_score"), "image_r1"),
        ("video_discriminator", contest.video, contest.discriminate_videos, contest.r1_videos,
         ("video_discriminator_loss", "video_real_score"), "video_r1"),
    ]  # fmt: skip
    for name, network, loss, penalty, measures, penalty_name in judges:
        if network is None:
            continue
        every = settings.r1_every if settings.r1_gamma else None
        rate, betas = lazy_adam_settings(settings.discriminator_learning_rate, (0.0, 0.99), every)
        of_judge = torch.optim.Adam(network.parameters(), lr=rate, betas=betas, eps=1e-8)
        phases.append(Phase(name, of_judge, 1, loss, measures))
        if every is not None:
            phases.append(Phase(penalty_name, of_judge, every, penalty, (penalty_name,), is_main=False))
    return phases
