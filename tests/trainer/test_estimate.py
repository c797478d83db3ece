"""Estimates of what a fit costs: what is counted, held against counts by hand."""

from pathlib import Path

import pytest

from pipeline.encoders.small.trunks import PICTURE_SIDE_PX, picture_layers, trunk
from pipeline.runtime.recipe_file import read_recipe
from trainer.estimate import Estimate
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe

TINY = Path(__file__).parents[2] / "manifests" / "recipes" / "fit-tiny.toml"


PLAIN = ("invert.codes=null", "video.codes=null", "video.motion=null")
"""Without codes: pictures are drawn in every step."""


def estimate(*changes: str, plain: bool = True) -> Estimate:
    recipe = read_recipe(FitRecipe, TINY, (*(PLAIN if plain else ()), *changes))
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


@pytest.mark.slow
def test_what_codes_teach_alone_is_not_drawn_and_their_frames_count() -> None:
    drawn, half, alone = (
        estimate("video.motion=null", f"video.codes={{alone_share = {share}}}", plain=False).of("video")
        for share in (0.0, 0.5, 1.0)
    )
    moving = estimate("video.motion={frames = 12}", "video.codes={alone_share = 1.0}", plain=False).of("video")
    assert drawn is not None and half is not None and alone is not None and moving is not None
    by_network = [{one.network: one.operations for one in cost.networks} for cost in (drawn, half, alone, moving)]
    for name in ("generator", "guide's picture encoder", "image discriminator"):
        assert by_network[1][name] == pytest.approx(by_network[0][name] / 2), name
        assert by_network[2][name] == 0, name
    features = [costs["features of frames"] for costs in by_network]
    assert features[0] == features[1] == features[2] > 0
    assert features[3] == pytest.approx(4 * features[2])  # 12 neighbouring frames beside the recipe's 4


def test_a_prior_by_reconstruction_has_an_encoder_and_no_idle_discriminator() -> None:
    with_judge, without = (
        estimate(f"prior.reconstruction.adversarial_weight={weight}").of("prior") for weight in (0.1, 0.0)
    )
    assert with_judge is not None and without is not None
    names = [[one.network for one in cost.networks] for cost in (with_judge, without)]
    assert names[1] == ["generator", "features of frames", "encoder of frames"]
    assert names[0] == [*names[1], "image discriminator"]
    assert without.memory_bytes < with_judge.memory_bytes


def test_a_stage_that_is_not_known_has_no_cost() -> None:
    assert estimate().of("nothing") is None
