"""Augmentation: each transform on a picture whose pixels are known, and the rule for its probability."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.adversarial.ada import (
    AdaSettings,
    apply_colours,
    apply_geometry,
    augment,
    draw_colours,
    draw_geometry,
    next_p,
)

NAMES = list(AdaSettings.model_fields)
COLOURS = ("brightness", "contrast", "luma_flip", "hue", "saturation")
SIDE = 8


def only(name: str) -> AdaSettings:
    return AdaSettings(**{other: 1.0 * (other == name) for other in NAMES})


def pictures(count: int = 64) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def is_one_of(found: Tensor, wanted: list[Tensor]) -> list[int]:
    """Which of the wanted pictures each found one is; fails where it is none."""
    names = []
    for index in range(len(found)):
        same = [number for number, one in enumerate(wanted) if torch.allclose(found[index], one[index], atol=1e-5)]
        assert same, f"picture {index} is none of them"
        names.append(same[0])
    return names


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_nothing_happens_at_probability_0() -> None:
    given = pictures()
    assert augment(given, 0.0, AdaSettings(noise=1, cutout=1)) is given


def test_nothing_happens_where_every_transform_is_left_out() -> None:
    given = pictures()
    assert torch.equal(augment(given, 1.0, AdaSettings(**dict.fromkeys(NAMES, 0.0))), given)


def test_pictures_that_are_not_chosen_stay_as_they_are() -> None:
    given = pictures(400)
    found = augment(given, 0.5, only("brightness"))
    same = (found == given).flatten(1).all(1)
    assert 0.4 < float(same.float().mean()) < 0.6


def test_flips() -> None:
    given = pictures()
    kinds = is_one_of(augment(given, 1.0, only("flip")), [given, given.flip(-1)])
    assert 16 < sum(kinds) < 48  # half of the time


def test_quarter_turns() -> None:
    given = pictures()
    wanted = [torch.rot90(given, number, (2, 3)) for number in range(4)]
    assert set(is_one_of(augment(given, 1.0, only("quarter_turn")), wanted)) == {0, 1, 2, 3}


def test_shifts_by_whole_pixels_show_the_reflected_edge() -> None:
    given = pictures()
    padded = torch.nn.functional.pad(given, (1, 1, 1, 1), mode="replicate")  # reflected once is the edge itself
    wanted = [padded[..., y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    assert set(is_one_of(augment(given, 1.0, only("whole_shift")), wanted)) == set(range(9))


def test_the_matrices_have_the_distributions_of_the_paper() -> None:
    def of(name: str) -> Tensor:
        return draw_geometry(4000, 1.0, only(name), 64)

    scale = of("scale")
    assert torch.equal(scale[:, 0, 0], scale[:, 1, 1])
    assert float(scale[:, 0, 0].log().std()) == pytest.approx(0.2 * math.log(2), rel=0.05)
    stretch = of("stretch")
    assert torch.allclose(stretch[:, 0, 0] * stretch[:, 1, 1], torch.ones(4000), atol=1e-5)
    assert float(stretch[:, 0, 0].log().std()) == pytest.approx(0.2 * math.log(2), rel=0.05)
    shift = of("shift")
    assert float(shift[:, :2, 2].std()) == pytest.approx(0.25, rel=0.05)  # an eighth of a side that is 2 wide
    turn = of("turn")[:, :2, :2]
    assert torch.allclose(turn @ turn.transpose(1, 2), torch.eye(2).expand(4000, 2, 2), atol=1e-5)
    assert float(turn[:, 0, 0].mean()) == pytest.approx(0, abs=0.05)  # all angles are equal


def test_neither_turn_happens_as_often_as_p_says() -> None:
    still = (draw_geometry(4000, 0.4, only("turn"), 64) == torch.eye(3)).flatten(1).all(1)
    assert float(still.float().mean()) == pytest.approx(0.6, abs=0.03)


def test_a_scale_enlarges_around_the_middle() -> None:
    # to twice the size: the new picture shows the middle half of the old one
    ramp = torch.linspace(-1 + 1 / SIDE, 1 - 1 / SIDE, SIDE).expand(1, 1, 3, SIDE, SIDE)
    found = apply_geometry(ramp, torch.diag(torch.tensor([0.5, 0.5, 1.0]))[None])
    assert torch.allclose(found, ramp / 2, atol=1e-6)


def colour_after(name: str, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given = torch.tensor([0.6, -0.2, 0.1]).view(1, 1, 3, 1, 1).expand(64, 1, 3, 2, 2)
    drawn = draw_colours(64, 1.0, only(name)) if matrix is None else matrix
    return given[0, 0, :, 0, 0], apply_colours(given, drawn)[:, 0, :, 0, 0]


def saturation(colour: Tensor) -> Tensor:
    return (colour - colour.mean(-1, keepdim=True)).norm(dim=-1)


def test_brightness_adds_and_contrast_multiplies() -> None:
    before, after = colour_after("brightness")
    added = after - before
    assert torch.allclose(added, added[:, :1].expand(-1, 3), atol=1e-6)
    assert float(added[:, 0].std()) == pytest.approx(0.2, rel=0.3)
    before, after = colour_after("contrast")
    factor = after / before
    assert torch.allclose(factor, factor[:, :1].expand(-1, 3), atol=1e-5)
    assert bool((factor > 0).all())


def test_a_luma_flip_mirrors_the_mean_and_keeps_the_colour() -> None:
    before, after = colour_after("luma_flip")
    flipped = before - 2 * before.mean()
    kinds = [0 if torch.allclose(one, before, atol=1e-5) else 1 for one in after]
    assert {0, 1} == set(kinds)
    assert all(torch.allclose(one, flipped, atol=1e-5) for one, kind in zip(after, kinds, strict=True) if kind)


def test_hue_keeps_lightness_and_distance_from_grey() -> None:
    before, after = colour_after("hue")
    assert torch.allclose(after.mean(1), before.mean().expand(64), atol=1e-5)
    assert torch.allclose(saturation(after), saturation(before).expand(64), atol=1e-5)
    assert float(after.std(0).min()) > 0.2


def test_saturation_keeps_lightness_and_direction() -> None:
    before, after = colour_after("saturation")
    assert torch.allclose(after.mean(1), before.mean().expand(64), atol=1e-5)
    directions = (after - after.mean(1, keepdim=True)) / saturation(after)[:, None]
    assert torch.allclose(directions, ((before - before.mean()) / saturation(before)).expand(64, 3), atol=1e-4)
    assert float((saturation(after) / saturation(before)).log().std()) == pytest.approx(math.log(2), rel=0.3)


def test_a_cutout_is_grey_and_half_as_wide() -> None:
    found = augment(torch.ones(64, 3, SIDE, SIDE), 1.0, only("cutout"))
    holes = (found == 0).all(1)
    assert torch.equal(found, (~holes)[:, None].float().expand(-1, 3, -1, -1))
    sizes = holes.flatten(1).sum(1)
    assert int(sizes.max()) == 16  # 4 x 4 of 8 x 8, where no edge cuts it
    assert int(sizes.min()) >= 4


def test_noise_is_of_its_own_in_every_pixel() -> None:
    found = augment(torch.zeros(200, 3, SIDE, SIDE), 1.0, only("noise"))
    assert float(found.square().mean().sqrt()) == pytest.approx(0.1, rel=0.15)
    assert float(found.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "noise"])
def test_every_frame_of_a_clip_is_changed_in_the_same_way(name: str) -> None:
    first, second = pictures(16), pictures(16).flip(0)
    clips = torch.stack([first, second, first], 1)
    found = augment(clips, 1.0, only(name))
    assert found.shape == clips.shape
    # one product for all frames: those at its end may be left over to another kernel
    torch.testing.assert_close(found[:, 0], found[:, 2], rtol=0, atol=1e-6)
    assert not torch.allclose(found[:, 0], first, atol=1e-3)
    torch.manual_seed(3)
    alone = augment(first, 1.0, only(name))
    torch.manual_seed(3)
    assert torch.allclose(augment(clips, 1.0, only(name))[:, 0], alone, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass(name: str) -> None:
    given = pictures(8).requires_grad_()
    augment(given, 1.0, only(name)).square().sum().backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())
    assert all(bool(one.any()) for one in given.grad)


def test_gradients_agree_with_differences() -> None:
    def changed(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return augment(x, 0.9, AdaSettings(cutout=1))

    function: Callable[[Tensor], Tensor] = changed
    given = pictures(2).double()[..., :4, :4].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(function, (given,), eps=1e-4, atol=1e-4)


def test_the_probability_follows_the_sign_of_real_pictures() -> None:
    # 64 x 4 pictures of 512 that lead from 0 to 1: half a step
    assert next_p(0.2, 0.9, 0.6, 256, 512) == pytest.approx(0.7)
    assert next_p(0.7, 0.1, 0.6, 256, 512) == pytest.approx(0.2)
    assert next_p(0.3, 0.6, 0.6, 256, 512) == 0.3
    assert next_p(0.2, 0.0, 0.6, 256, 512) == 0.0
    assert next_p(0.9, 1.0, 0.6, 256, 512) == 1.0


def test_p_of_a_colour_is_its_share() -> None:
    for name in COLOURS:
        half = only(name).model_copy(update={name: 0.5})
        moved = (draw_colours(2000, 0.5, half) != torch.eye(4)).flatten(1).any(1)
        share = 0.125 if name == "luma_flip" else 0.25  # it flips half of those that it is given
        assert float(moved.float().mean()) == pytest.approx(share, abs=0.04), name
