"""Estimates what a fit will cost: the operations, device memory and checkpoint bytes of each stage. Nothing is measured.

One pass of each network is counted (:mod:`trainer.passes`). How often a step runs each network is written here, and must follow the stages.
Losses, optimizers, augmentation, and text encoders, whose embeddings are kept, are left out. The result is an order of magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.counting import Accelerator, ForwardPass, count_pass
from trainer.invert.settings import CodeSettings
from trainer.model.frame_encoder import FrameEncoderConfig
from trainer.model.generator import GeneratorConfig
from trainer.model.video_discriminator import VideoDiscriminator
from trainer.passes import SPACE_WIDTH, Passes, input_of, num_parameters
from trainer.prior.reconstruction_settings import ReconstructionSettings
from trainer.recipe import FitRecipe

BYTES = 4
"""Bytes of an fp32 number; weights and optimizer states are fp32."""
BACKWARD = 2
"""Cost of a backward pass to weights and inputs, in forward passes."""
TO_INPUTS = 1
"""Cost of a backward pass through frozen weights, in forward passes."""
SECOND_BACKWARD = 6
"""Cost of a penalty on a gradient, in forward passes: forward, gradient, and backward through both."""

GENERATOR, IMAGE_DISCRIMINATOR = "generator", "image discriminator"
SOUND_ENCODER, PICTURE_ENCODER = "sound encoder", "guide's picture encoder"
FEATURES, FRAME_ENCODER = "features of frames", "encoder of frames"


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """What a stage spends on one network."""

    network: str
    forward: ForwardPass
    passes: float
    """Forward passes of one item, for each sample of the stage. Backward passes are told in forward passes."""
    items_at_once: int
    """Items of a micro-batch."""

    @property
    def operations(self) -> float:
        """For each sample. Floating-point operations; an addition and a multiplication count as two."""
        return self.passes * self.forward.operations

    def seconds(self, accelerator: Accelerator) -> float:
        """For each sample. Backward passes are assumed to take as long as the forward passes that they count as."""
        return self.passes * accelerator.seconds(self.forward, self.items_at_once) / self.items_at_once


@dataclass(frozen=True, slots=True)
class StageCost:
    """The estimated cost of a stage on one rank."""

    stage: str
    num_samples: int
    networks: tuple[NetworkCost, ...]
    memory_bytes: float
    """Weights, their averages (EMA), optimizer states, the copy of these that a step keeps, and the activations of a micro-batch."""
    checkpoint_bytes: float
    """Disk space of the stage's files at their largest: while a checkpoint replaces the one before it, both are there."""

    @property
    def operations_per_sample(self) -> float:
        return sum(one.operations for one in self.networks)

    def hours(self, operations_per_second: float) -> float:
        return self.num_samples * self.operations_per_sample / operations_per_second / 3600


class Estimate:
    """The costs of a recipe's stages."""

    def __init__(self, recipe: FitRecipe, generator: GeneratorConfig) -> None:
        """``generator``: the one that the prior stage trains, or that invert and video use."""
        self.recipe, self.passes = recipe, Passes(recipe, generator)

    def of(self, stage: str) -> StageCost | None:
        """The cost of a stage. None: the stage is not one of this package's four."""
        return {"prior": self._prior, "align": self._align, "invert": self._invert, "video": self._video}.get(
            stage, lambda: None
        )()

    def _cost(
        self,
        stage: str,
        networks: Sequence[NetworkCost],
        *,
        num_saved: int,
        num_trained: int,
        num_frozen: int,
        num_exported: int,
        activation_bytes: float,
    ) -> StageCost:
        """From numbers of weights: in a checkpoint (EMA included), trained by Adam, frozen and not saved, exported to a model file."""
        settings = getattr(self.recipe, stage)
        num_in_checkpoint = num_saved + 2 * num_trained  # Adam keeps two numbers for each weight
        num_in_memory = 2 * num_in_checkpoint + num_trained + num_frozen
        memory_bytes = BYTES * num_in_memory + activation_bytes
        # two checkpoints while one replaces the other; the best and the last model
        num_on_disk = 2 * num_in_checkpoint + 2 * num_exported
        return StageCost(stage, settings.num_samples, tuple(networks), memory_bytes, BYTES * num_on_disk)

    def _prior(self) -> StageCost:
        settings = self.recipe.prior
        synthesis_pass = self.passes.synthesis_pass
        discriminator_pass = self.passes.discriminator_pass(torch.bfloat16 if self.passes.is_half else None)
        generated: float = 1 + BACKWARD + 1  # for the generator to learn from, and for the discriminator
        judged: float = (
            1 + TO_INPUTS + 2 * (1 + BACKWARD)
        )  # by the generator's phase; generated and real pictures in its own
        if settings.reconstruction is not None:
            return self._reconstruction(settings.reconstruction, judged)
        if settings.path_weight:
            generated += SECOND_BACKWARD * settings.path_batch_share / settings.path_every
        if settings.r1_gamma:
            judged += SECOND_BACKWARD / settings.r1_every
        num_generator, num_discriminator = (
            num_parameters(self.passes.generator),
            num_parameters(self.passes.discriminator),
        )
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size * settings.frames_per_clip)
        return self._cost(
            "prior",
            [
                NetworkCost(GENERATOR, synthesis_pass, generated, micro_batch),
                NetworkCost(IMAGE_DISCRIMINATOR, discriminator_pass, judged, micro_batch),
            ],
            num_saved=2 * num_generator + num_discriminator,
            num_trained=num_generator + num_discriminator,
            num_frozen=0,
            num_exported=num_generator + num_discriminator,
            activation_bytes=micro_batch * (synthesis_pass.saved_bytes + discriminator_pass.saved_bytes),
        )

    def _reconstruction(self, settings: ReconstructionSettings, judged: float) -> StageCost:
        """Of a prior that learns by reconstruction. ``judged``: passes of the discriminator for a picture, without R1."""
        prior, synthesis_pass = self.recipe.prior, self.passes.synthesis_pass
        num_pictures = prior.batch_size * prior.frames_per_clip
        micro_batch = min(prior.micro_batch_size or 1 << 30, num_pictures)
        features, feature_pass = self.passes.features(settings.encoder)
        codes, encoder_pass = self.passes.frame_encoder(settings.encoder, features)
        costs = [
            NetworkCost(GENERATOR, synthesis_pass, 1 + BACKWARD, micro_batch),
            NetworkCost(FEATURES, feature_pass, 1 + 1 + TO_INPUTS, micro_batch),  # of real pictures; of drawn ones
            NetworkCost(FRAME_ENCODER, encoder_pass, 1 + BACKWARD, micro_batch),
        ]
        saved_bytes = synthesis_pass.saved_bytes + feature_pass.saved_bytes + encoder_pass.saved_bytes
        num_trained = num_parameters(self.passes.generator, codes)
        num_discriminator = 0
        if settings.adversarial_weight:
            one = self.passes.discriminator_pass(torch.bfloat16 if self.passes.is_half else None)
            passes = judged + (SECOND_BACKWARD / prior.r1_every if prior.r1_gamma else 0.0)
            costs.append(NetworkCost(IMAGE_DISCRIMINATOR, one, passes, micro_batch))
            saved_bytes += one.saved_bytes
            num_discriminator = num_parameters(self.passes.discriminator)
        return self._cost(
            "prior",
            costs,
            num_saved=2 * num_trained + num_discriminator,
            num_trained=num_trained + num_discriminator,
            num_frozen=num_parameters(features) + sum(one.numel() for one in features.buffers()),
            num_exported=num_trained + num_discriminator,
            activation_bytes=micro_batch * saved_bytes,
        )

    def _coded(self, codes: CodeSettings | None, num_frames: int, num_clips: int) -> tuple[list[NetworkCost], float]:
        """What learning from codes costs for ``num_frames`` of a clip, and the share of the steps that draw pictures."""
        if codes is None:
            return [], 1.0
        config = (
            FrameEncoderConfig()
            if self.recipe.prior.reconstruction is None
            else self.recipe.prior.reconstruction.encoder
        )
        features, feature_pass = self.passes.features(config)
        _, encoder_pass = self.passes.frame_encoder(config, features)
        num_at_once = num_frames * num_clips
        costs = [
            NetworkCost(FEATURES, feature_pass, num_frames, num_at_once),
            NetworkCost(FRAME_ENCODER, encoder_pass, num_frames, num_at_once),
        ]
        return costs, 1 - codes.alone_share

    def _align(self) -> StageCost:
        settings, reader = self.recipe.align, self.recipe.reader
        num_weights, sound_pass = self.passes.sound_encoder
        num_partner, picture_pass = self.passes.picture_encoder
        num_views = 2  # the sound and its augmented view
        num_sounds = num_views * min(settings.micro_batch_size or 1 << 30, reader.batch_size)
        num_pictures = min(settings.partner.batch_size, reader.batch_size * reader.num_frames)
        return self._cost(
            "align",
            [
                # the gradient cache runs the forward pass twice
                NetworkCost(SOUND_ENCODER, sound_pass, num_views * (2 + BACKWARD), num_sounds),
                NetworkCost(PICTURE_ENCODER, picture_pass, reader.num_frames, num_pictures),
            ],
            num_saved=num_weights,
            num_trained=num_weights,
            num_frozen=num_partner,
            num_exported=num_weights,
            activation_bytes=num_sounds * sound_pass.saved_bytes,
        )

    def _guided(self, num_pictures: int, num_clips: int) -> tuple[list[NetworkCost], float, int]:
        """What the guide costs for ``num_pictures`` of a clip, its bytes to keep, and the weights of its picture encoder."""
        num_encoder, picture_pass = self.passes.picture_encoder
        num_looks = num_pictures * self.recipe.invert.guide.num_cutouts
        costs = [NetworkCost(PICTURE_ENCODER, picture_pass, num_looks * (1 + TO_INPUTS), num_looks * num_clips)]
        if self.recipe.invert.guide.sound_kind == "align":
            costs.append(NetworkCost("guide's sound encoder", self.passes.sound_encoder[1], 1, num_clips))
        return costs, num_looks * picture_pass.saved_bytes, num_encoder

    def _invert(self) -> StageCost:
        settings, model = self.recipe.invert, self.passes.model
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        window_pass, segment_pass = (
            self.passes.inversion_pass(1),
            self.passes.inversion_pass(self.recipe.reader.num_frames),
        )
        guide, guide_bytes, num_encoder = self._guided(1, micro_batch)
        num_trained = num_parameters(model.inversion)
        saved_bytes = self.passes.synthesis_pass.saved_bytes + guide_bytes
        coded, drawn_share = self._coded(settings.codes, 1, settings.batch_size)
        guide = [replace(one, passes=one.passes * drawn_share) for one in guide]
        return self._cost(
            "invert",
            [
                NetworkCost(GENERATOR, self.passes.synthesis_pass, (1 + TO_INPUTS) * drawn_share, micro_batch),
                # one half of the steps with windows, the other with segments
                NetworkCost(SOUND_ENCODER, window_pass, (1 + BACKWARD) / 2, settings.batch_size),
                NetworkCost(SOUND_ENCODER, segment_pass, (1 + BACKWARD) / 2, settings.batch_size),
                *guide,
                *coded,
            ],
            num_saved=num_trained,
            num_trained=num_trained,
            num_frozen=num_encoder + num_parameters(self.passes.generator),
            num_exported=num_parameters(model),
            activation_bytes=micro_batch * saved_bytes + settings.batch_size * window_pass.saved_bytes,
        )

    def _video(self) -> StageCost:
        settings, num_frames, model = self.recipe.video, self.recipe.reader.num_frames, self.passes.model
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        sound_pass = self.passes.inversion_pass(num_frames)
        judges, judges_bytes, num_discriminators = self._judges(micro_batch)
        encoded = 1 + (BACKWARD if settings.inversion_learning_rate else 0)
        drawn = 1 + (BACKWARD if settings.generator_learning_rate else TO_INPUTS)
        guide, guide_bytes, num_encoder = (
            self._guided(num_frames, micro_batch) if settings.guide_weight else ([], 0.0, 0)
        )
        frames_bytes = num_frames * self.passes.synthesis_pass.saved_bytes
        sound_bytes = num_frames * sound_pass.saved_bytes
        num_model = num_parameters(model)
        num_coded = num_frames + (settings.motion.frames if settings.motion is not None else 0)
        coded, drawn_share = self._coded(settings.codes, num_coded, settings.batch_size)
        drawing = [
            NetworkCost(GENERATOR, self.passes.synthesis_pass, num_frames * drawn, num_frames * micro_batch), *judges, *guide
        ]  # fmt: skip
        return self._cost(
            "video",
            [
                *(replace(one, passes=one.passes * drawn_share) for one in drawing),
                NetworkCost(SOUND_ENCODER, sound_pass, num_frames * encoded, num_frames * settings.batch_size),
                *coded,
            ],
            num_saved=2 * num_model + num_discriminators,
            num_trained=num_model - num_parameters(self.passes.generator) + num_discriminators,
            num_frozen=num_encoder,
            num_exported=num_model,
            activation_bytes=micro_batch * (frames_bytes + guide_bytes + judges_bytes)
            + settings.batch_size * sound_bytes,
        )

    def _judges(self, num_clips: int) -> tuple[list[NetworkCost], float, int]:
        """What the discriminators of the stage video cost for a clip, their bytes to keep, and their weights."""
        settings, num_frames = self.recipe.video, self.recipe.reader.num_frames
        costs, saved_bytes, num_weights = [], 0.0, 0
        penalty = SECOND_BACKWARD / settings.r1_every if settings.r1_gamma else 0.0
        if settings.image_weight:
            one = self.passes.discriminator_pass(torch.bfloat16 if self.passes.is_half else None)
            num_judged = min(settings.judged_frames, num_frames)
            passes = num_judged * (1 + TO_INPUTS + 2 * (1 + BACKWARD) + penalty)
            costs.append(NetworkCost(IMAGE_DISCRIMINATOR, one, passes, num_judged * num_clips))
            saved_bytes += num_judged * one.saved_bytes
            num_weights += num_parameters(self.passes.discriminator)
        if settings.video_weight:
            side_px, sound_width = settings.discriminator_px, SPACE_WIDTH if settings.hears else 0
            with torch.device("meta"):
                network = VideoDiscriminator(
                    num_frames, side_px, settings.discriminator_widths, sound_width=sound_width
                )

            def run(num: int) -> Tensor:
                clips = input_of(num, num_frames, 3, side_px, side_px)
                logits: Tensor = network(clips, torch.zeros(num, sound_width, device="meta") if sound_width else None)
                return logits

            one = count_pass(network, run, autocast=self.passes.is_half)
            num_batches = 3 if settings.hears and settings.mismatch_weight else 2  # generated, real, and mismatched
            passes = 1 + TO_INPUTS + num_batches * (1 + BACKWARD) + penalty
            costs.append(NetworkCost("video discriminator", one, passes, num_clips))
            saved_bytes += num_batches * one.saved_bytes
            num_weights += num_parameters(network)
        return costs, saved_bytes, num_weights
