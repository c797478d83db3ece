"""The packaged picture encoder as one network: gradients pass through what builds embed with."""

import copy

import numpy as np
import pytest
import torch

from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair
from pipeline.encoders.small.towers import PACKAGED, PictureNetwork
from pipeline.encoders.small.trunks import PICTURE_SIDE_PX, prepared_picture, prepared_pictures, trunk
from pipeline.synthetic.pictures import scene_frames


@pytest.fixture(scope="module")
def small() -> EncoderPair:
    return load_pair(EncoderPairSettings())


@pytest.fixture(scope="module")
def network() -> PictureNetwork:
    return PictureNetwork(PACKAGED["picture"])


def frames_of(side_px: int) -> np.ndarray:
    """(4, side_px, side_px, 3) uint8: painted scenes."""
    kinds = ("ocean", "fire", "rain", "river")
    size = {"width": side_px, "height": side_px, "seconds": 2.0}
    return np.stack([next(iter(scene_frames(kind, 5, (1.0,), **size))) for kind in kinds])


def as_tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float()


def test_a_batch_gives_the_embeddings_that_builds_store(small: EncoderPair, network: PictureNetwork) -> None:
    frames = frames_of(PICTURE_SIDE_PX)
    with torch.no_grad():
        rows = network(as_tensor(frames)).numpy()
    assert np.abs(rows - small.picture.embed_pictures(frames)).max() < 1e-5
    assert len(network(as_tensor(frames)[:0])) == 0


def test_nothing_of_it_learns_and_it_may_be_moved_alone(network: PictureNetwork) -> None:
    assert list(network.parameters()) == []
    packaged = trunk("picture")[0]
    copy.deepcopy(network).double()
    PictureNetwork(PACKAGED["picture"]).double()
    assert {buffer.dtype for buffer in packaged.buffers()} == {torch.float32}


def test_gradients_are_the_slopes_of_the_embedding(network: PictureNetwork) -> None:
    """Against differences along the gradient itself. In float32, so that a few activations pass their kinks within a step."""
    draws = torch.Generator().manual_seed(0)
    pictures = as_tensor(frames_of(PICTURE_SIDE_PX)).requires_grad_()
    weights_D = torch.randn(network.tower.width, generator=draws)
    (network(pictures) @ weights_D).sum().backward()
    assert pictures.grad is not None
    for picture, gradient in zip(pictures.detach(), pictures.grad, strict=True):
        direction = gradient / gradient.norm()
        with torch.no_grad():
            ahead, behind = ((network((picture + step * direction)[None]) @ weights_D).double() for step in (0.5, -0.5))
        assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind), rel=0.05)


def test_a_picture_that_the_tower_is_sure_of_has_a_finite_gradient(network: PictureNetwork) -> None:
    shares = torch.zeros(1, len(network.tower.config.classes))
    shares[0, 3] = 1.0
    shares.requires_grad_()
    rows = network.tower.rows(shares)
    assert torch.allclose(rows[0], torch.from_numpy(network.tower.directions_KD[3]), atol=1e-5)
    rows.sum().backward()
    assert shares.grad is not None and bool(shares.grad.isfinite().all())


@pytest.mark.parametrize(("side_px", "tolerance"), [(32, 1.0), (128, 0.0), (256, 0.5), (300, 64.0)])
def test_tensors_are_brought_to_size_as_frames_are(network: PictureNetwork, side_px: int, tolerance: float) -> None:
    """Within a rounding to 8 bits where one size divides the other. Else pixels at edges are shared out in another way. The rounding alone
    takes 0.0016 off the cosine of the dark picture of a fire."""
    frames = frames_of(side_px)
    wanted = torch.cat([prepared_picture(frame) for frame in frames])
    resized = prepared_pictures(as_tensor(frames))
    assert float((resized - wanted).abs().max()) <= tolerance
    with torch.no_grad():
        cosines_N = (network(resized) * network(wanted)).sum(1)
    assert float(cosines_N.min()) > 0.998
