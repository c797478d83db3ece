"""What a fit will cost, counted and not measured: operations of each stage, memory of its device, bytes of its checkpoints.

The networks are built without weights (torch's device ``meta``) and run once; their convolutions and products are counted.
What a phase runs how often is written down below. Everything that is no convolution and no product is left out of the operations: the
estimate is of an order, not of minutes.

Shape suffixes: N pictures, C H W of pictures, L layers that take a style each, D numbers of a style, B sounds, M mel bands, T mel frames.
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
"""Of a number of fp32, which weights and optimizers are kept in."""
SPACE_WIDTH = 512
"""Numbers of the shared space of a model of the size of ViT-B/32."""
UTILISATION = 0.5
"""Share of the speed of one large convolution that a whole step reaches."""
BACKWARD = 2
"""Operations of a backward pass to weights and inputs, in forward passes; to inputs alone it is one."""
SECOND_BACKWARD = 6
"""Of a penalty on a gradient: forward, gradient, and backward through both."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """Estimates of one stage on one rank."""

    stage: str
    num_samples: int
    operations_per_sample: float
    """Floating-point operations, an addition and a multiplication counted as two."""
    memory_bytes: float
    """Weights, averages, optimizers, the copy of them that a step keeps, and the activations of a micro-batch."""
    checkpoint_bytes: float
    """Everything that the stage leaves, while one checkpoint is written over another."""

    def hours(self, operations_per_second: float) -> float:
        return self.num_samples * self.operations_per_sample / operations_per_second / 3600


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass of one item."""

    operations: float
    saved_bytes: float
    """What is kept for the backward pass."""


def _counted(network: nn.Module, run: Callable[[], Tensor], items: int) -> ForwardPass:
    weights = {one.untyped_storage()._cdata for one in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        run()
    return ForwardPass(counter.get_total_flops() / items, sum(saved.values()) / items)


@contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _size(*networks: nn.Module | None) -> int:
    return sum(one.numel() for network in networks if network is not None for one in network.parameters())


class Estimate:
    """Counts the networks of a recipe once, and tells the cost of its stages."""

    def __init__(self, recipe: FitRecipe, generator: GeneratorConfig) -> None:
        """``generator``: that which the stages invert and video stand on, or the prior trains."""
        self.recipe, self._config = recipe, generator
        self.half = 0.5 if recipe.run.precision == "bf16" else 1.0

    @cached_property
    def generator(self) -> Generator:
        with torch.device("meta"):
            return build_generator(self._config)

    @cached_property
    def discriminator(self) -> Discriminator:
        with torch.device("meta"):
            return build_discriminator(self._config)

    @cached_property
    def drawn(self) -> ForwardPass:
        """Of one picture."""
        styles = torch.zeros(1, self.generator.num_ws, self._config.w_dim, device="meta", requires_grad=True)
        return _counted(self.generator, lambda: self.generator.synthesis(styles), 1)

    @cached_property
    def judged(self) -> ForwardPass:
        """Of one picture."""
        side, count = self._config.resolution, 4
        pictures = torch.zeros(count, 3, side, side, device="meta", requires_grad=True)
        return _counted(self.discriminator, lambda: self.discriminator(pictures), count)

    def of(self, stage: str) -> StageCost | None:
        """None: the stage has nothing to do, or is too small to count."""
        return {"prior": self._prior, "align": self._align, "invert": self._invert, "video": self._video}.get(
            stage, lambda: None
        )()

    def _cost(
        self, stage: str, operations: float, *, weights: int, learned: int, others: int, saved_bytes: float, files: int
    ) -> StageCost:
        """Numbers of weights: ``weights`` in a checkpoint, ``learned`` by Adam, ``others`` frozen, ``files`` in what others may use."""
        settings = getattr(self.recipe, stage)
        kept = weights + 2 * learned
        memory = BYTES * (2 * kept + learned + others) + saved_bytes * self.half
        return StageCost(
            stage, settings.num_samples, operations, memory, BYTES * (2 * kept + 2 * files)
        )  # one checkpoint beside the one before it; best and last

    def _prior(self) -> StageCost:
        settings, drawn, judged = self.recipe.prior, self.drawn.operations, self.judged.operations
        of_generator = drawn * (1 + BACKWARD) + judged * BACKWARD
        of_discriminator = drawn + 2 * judged * (1 + BACKWARD)
        if settings.path_weight:
            of_generator += SECOND_BACKWARD * drawn * settings.path_batch_share / settings.path_every
        if settings.r1_gamma:
            of_discriminator += SECOND_BACKWARD * judged / settings.r1_every
        small, large = _size(self.generator), _size(self.discriminator)
        at_once = min(settings.micro_batch_size or 1 << 30, settings.batch_size * settings.frames_per_clip)
        return self._cost(
            "prior",
            of_generator + of_discriminator,
            weights=2 * small + large,
            learned=small + large,
            others=0,
            saved_bytes=at_once * (self.drawn.saved_bytes + self.judged.saved_bytes),
            files=small + large,
        )

    def _sound_network(self, backbone: str, seconds: float) -> tuple[nn.Module, ForwardPass]:
        mel = MelConfig()
        with torch.device("meta"):
            network = SoundNetwork(SPACE_WIDTH, backbone)
        frames = mel.num_frames(round(seconds * mel.sample_rate_hz))
        mels = torch.zeros(2, 1, mel.num_mels, frames, device="meta")
        return network, _counted(network, lambda: network(mels), 2)

    @cached_property
    def _picture_encoder(self) -> tuple[int, ForwardPass]:
        """Weights of the picture encoder, and what one picture costs."""
        partner = self.recipe.align.partner
        if partner.is_packaged:
            network = PictureNetwork(PACKAGED["picture"]).to("meta")
            side = PICTURE_SIDE_PX
            pictures = torch.zeros(2, 3, side, side, device="meta", requires_grad=True)
            num_weights = sum(one.numel() for one in network.buffers())
            return num_weights, _counted(network, lambda: network(pictures), 2)
        with torch.device("meta"), _without_warnings():  # that it has no weights is meant
            model = open_clip.create_model(partner.picture_model, device="meta")
        size = model.visual.image_size
        high, wide = (size, size) if isinstance(size, int) else size
        pictures = torch.zeros(2, 3, high, wide, device="meta", requires_grad=True)
        return _size(model), _counted(model, lambda: model.encode_image(pictures), 2)

    def _align(self) -> StageCost:
        settings, reader = self.recipe.align, self.recipe.reader
        network, of_sound = self._sound_network(settings.backbone, reader.window_seconds)
        others, of_picture = self._picture_encoder
        views = 2 * (2 + BACKWARD)  # of the sound and its augmented view; once more forward for the gradient cache
        size = _size(network)
        at_once = 2 * min(settings.micro_batch_size or 1 << 30, reader.batch_size)
        return self._cost(
            "align",
            of_sound.operations * views + of_picture.operations * reader.num_frames,
            weights=size,
            learned=size,
            others=others,
            saved_bytes=at_once * of_sound.saved_bytes,
            files=size,
        )

    def _model(self) -> SoundVideoModel:
        from trainer.invert.shared import model_config  # noqa: PLC0415

        with torch.device("meta"):
            return SoundVideoModel(model_config(self.recipe), self.generator)

    def _guided(self, pictures: int) -> tuple[float, float, int]:
        """Operations and saved bytes of so many guided pictures, and the weights of the encoder that looks at them."""
        others, of_picture = self._picture_encoder
        cutouts = self.recipe.invert.guide.num_cutouts
        operations = 2 * self.drawn.operations + 2 * cutouts * of_picture.operations
        return pictures * operations, pictures * (self.drawn.saved_bytes + cutouts * of_picture.saved_bytes), others

    def _invert(self) -> StageCost:
        settings, model = self.recipe.invert, self._model()
        _, of_sound = self._sound_network(settings.backbone, self.recipe.reader.window_seconds)
        operations, saved, others = self._guided(1)
        learned = _size(model.inversion)
        at_once = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        return self._cost(
            "invert",
            operations + of_sound.operations * (1 + BACKWARD),
            weights=learned,
            learned=learned,
            others=others + _size(self.generator),
            saved_bytes=at_once * (saved + of_sound.saved_bytes),
            files=_size(model),
        )

    def _video(self) -> StageCost:
        settings, frames, model = self.recipe.video, self.recipe.reader.num_frames, self._model()
        _, of_sound = self._sound_network(self.recipe.invert.backbone, self.recipe.reader.window_seconds)
        operations, saved, others = self._guided(frames) if settings.guide_weight else (0.0, 0.0, 0)
        operations += (
            of_sound.operations * (1 + BACKWARD) + frames * self.drawn.operations
        )  # drawn anew for the discriminators
        judges = 0
        if settings.image_weight:
            judges += _size(self.discriminator)
            each = (2 + 2 * (1 + BACKWARD)) * self.judged.operations
            operations += min(settings.judged_frames, frames) * each
            saved += min(settings.judged_frames, frames) * self.judged.saved_bytes
        if settings.video_weight:
            with torch.device("meta"):
                judge = VideoDiscriminator(frames, settings.discriminator_px, settings.discriminator_widths)
            side = settings.discriminator_px
            clips = torch.zeros(2, frames, 3, side, side, device="meta", requires_grad=True)
            of_clip = _counted(judge, lambda: judge(clips), 2)
            judges += _size(judge)
            operations += (2 + 3 * (1 + BACKWARD)) * of_clip.operations
            saved += 3 * of_clip.saved_bytes
        whole = _size(model)
        at_once = min(settings.micro_batch_size or 1 << 30, settings.batch_size)
        learned = whole - _size(self.generator) + judges
        return self._cost(
            "video",
            operations,
            weights=2 * whole + judges,
            learned=learned,
            others=others,
            saved_bytes=at_once * (saved + of_sound.saved_bytes),
            files=whole,
        )


def operations_per_second(device: torch.device, precision: str) -> float:
    """What this device reaches in training: a share of a convolution that is timed for half a second."""
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
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < 0.5:
            torch.nn.functional.conv2d(maps, weight, padding=1)
            wait()
            runs += 1
        elapsed = time.perf_counter() - began
    operations = 2 * runs * maps.numel() * channels * 9
    return UTILISATION * operations / elapsed
