"""Normalisation inside networks of timm."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]
"""batch: BatchNorm, as timm makes the network. group: GroupNorm in its place, which treats every sample alone."""
NUM_GROUPS = 32
"""Largest number of groups of channels (Wu and He, arXiv:1803.08494)."""


def with_group_norm(network: nn.Module) -> nn.Module:
    """Replaces every BatchNorm of a network by a GroupNorm with the same names of weights, in place. Returns the network."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, _group_norm(child))
        else:
            with_group_norm(child)
    return network


def _group_norm(batch_norm: nn.BatchNorm2d) -> nn.Module:
    from timm.layers.norm_act import BatchNormAct2d, GroupNormAct  # noqa: PLC0415 (slow to import)

    num_channels = batch_norm.num_features
    num_groups = math.gcd(num_channels, NUM_GROUPS)
    if not isinstance(batch_norm, BatchNormAct2d):
        return nn.GroupNorm(num_groups, num_channels)
    with_activation = GroupNormAct(num_channels, num_groups, apply_act=False)
    with_activation.drop, with_activation.act = batch_norm.drop, batch_norm.act
    return with_activation
