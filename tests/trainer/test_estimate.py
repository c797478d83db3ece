"""Estimates of what a fit costs: what is counted, held against counts by hand."""

from pathlib import Path

import pytest

from pipeline.encoders.small.trunks import PICTURE_SIDE_PX, picture_layers, trunk
from pipeline.runtime.recipe_file import read_recipe
from trainer.estimate import Estimate
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe

TINY = Path(__file__).parents[2] / "manifests" / "recipes" / "fit-tiny.toml"


def estimate(*changes: str) -> Estimate:
    recipe = read_recipe(FitRecipe, TINY, changes)
    return Estimate(recipe, generator_config(recipe.prior))


@pytest.mark.slow
def packaged_picture_operations() -> float:
    """Two for each weight of a convolution at each place of its output (padding ``SAME``)."""
    network, _ = trunk("picture")
    side, total = PICTURE_SIDE_PX, 0.0
    for number, layer in enumerate(picture_layers()):
        side = -(-side // layer.stride)
        total += 2 * network.get_buffer(f"weight_{number:02}").numel() * side**2
    return total


def test_a_picture_that_the_packaged_encoder_sees_counts() -> None:
    """A cutout more costs two passes of the encoder more: forward, and back to the pixels. Its tower is small beside its convolutions."""
    one, two = (estimate(f"invert.guide.num_cutouts={number}").of("invert") for number in (1, 2))
    assert one is not None and two is not None
    more = two.operations_per_sample - one.operations_per_sample
    assert more == pytest.approx(2 * packaged_picture_operations(), rel=0.03)
    assert two.memory_bytes > one.memory_bytes


@pytest.mark.slow
def test_frames_of_a_clip_count_in_video_and_not_in_invert() -> None:
    costs = {number: estimate(f"reader.num_frames={number}") for number in (2, 4)}
    invert = [costs[number].of("invert") for number in (2, 4)]
    video = [costs[number].of("video") for number in (2, 4)]
    assert invert[0] is not None and invert[1] is not None and video[0] is not None and video[1] is not None
    (few, many), (few_in_video, many_in_video) = (
        [{network.network: network.operations for network in cost.networks} for cost in both if cost]
        for both in (invert, video)
    )
    for name in ("generator", "guide's picture encoder"):
        assert many[name] == few[name], name
        assert many_in_video[name] == pytest.approx(2 * few_in_video[name]), name
    assert (
        many_in_video["image discriminator"] == few_in_video["image discriminator"]
    )  # it gets two frames of each clip


def test_a_stage_that_is_not_known_has_no_cost() -> None:
    assert estimate().of("nothing") is None
