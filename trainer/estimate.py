"""Estimates what a fit will cost: the operations, device memory and checkpoint bytes of each stage. Nothing is measured.

The networks are built without weights (torch's device ``meta``) and run once. Their convolutions and matrix products are counted; all
other operations are left out. How often a step runs each network is written here, and must follow the stages. The result is an order of
magnitude.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import open_clip
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.small.towers import PACKAGED, PictureNetwork
from pipeline.encoders.small.trunks import PICTURE_SIDE_PX
from pipeline.encoders.sound import SoundNetwork
from trainer.model.discriminator import Discriminator
from trainer.model.generator import Generator, GeneratorConfig, build_discriminator, build_generator
from trainer.model.sound_video import SoundVideoModel
from trainer.model.video_discriminator import VideoDiscriminator
from trainer.recipe import FitRecipe

BYTES = 4
"""Bytes of an fp32 number; weights and optimizer states are fp32."""
SPACE_WIDTH = 512
"""Width of the embedding space that is assumed: that of ViT-B/32."""
UTILISATION = 0.5
"""Speed of a whole step, as a share of the speed of one large convolution."""
BACKWARD = 2
"""Cost of a backward pass to weights and inputs, in forward passes. To the inputs alone it is one forward pass."""
SECOND_BACKWARD = 6
"""Cost of a penalty on a gradient, in forward passes: forward, gradient, and backward through both."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """The estimated cost of a stage on one rank."""

    stage: str
    num_samples: int
    operations_per_sample: float
    """Floating-point operations; an addition and a multiplication count as two."""
    memory_bytes: float
    """Weights, their averages (EMA), optimizer states, the copy of these that a step keeps, and the activations of a micro-batch."""
    checkpoint_bytes: float
    """Disk space of the stage's files at their largest: while a checkpoint replaces the one before it, both are there."""

    def hours(self, operations_per_second: float) -> float:
        return self.num_samples * self.operations_per_sample / operations_per_second / 3600


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The cost of a network's forward pass for one item: one picture, sound or clip."""

    operations: float
    saved_bytes: float
    """Size of the tensors that are kept for the backward pass, in fp32."""


def _count(network: nn.Module, run: Callable[[], Tensor], num_items: int) -> ForwardPass:
    """Runs ``network`` once for ``num_items``, and counts. A storage that several saved tensors share counts once, weights do not."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    saved_bytes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved_bytes[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        run()
    return ForwardPass(counter.get_total_flops() / num_items, sum(saved_bytes.values()) / num_items)


@contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _num_parameters(*networks: nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


class Estimate:
    """The costs of a recipe's stages. Each network is counted once, when it is first needed."""

    def __init__(self, recipe: FitRecipe, generator: GeneratorConfig) -> None:
        """``generator``: the one that the prior stage trains, or that invert and video use."""
        self.recipe, self._config = recipe, generator
        self.activation_scale = 0.5 if recipe.run.precision == "bf16" else 1.0

    @cached_property
    def generator(self) -> Generator:
        with torch.device("meta"):
            return build_generator(self._config)

    @cached_property
    def discriminator(self) -> Discriminator:
        with torch.device("meta"):
            return build_discriminator(self._config)

    @cached_property
    def synthesis_pass(self) -> ForwardPass:
        """Of the generator, for one picture."""
        styles = torch.zeros(1, self.generator.num_ws, self._config.w_dim, device="meta", requires_grad=True)
        return _count(self.generator, lambda: self.generator.synthesis(styles), 1)

    @cached_property
    def discriminator_pass(self) -> ForwardPass:
        """For one picture."""
        side_px, num_pictures = self._config.resolution, 4
        pictures = torch.zeros(num_pictures, 3, side_px, side_px, device="meta", requires_grad=True)
        return _count(self.discriminator, lambda: self.discriminator(pictures), num_pictures)

    def of(self, stage: str) -> StageCost | None:
        """The cost of a stage. None: the stage is not one of this package's four."""
        return {"prior": self._prior, "align": self._align, "invert": self._invert, "video": self._video}.get(
            stage, lambda: None
        )()

    def _cost(
        self,
        stage: str,
        operations: float,
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
        memory_bytes = BYTES * num_in_memory + activation_bytes * self.activation_scale
        # two checkpoints while one replaces the other; the best and the last model
        num_on_disk = 2 * num_in_checkpoint + 2 * num_exported
        return StageCost(stage, settings.num_samples, operations, memory_bytes, BYTES * num_on_disk)

    def _prior(self) -> StageCost:
        settings = self.recipe.prior
        synthesis_operations, discriminator_operations = (
            self.synthesis_pass.operations,
            self.discriminator_pass.operations,
        )
        generator_step = synthesis_operations * (1 + BACKWARD) + discriminator_operations * BACKWARD
        discriminator_step = synthesis_operations + 2 * discriminator_operations * (1 + BACKWARD)
        if settings.path_weight:
            generator_step += SECOND_BACKWARD * synthesis_operations * settings.path_batch_share / settings.path_every
        if settings.r1_gamma:
            discriminator_step += SECOND_BACKWARD * discriminator_operations / settings.r1_every
        num_generator, num_discriminator = _num_parameters(self.generator), _num_parameters(self.discriminator)
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size * settings.frames_per_clip)
        return self._cost(
            "prior",
            generator_step + discriminator_step,
            num_saved=2 * num_generator + num_discriminator,
            num_trained=num_generator + num_discriminator,
            num_frozen=0,
            num_exported=num_generator + num_discriminator,
            activation_bytes=micro_batch * (self.synthesis_pass.saved_bytes + self.discriminator_pass.saved_bytes),
        )

    def _sound_network(self, backbone: str, seconds: float) -> tuple[nn.Module, ForwardPass]:
        """A sound encoder, and the cost of a sound of ``seconds``."""
        mel = MelConfig()
        with torch.device("meta"):
            network = SoundNetwork(SPACE_WIDTH, backbone)
        num_frames = mel.num_frames(round(seconds * mel.sample_rate_hz))
        mels = torch.zeros(2, 1, mel.num_mels, num_frames, device="meta")
        return network, _count(network, lambda: network(mels), 2)

    @cached_property
    def _picture_encoder(self) -> tuple[int, ForwardPass]:
        """The number of weights of the picture encoder, and the cost of one picture."""
        partner = self.recipe.align.partner
        if partner.is_packaged:
            network = PictureNetwork(PACKAGED["picture"]).to("meta")
            side_px = PICTURE_SIDE_PX
            pictures = torch.zeros(2, 3, side_px, side_px, device="meta", requires_grad=True)
            num_weights = sum(buffer.numel() for buffer in network.buffers())
            return num_weights, _count(network, lambda: network(pictures), 2)
        with torch.device("meta"), _without_warnings():  # open_clip warns that the model has random weights
            model = open_clip.create_model(partner.picture_model, device="meta")
        size_px = model.visual.image_size
        height_px, width_px = (size_px, size_px) if isinstance(size_px, int) else size_px
        pictures = torch.zeros(2, 3, height_px, width_px, device="meta", requires_grad=True)
        return _num_parameters(model), _count(model, lambda: model.encode_image(pictures), 2)

    def _align(self) -> StageCost:
        settings, reader = self.recipe.align, self.recipe.reader
        network, sound_pass = self._sound_network(settings.backbone, reader.window_seconds)
        num_partner, picture_pass = self._picture_encoder
        num_views = 2  # the sound and its augmented view
        passes = num_views * (2 + BACKWARD)  # the gradient cache runs the forward pass twice
        num_weights = _num_parameters(network)
        num_sounds = num_views * min(settings.micro_batch_size or 1 << 30, reader.batch_size)
        return self._cost(
            "align",
            sound_pass.operations * passes + picture_pass.operations * reader.num_frames,
            num_saved=num_weights,
            num_trained=num_weights,
            num_frozen=num_partner,
            num_exported=num_weights,
            activation_bytes=num_sounds * sound_pass.saved_bytes,
        )

    def _model(self) -> SoundVideoModel:
        from trainer.invert.shared import model_config  # noqa: PLC0415

        with torch.device("meta"):
            return SoundVideoModel(model_config(self.recipe), self.generator)

    def _guided(self, num_pictures: int) -> tuple[float, float, int]:
        """Operations and saved bytes of ``num_pictures`` with the guide's loss, and the number of weights of its picture encoder."""
        num_encoder, picture_pass = self._picture_encoder
        num_cutouts = self.recipe.invert.guide.num_cutouts
        operations = 2 * self.synthesis_pass.operations + 2 * num_cutouts * picture_pass.operations
        saved_bytes = self.synthesis_pass.saved_bytes + num_cutouts * picture_pass.saved_bytes
        return num_pictures * operations, num_pictures * saved_bytes, num_encoder

    def _invert(self) -> StageCost:
        settings, model = self.recipe.invert, self._model()
        _, sound_pass = self._sound_network(settings.backbone, self.recipe.reader.window_seconds)
        operations, saved_bytes, num_encoder = self._guided(1)
        num_trained = _num_parameters(model.inversion)
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        return self._cost(
            "invert",
            operations + sound_pass.operations * (1 + BACKWARD),
            num_saved=num_trained,
            num_trained=num_trained,
            num_frozen=num_encoder + _num_parameters(self.generator),
            num_exported=_num_parameters(model),
            activation_bytes=micro_batch * (saved_bytes + sound_pass.saved_bytes),
        )

    def _video(self) -> StageCost:
        settings, num_frames, model = self.recipe.video, self.recipe.reader.num_frames, self._model()
        _, sound_pass = self._sound_network(self.recipe.invert.backbone, self.recipe.reader.window_seconds)
        operations, saved_bytes, num_encoder = self._guided(num_frames) if settings.guide_weight else (0.0, 0.0, 0)
        operations += sound_pass.operations * (1 + BACKWARD)
        # the discriminators' phases generate their own frames
        operations += num_frames * self.synthesis_pass.operations
        num_discriminators = 0
        if settings.image_weight:
            num_judged = min(settings.judged_frames, num_frames)
            num_discriminators += _num_parameters(self.discriminator)
            operations += num_judged * (2 + 2 * (1 + BACKWARD)) * self.discriminator_pass.operations
            saved_bytes += num_judged * self.discriminator_pass.saved_bytes
        if settings.video_weight:
            side_px = settings.discriminator_px
            with torch.device("meta"):
                discriminator = VideoDiscriminator(num_frames, side_px, settings.discriminator_widths)
            clips = torch.zeros(2, num_frames, 3, side_px, side_px, device="meta", requires_grad=True)
            clip_pass = _count(discriminator, lambda: discriminator(clips), 2)
            num_discriminators += _num_parameters(discriminator)
            operations += (2 + 3 * (1 + BACKWARD)) * clip_pass.operations
            saved_bytes += 3 * clip_pass.saved_bytes
        num_model = _num_parameters(model)
        micro_batch = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        return self._cost(
            "video",
            operations,
            num_saved=2 * num_model + num_discriminators,
            num_trained=num_model - _num_parameters(self.generator) + num_discriminators,
            num_frozen=num_encoder,
            num_exported=num_model,
            activation_bytes=micro_batch * (saved_bytes + sound_pass.saved_bytes),
        )


def operations_per_second(device: torch.device, precision: str) -> float:
    """Estimated operations a second of a training step on this device: ``UTILISATION`` of a convolution that is timed for half a second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    channels, side, batch = (256, 64, 16) if device.type == "cuda" else (64, 32, 8)
    maps = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.no_grad():
        torch.nn.functional.conv2d(maps, weight, padding=1)
        wait()
        started, num_runs = time.perf_counter(), 0
        while time.perf_counter() - started < 0.5:
            torch.nn.functional.conv2d(maps, weight, padding=1)
            wait()
            num_runs += 1
        elapsed_seconds = time.perf_counter() - started
    operations = 2 * num_runs * maps.numel() * channels * 9
    return UTILISATION * operations / elapsed_seconds
