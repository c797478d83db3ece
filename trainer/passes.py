"""Counts one pass of each network of a recipe, on torch's device ``meta``. A network is made and counted when it is first needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import open_clip
import torch
from torch import Tensor, nn

from pipeline.encoders.mel import MelConfig
from pipeline.encoders.small.towers import PACKAGED, PictureNetwork
from pipeline.encoders.small.trunks import PICTURE_SIDE_PX
from pipeline.encoders.sound import SoundNetwork
from trainer.counting import ForwardPass, count_pass
from trainer.invert.shared import model_config
from trainer.model.discriminator import Discriminator
from trainer.model.features import PictureFeatures
from trainer.model.frame_encoder import FrameEncoder, FrameEncoderConfig
from trainer.model.generator import Generator, GeneratorConfig, build_discriminator, build_generator
from trainer.model.sound_video import SoundVideoModel
from trainer.recipe import FitRecipe

SPACE_WIDTH = 512
"""Width of the embedding space that is assumed: that of ViT-B/32."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def num_parameters(*networks: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def input_of(*shape: int) -> Tensor:
    """An input of a network that gradients go back to."""
    return torch.zeros(shape, device="meta", requires_grad=True)


class Passes:
    """The networks of a recipe, without weights, and the cost of one pass of each."""

    def __init__(self, recipe: FitRecipe, generator: GeneratorConfig) -> None:
        """``generator``: the one that the prior stage trains, or that invert and video use."""
        self.recipe, self.config = recipe, generator
        self.is_half = recipe.run.precision == "bf16"

    @cached_property
    def generator(self) -> Generator:
        with torch.device("meta"):
            generator = build_generator(self.config)
        generator.use_half(torch.bfloat16 if self.is_half else None)
        return generator

    @cached_property
    def discriminator(self) -> Discriminator:
        with torch.device("meta"):
            return build_discriminator(self.config)

    @cached_property
    def synthesis_pass(self) -> ForwardPass:
        """Of the generator, for one picture; its mapping network, which is small beside it, is left out."""
        shape = (self.generator.num_ws, self.config.w_dim)
        return count_pass(self.generator, lambda num: self.generator.synthesis(input_of(num, *shape)))

    def discriminator_pass(self, half_dtype: torch.dtype | None) -> ForwardPass:
        """For one picture. ``half_dtype``: the number type of the highest resolutions; None: float32."""
        network, side_px = self.discriminator, self.config.resolution
        network.half_dtype = half_dtype
        return count_pass(network, lambda num: network(input_of(num, 3, side_px, side_px)))

    def features(self, config: FrameEncoderConfig) -> tuple[PictureFeatures, ForwardPass]:
        """The frozen features of frames, and the cost of one frame."""
        network, side_px = PictureFeatures(config.features).to("meta"), self.config.resolution
        return network, count_pass(network, lambda num: network(input_of(num, 3, side_px, side_px))[-1])

    def frame_encoder(self, config: FrameEncoderConfig, features: PictureFeatures) -> tuple[FrameEncoder, ForwardPass]:
        """The encoder of frames, and the cost of one frame whose features are known."""
        side_px = self.config.resolution
        with torch.device("meta"):
            network = FrameEncoder(features.num_channels(), config.width, self.config.num_ws, self.config.w_dim)
            maps = features(torch.zeros(1, 3, side_px, side_px))

        def run(num: int) -> Tensor:
            repeated = [one.expand(num, -1, -1, -1) for one in maps]
            codes: Tensor = network(input_of(num, 3, side_px, side_px), repeated)
            return codes

        return network, count_pass(network, run)

    @cached_property
    def picture_encoder(self) -> tuple[int, ForwardPass]:
        """The number of weights of the picture encoder, and the cost of one picture."""
        partner = self.recipe.align.partner
        if partner.is_packaged:
            network = PictureNetwork(PACKAGED["picture"]).to("meta")
            num_weights = sum(buffer.numel() for buffer in network.buffers())
            side_px = PICTURE_SIDE_PX  # it runs in float32
            return num_weights, count_pass(network, lambda num: network(input_of(num, 3, side_px, side_px)))
        with torch.device("meta"), _without_warnings():  # open_clip warns that the model has random weights
            model = open_clip.create_model(partner.picture_model, device="meta")
        size_px = model.visual.image_size
        height_px, width_px = (size_px, size_px) if isinstance(size_px, int) else size_px
        shape = (3, height_px, width_px)
        one = count_pass(model, lambda num: model.encode_image(input_of(num, *shape)), autocast=self.is_half)
        return num_parameters(model), one

    def mel_shape(self, num_segments: int = 1) -> tuple[int, int]:
        """Bands and frames of the mel of a window, or of one of its segments."""
        mel = MelConfig()
        num_frames = mel.num_frames(round(self.recipe.reader.window_seconds * mel.sample_rate_hz))
        return mel.num_mels, num_frames // num_segments

    @cached_property
    def sound_encoder(self) -> tuple[int, ForwardPass]:
        """The number of weights of align's sound network, and the cost of a window of sound."""
        with torch.device("meta"):
            network = SoundNetwork(SPACE_WIDTH, self.recipe.align.backbone, self.recipe.align.norm)
        shape = (1, *self.mel_shape())
        one = count_pass(network, lambda num: network(torch.zeros(num, *shape, device="meta")), autocast=self.is_half)
        return num_parameters(network), one

    @cached_property
    def model(self) -> SoundVideoModel:
        with torch.device("meta"):
            return SoundVideoModel(model_config(self.recipe), self.generator)

    def inversion_pass(self, num_segments: int) -> ForwardPass:
        """Of the inversion encoder, for a window of sound, or for one of its segments."""
        network, shape = self.model.inversion, self.mel_shape(num_segments)
        width = self.recipe.invert.latent_width

        def run(num: int) -> Tensor:
            styles: Tensor = network(torch.zeros(num, *shape, device="meta"), torch.zeros(num, width, device="meta"))
            return styles

        return count_pass(network, run, autocast=self.is_half)
