"""The video discriminator: it sees time, and hears."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.model.video_discriminator import VideoDiscriminator

WIDTHS = (8, 8, 4)  # at 4, 8 and 16 pixels


def clips(seed: int, side: int = 16, frames: int = 3) -> Tensor:
    return torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def made(sound_width: int = 0) -> VideoDiscriminator:
    torch.manual_seed(0)
    return VideoDiscriminator(3, 16, WIDTHS, sound_width=sound_width)


def sounds(seed: int) -> Tensor:
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_clips_become_logits_and_everything_gets_a_gradient() -> None:
    network = made(6)
    shown = clips(0).requires_grad_()
    logits = network(shown, sounds(0))
    assert logits.shape == (2, 1)
    logits.square().sum().backward()
    still = [name for name, one in network.named_parameters() if one.grad is None or not bool(one.grad.any())]
    assert still == []
    assert shown.grad is not None
    assert bool(shown.grad.flatten(2).any(2).all())  # every frame of every clip


@torch.no_grad()
def test_each_clip_is_judged_alone() -> None:
    network = made(6)
    together = network(clips(0), sounds(0))
    alone = torch.cat([network(clips(0)[row : row + 1], sounds(0)[row : row + 1]) for row in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert float((together[0] - together[1]).abs()) > 1e-3


@torch.no_grad()
def test_the_order_of_the_frames_matters() -> None:
    network = made()
    before, after = network(clips(0)), network(clips(0)[:, [1, 0, 2]])
    assert float((before - after).abs().min()) > 1e-4 * float(before.abs().max())
    # without reach over time it would not: kernels of one frame, and a mean over the frames
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 5 and weight.shape[2] == 3:
            with torch.no_grad():
                weight[:, :, [0, 2]] = 0
    assert torch.allclose(network(clips(0)), network(clips(0)[:, [1, 0, 2]]), atol=1e-5)


@torch.no_grad()
def test_another_sound_changes_the_logit_of_a_discriminator_that_hears() -> None:
    network = made(6)
    one, other = network(clips(0), sounds(0)), network(clips(0), sounds(1))
    assert float((one - other).abs().min()) > 1e-3
    with pytest.raises(ValueError, match=r"this discriminator needs sounds of shape \(batch, 6\)"):
        network(clips(0))


def test_one_that_does_not_hear_says_the_same_of_every_sound() -> None:
    network = made()
    assert torch.equal(network(clips(0), sounds(0)), network(clips(0), sounds(1)))
    assert torch.equal(network(clips(0), sounds(0)), network(clips(0)))


@pytest.mark.parametrize("side", [8, 32])
def test_frames_of_another_size_are_brought_to_its_own(side: int) -> None:
    network = made()
    shown = clips(0, side)
    resized = torch.nn.functional.interpolate(shown.flatten(0, 1), (16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(network(shown), network(resized.view(2, 3, 3, 16, 16)), atol=1e-6)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 widths are for 16 pixels, not 32"):
        VideoDiscriminator(3, 32, WIDTHS)
