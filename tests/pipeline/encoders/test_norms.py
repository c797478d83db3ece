"""GroupNorm in place of BatchNorm."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from pipeline.encoders.norms import with_group_norm
from pipeline.encoders.sound import AlignConfig, SoundNetwork


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext"])
def test_every_sample_is_alone_then(name: str) -> None:
    torch.manual_seed(0)
    network = with_group_norm(timm.create_model(name, pretrained=False, num_classes=5)).train()
    network = network.double()
    assert not any(isinstance(one, nn.BatchNorm2d) for one in network.modules())
    pictures = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(1)  # of dropout
        network.eval()
        together = network(pictures)
        alone = torch.cat([network(one[None]) for one in pictures])
    torch.testing.assert_close(together, alone)


def test_training_sees_what_use_sees() -> None:
    """No running statistics: the network gives the same in both modes."""
    torch.manual_seed(0)
    network = SoundNetwork(8, "test_resnet", "group")
    mels = torch.rand(3, 1, 128, 87)
    with torch.no_grad():
        assert torch.equal(network.train()(mels), network.eval()(mels))
    assert not [name for name, _ in network.named_buffers() if "running" in name]


def test_names_of_weights_stay() -> None:
    batch, group = (SoundNetwork(8, "test_resnet", norm) for norm in ("batch", "group"))  # type: ignore[arg-type]
    assert {name for name, _ in batch.named_parameters()} == {name for name, _ in group.named_parameters()}


def test_a_checkpoint_from_before_has_batch_norm() -> None:
    assert AlignConfig.model_validate_json("{}").norm == "batch"
