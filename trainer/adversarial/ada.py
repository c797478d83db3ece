"""Adaptive augmentation: random transforms of the discriminator's input, and the rule for their probability p.

Equations: StyleGAN2-ADA (arXiv:2006.06676): transforms and distributions from appendix B, the rule for p from section 3.1. All geometric
transforms are one resampling (bilinear, edges reflected) without the paper's oversampling; flips, quarter turns and shifts by whole
pixels are exact. All colour transforms are one matrix.

Shape suffixes: B clips or pictures, T frames, C = 3 colours, H W rows and columns, S positions along a side, 3x3 and 4x4 homogeneous
matrices.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pipeline.settings import Settings

SHIFT_SHARE = 0.125
"""Share of the side: the largest shift by whole pixels, and the standard deviation of the other shift."""
SCALE_LOG_DEVIATION = 0.2 * math.log(2)
BRIGHTNESS_DEVIATION = 0.2
CONTRAST_LOG_DEVIATION = 0.5 * math.log(2)
SATURATION_LOG_DEVIATION = math.log(2)
NOISE_DEVIATION = 0.1
CUTOUT_SHARE = 0.5
"""Side of the square that is cut out, as a share of the picture's."""


class AdaSettings(Settings):
    """The probability of each transform, as a multiple of p. 0: the transform is left out."""

    flip: float = Field(1.0, ge=0, le=1)
    """Mirrors left and right, half of the time."""
    quarter_turn: float = Field(1.0, ge=0, le=1)
    """Rotates by 0, 90, 180 or 270 degrees."""
    whole_shift: float = Field(1.0, ge=0, le=1)
    """Shifts by whole pixels, up to an eighth of the side."""
    scale: float = Field(1.0, ge=0, le=1)
    """Scales by one log-normal factor along both axes."""
    turn: float = Field(1.0, ge=0, le=1)
    """Rotates by any angle, once before and once after ``stretch``."""
    stretch: float = Field(1.0, ge=0, le=1)
    """Scales the width by a log-normal factor, and the height by its inverse."""
    shift: float = Field(1.0, ge=0, le=1)
    """Shifts by a normally distributed distance, with a standard deviation of an eighth of the side."""
    brightness: float = Field(1.0, ge=0, le=1)
    """Adds a normally distributed number to all colours."""
    contrast: float = Field(1.0, ge=0, le=1)
    """Multiplies all colours by a log-normal factor."""
    luma_flip: float = Field(1.0, ge=0, le=1)
    """Exchanges light and dark and keeps the hue, half of the time."""
    hue: float = Field(1.0, ge=0, le=1)
    """Rotates the colours around the grey axis by any angle."""
    saturation: float = Field(1.0, ge=0, le=1)
    """Multiplies the distance from grey by a log-normal factor."""
    noise: float = Field(0.0, ge=0, le=1)
    """Adds normally distributed noise to every pixel, different in every frame."""
    cutout: float = Field(0.0, ge=0, le=1)
    """Covers a square of half the side, anywhere, with grey."""


def augment(pictures: Tensor, p: float, settings: AdaSettings) -> Tensor:
    """Augments pictures (B, 3, H, W) or clips (B, T, 3, H, W), -1..1. All frames of a clip are changed in the same way.

    Differentiable once: torch's resampling has no second derivative. With ``p`` 0 it returns the input itself. Random numbers come from
    torch's CPU generator. The result may leave -1..1.
    """
    if p <= 0 or not len(pictures):
        return pictures
    clips_BTCHW = pictures if pictures.ndim == 5 else pictures[:, None]
    batch, side = len(clips_BTCHW), clips_BTCHW.shape[-1]
    geometry_B33 = draw_geometry(batch, p, settings, side)
    colours_B44 = draw_colours(batch, p, settings)
    changed = apply_geometry(clips_BTCHW, geometry_B33)
    changed = apply_colours(changed, colours_B44)
    changed = _noisy(changed, p * settings.noise)
    changed = _cut_out(changed, p * settings.cutout)
    return changed.view(pictures.shape)


def draw_geometry(batch: int, p: float, settings: AdaSettings, side: int) -> Tensor:
    """(B, 3, 3): maps points of the new picture to points of the old one. The middle is 0, the edges are -1 and 1, y points down.

    ``side`` is in pixels; a pixel is 2 / side wide.
    """
    matrix = torch.eye(3).repeat(batch, 1, 1)

    def transform(probability: float, transform_B33: Tensor) -> None:
        nonlocal matrix
        matrix = matrix @ torch.where(_chosen(batch, probability)[:, None, None], transform_B33, torch.eye(3))

    ones_B = torch.ones(batch)
    transform(p * settings.flip, _scaling(1 - 2 * torch.randint(0, 2, (batch,)).float(), ones_B))
    transform(p * settings.quarter_turn, _quarter_turn(torch.randint(0, 4, (batch,))))
    shift_B2 = (torch.empty(batch, 2).uniform_(-SHIFT_SHARE, SHIFT_SHARE) * side).round() * (2 / side)
    transform(p * settings.whole_shift, _shift(shift_B2))
    size = torch.exp(torch.randn(batch) * SCALE_LOG_DEVIATION)
    transform(p * settings.scale, _scaling(1 / size, 1 / size))
    # two rotations, each with the probability with which at least one happens with probability p
    turn_probability = 1 - math.sqrt(1 - min(1.0, p * settings.turn))
    transform(turn_probability, _turn(_angle(batch)))
    size = torch.exp(torch.randn(batch) * SCALE_LOG_DEVIATION)
    transform(p * settings.stretch, _scaling(1 / size, size))
    transform(turn_probability, _turn(_angle(batch)))
    transform(p * settings.shift, _shift(torch.randn(batch, 2) * SHIFT_SHARE * 2))
    return matrix


def draw_colours(batch: int, p: float, settings: AdaSettings) -> Tensor:
    """(B, 4, 4): matrices that multiply the column (red, green, blue, 1)."""
    identity = torch.eye(4)
    matrix = identity.repeat(batch, 1, 1)
    grey_axis = torch.tensor([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
    onto_grey = torch.outer(grey_axis, grey_axis)  # projection

    def transform(probability: float, transform_B44: Tensor) -> None:
        nonlocal matrix
        matrix = torch.where(_chosen(batch, probability)[:, None, None], transform_B44, identity) @ matrix

    brightness = identity.repeat(batch, 1, 1)
    brightness[:, :3, 3] = (torch.randn(batch) * BRIGHTNESS_DEVIATION)[:, None]
    transform(p * settings.brightness, brightness)
    factor = torch.exp(torch.randn(batch) * CONTRAST_LOG_DEVIATION)
    transform(p * settings.contrast, torch.diag_embed(torch.stack([factor, factor, factor, torch.ones(batch)], 1)))
    flips = torch.randint(0, 2, (batch,)).float()[:, None, None]
    transform(p * settings.luma_flip, identity - 2 * onto_grey * flips)
    transform(p * settings.hue, _hue(_angle(batch)))
    factor = torch.exp(torch.randn(batch) * SATURATION_LOG_DEVIATION)[:, None, None]
    only_colours = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    transform(p * settings.saturation, identity - only_colours + onto_grey + (only_colours - onto_grey) * factor)
    return matrix


def apply_geometry(clips_BTCHW: Tensor, matrix_B33: Tensor) -> Tensor:
    """Resamples the clips with the matrices of ``draw_geometry``. Clips with the identity are returned unchanged."""
    is_moved_B = (matrix_B33 != torch.eye(3)).flatten(1).any(1)
    if not bool(is_moved_B.any()):
        return clips_BTCHW
    batch, frames, colours, height, width = clips_BTCHW.shape
    theta = matrix_B33[:, :2].to(clips_BTCHW.device, clips_BTCHW.dtype)
    joined = clips_BTCHW.reshape(batch, frames * colours, height, width)
    grid = functional.affine_grid(theta, list(joined.shape), align_corners=False)
    moved = functional.grid_sample(joined, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    is_moved = is_moved_B.to(clips_BTCHW.device)[:, None, None, None, None]
    return torch.where(is_moved, moved.view(clips_BTCHW.shape), clips_BTCHW)


def apply_colours(clips_BTCHW: Tensor, matrix_B44: Tensor) -> Tensor:
    """Multiplies every pixel (r, g, b, 1) with the matrices of ``draw_colours``. Clips with the identity are returned unchanged."""
    is_changed_B = (matrix_B44 != torch.eye(4)).flatten(1).any(1)
    if not bool(is_changed_B.any()):
        return clips_BTCHW
    matrix = matrix_B44.to(clips_BTCHW.device, clips_BTCHW.dtype)
    changed = torch.einsum("bij,btjhw->btihw", matrix[:, :3, :3], clips_BTCHW) + matrix[:, None, :3, 3, None, None]
    return torch.where(is_changed_B.to(clips_BTCHW.device)[:, None, None, None, None], changed, clips_BTCHW)


def _noisy(clips_BTCHW: Tensor, probability: float) -> Tensor:
    if probability <= 0:
        return clips_BTCHW
    batch = len(clips_BTCHW)
    deviation_B = torch.where(
        _chosen(batch, probability), torch.randn(batch).abs() * NOISE_DEVIATION, torch.zeros(batch)
    )
    noise = torch.randn(clips_BTCHW.shape).to(clips_BTCHW.device)
    return clips_BTCHW + noise * deviation_B.to(clips_BTCHW.device)[:, None, None, None, None]


def _cut_out(clips_BTCHW: Tensor, probability: float) -> Tensor:
    if probability <= 0:
        return clips_BTCHW
    batch, side = len(clips_BTCHW), clips_BTCHW.shape[-1]
    chosen_B, middle_B2 = _chosen(batch, probability), torch.rand(batch, 2)
    position_S = (torch.arange(side) + 0.5) / side
    inside_B2S = (position_S - middle_B2[:, :, None]).abs() < CUTOUT_SHARE / 2
    hole_BHW = inside_B2S[:, 0, :, None] & inside_B2S[:, 1, None, :] & chosen_B[:, None, None]
    return clips_BTCHW * (~hole_BHW).to(clips_BTCHW.device, clips_BTCHW.dtype)[:, None, None]


def _chosen(batch: int, probability: float) -> Tensor:
    """(B,) bool: True with the given probability, independently for each sample."""
    return torch.rand(batch) < probability


def _angle(batch: int) -> Tensor:
    return torch.empty(batch).uniform_(-math.pi, math.pi)


def _matrix(batch: int, size: int, **elements: Tensor) -> Tensor:
    """(B, size, size): identity matrices with some elements replaced: ``m02`` holds the (B,) values of row 0, column 2."""
    matrix = torch.eye(size).repeat(batch, 1, 1)
    for name, values in elements.items():
        matrix[:, int(name[1]), int(name[2])] = values
    return matrix


def _scaling(x_B: Tensor, y_B: Tensor) -> Tensor:
    return _matrix(len(x_B), 3, m00=x_B, m11=y_B)


def _shift(distance_B2: Tensor) -> Tensor:
    return _matrix(len(distance_B2), 3, m02=distance_B2[:, 0], m12=distance_B2[:, 1])


def _turn(angle_B: Tensor) -> Tensor:
    cosine, sine = angle_B.cos(), angle_B.sin()
    return _matrix(len(angle_B), 3, m00=cosine, m01=-sine, m10=sine, m11=cosine)


def _quarter_turn(number_B: Tensor) -> Tensor:
    """(B, 3, 3): rotations by multiples of 90 degrees, with exact zeros and ones, which sin and cos do not give."""
    cosine = torch.tensor([1.0, 0.0, -1.0, 0.0])[number_B]
    sine = torch.tensor([0.0, 1.0, 0.0, -1.0])[number_B]
    return _matrix(len(number_B), 3, m00=cosine, m01=-sine, m10=sine, m11=cosine)


def _hue(angle_B: Tensor) -> Tensor:
    """(B, 4, 4): rotation around (1, 1, 1), by Rodrigues' formula."""
    axis = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -axis, axis], [axis, 0.0, -axis], [-axis, axis, 0.0]])
    cosine, sine = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
    matrix = torch.eye(4).repeat(len(angle_B), 1, 1)
    matrix[:, :3, :3] = torch.eye(3) * cosine + cross * sine + torch.full((3, 3), 1 / 3) * (1 - cosine)
    return matrix


def next_p(p: float, mean_sign: float, target: float, num_pictures: int, pictures_to_one: float) -> float:
    """The new probability, 0..1: higher if r_t lies above ``target``, a sign of overfitting, and lower if it lies below.

    ``mean_sign`` is r_t = E[sign(D(real))] over the last ``num_pictures`` pictures. p changes by ``num_pictures / pictures_to_one``
    (section 3.1; there p has no upper limit, here it is 1).
    """
    step = num_pictures / pictures_to_one
    direction = (mean_sign > target) - (mean_sign < target)
    return min(1.0, max(0.0, p + direction * step))
