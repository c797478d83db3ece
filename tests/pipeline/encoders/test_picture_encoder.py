"""The picture encoder beside open_clip itself, with random weights in files."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.encoders.device import ComputeOptions
from pipeline.encoders.onednn import PackedSelfAttention
from pipeline.encoders.picture import PictureEncoder, find_weights, picture_id
from pipeline.errors import EncoderError
from tests.pipeline.encoders.networks import ON_CPU, TINY, frames, sha256, unit

# pictures and texts


def test_pictures_are_prepared_and_embedded_as_open_clip_does(tiny, picture):
    model, _, preprocess = open_clip.create_model_and_transforms(TINY, pretrained=str(tiny))
    model.eval()
    for height, width in [(48, 80), (80, 48), (32, 32), (20, 31), (360, 640)]:
        pictures = frames(3, height, width)
        batch = torch.stack([preprocess(Image.fromarray(one)) for one in pictures])
        with torch.inference_mode():
            wanted = torch.nn.functional.normalize(model.encode_image(batch), dim=-1).numpy()
        got = picture.embed_pictures(pictures)
        assert got.dtype == np.float32
        assert np.abs(got - wanted).max() < 1e-6
    assert picture.width == 512


def test_texts_are_embedded_as_open_clip_does(tiny, picture):
    model, *_ = open_clip.create_model_and_transforms(TINY, pretrained=str(tiny))
    texts = ["rain on a lake", "fire", "waves at night"]
    with torch.inference_mode():
        wanted = model.eval().encode_text(open_clip.get_tokenizer(TINY)(texts), normalize=True).numpy()
    assert np.abs(picture.embed_texts(texts) - wanted).max() < 1e-6
    assert picture.embed_texts([]).shape == (0, 512)


def test_more_frames_than_a_batch(tiny, picture):
    small = PictureEncoder(
        TINY, str(tiny), tiny, sha256(tiny), running=ComputeOptions(torch.device("cpu"), batch_size=2)
    )
    assert np.abs(small.embed_pictures(frames(5)) - picture.embed_pictures(frames(5))).max() < 1e-6
    assert small.encoder_id == picture.encoder_id


def test_the_picture_model_is_frozen(picture):
    assert not picture.model.training
    assert not any(weight.requires_grad for weight in picture.model.parameters())


@pytest.mark.parametrize(
    "bad", [frames(2)[..., :1], frames(2)[0], frames(2).astype(np.float32), frames(2)[:0], frames(2)[:, :0]]
)
def test_what_is_no_batch_of_frames_is_the_callers_mistake(picture, bad):
    with pytest.raises(ValueError, match="frames must be uint8"):
        picture.embed_pictures(bad)


def test_picture_weights_of_another_model_are_refused_with_the_first_mismatches(soundclip, tmp_path, tiny):
    with pytest.raises(EncoderError, match=rf"does not hold weights of {TINY}: .*Missing key") as caught:
        PictureEncoder(TINY, str(soundclip[0]), soundclip[0], "", running=ON_CPU)
    assert len(str(caught.value)) < 2000
    state = open_clip.create_model(TINY, pretrained=str(tiny)).state_dict()
    state["visual.conv1.weight"] = torch.zeros(64, 3, 8, 8)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(EncoderError, match=r"size mismatch for visual.conv1.weight.*\[64, 3, 8, 8\]"):
        PictureEncoder(TINY, "other.pt", tmp_path / "other.pt", "", running=ON_CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"visual.positional_embedding": torch.zeros(10, 64)},
            r"has shape \(10, 64\), wanted \(5, 64\): .*another size",
        ),
        ({"positional_embedding": torch.zeros(20, 64)}, r"has shape \(20, 64\), wanted \(16, 64\): .*another size"),
        ({"visual.proj": torch.ones(64, 512, dtype=torch.int8)}, r"visual\.proj holds whole numbers \(torch\.int8\)"),
    ],
)
def test_weights_that_open_clip_would_bend_are_refused(tiny, tmp_path, change, message):
    torch.save(open_clip.create_model(TINY, pretrained=str(tiny)).state_dict() | change, tmp_path / "bent.pt")
    with pytest.raises(EncoderError, match=rf"bent\.pt does not hold weights of {TINY}: .*{message}"):
        PictureEncoder(TINY, "bent.pt", tmp_path / "bent.pt", "", running=ON_CPU)


def test_no_weights_at_all_are_refused(tmp_path):
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(EncoderError, match=r"empty\.pt holds no state dict"):
        PictureEncoder(TINY, "empty.pt", tmp_path / "empty.pt", "", running=ON_CPU)


def test_packed_layers_give_the_same_numbers(tiny, picture):
    packed = PictureEncoder(TINY, str(tiny), tiny, sha256(tiny), running=ON_CPU, gradients=False)
    blocks = packed.model.visual.transformer.resblocks
    assert [type(part).__name__ for part in blocks.modules() if type(part).__name__.startswith("Packed")] == [
        "PackedSelfAttention", "PackedLinear", "PackedLinear", "PackedLinear", "PackedLinear",
    ]  # fmt: skip
    assert np.abs(packed.embed_pictures(frames(3)) - picture.embed_pictures(frames(3))).max() < 1e-6
    # texts go through plain layers in both; equal weights elsewhere in memory
    assert np.abs(packed.embed_texts(["rain"]) - picture.embed_texts(["rain"])).max() < 1e-6
    assert packed.encoder_id == picture.encoder_id


def test_packed_attention_equals_torchs_with_a_mask_and_refuses_what_it_cannot_do():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    packed = PackedSelfAttention(attention)
    inputs, mask = torch.randn(2, 5, 32), torch.triu(torch.full((5, 5), float("-inf")), 1)
    with torch.inference_mode():
        for given in (None, mask):
            wanted, _ = attention(inputs, inputs, inputs, need_weights=False, attn_mask=given)
            assert torch.allclose(packed(inputs, inputs, inputs, attn_mask=given)[0], wanted, atol=1e-6)
        for wrong in ((inputs, inputs.clone(), inputs), (inputs, inputs, inputs.clone())):
            with pytest.raises(ValueError, match="packed attention needs one tensor"):
                packed(*wrong)


def test_gradients_pass_through_a_picture_encoder_unless_they_are_given_up(picture):
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    picture.model.encode_image(pictures).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().max() > 1e-6


def test_low_precision_weights_give_what_autocast_gives(tiny, picture):
    low = PictureEncoder(
        TINY, str(tiny), tiny, sha256(tiny), running=ComputeOptions(torch.device("cpu"), precision="bf16")
    )
    assert low.model.visual.conv1.weight.dtype == torch.bfloat16
    batch = torch.stack([picture.preprocess(Image.fromarray(one)) for one in frames(3)])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = unit(picture.model.encode_image(batch).float().numpy())
    assert np.abs(low.embed_pictures(frames(3)) - wanted).max() < 1e-3


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_damaged_and_hostile_picture_weights_are_refused(tiny, tmp_path):
    torch.save({"state_dict": Hostile(tmp_path / "was run")}, tmp_path / "hostile.pt")
    with pytest.raises(EncoderError, match="nothing of it was run"):
        PictureEncoder(TINY, "", tmp_path / "hostile.pt", "", running=ON_CPU)
    assert not (tmp_path / "was run").exists()
    (tmp_path / "half.safetensors").write_bytes(tiny.read_bytes()[:100_000])
    with pytest.raises(EncoderError, match=r"half\.safetensors is damaged"):
        PictureEncoder(TINY, "", tmp_path / "half.safetensors", "", running=ON_CPU)
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(EncoderError, match=r"half\.pt is damaged or no checkpoint"):
        PictureEncoder(TINY, "", tmp_path / "half.pt", "", running=ON_CPU)


def test_a_tag_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError) as caught:
        find_weights("ViT-B-32", "laion2b_s34b_b79k", field="agreement.encoders.picture_weights")
    assert "agreement.encoders.picture_weights: the weights of tag 'laion2b_s34b_b79k'" in str(caught.value)
    assert "set agreement.encoders.picture_weights to the path of the file" in str(caught.value)


def test_a_tag_is_loaded_the_way_it_was_trained(monkeypatch, tiny, tmp_path):
    """Registered as a published tag would be: its own mean, and QuickGELU, which the model's name does not say."""
    known = {"published": {"file": str(tiny), "mean": (0.5,) * 3, "std": (0.25,) * 3, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, known)
    path = find_weights(TINY, "published")
    assert path == tiny
    by_tag = PictureEncoder(TINY, "published", path, sha256(path), running=ON_CPU)
    model, _, preprocess = open_clip.create_model_and_transforms(
        TINY, pretrained=str(tiny), force_quick_gelu=True, image_mean=(0.5,) * 3, image_std=(0.25,) * 3
    )
    with torch.inference_mode():
        rows = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(one)) for one in frames(2)]))
    assert np.abs(by_tag.embed_pictures(frames(2)) - unit(rows.numpy())).max() < 1e-6
    by_path = PictureEncoder(TINY, str(tiny), tiny, sha256(tiny), running=ON_CPU)
    assert by_path.preprocess.transforms[-1].mean == (0.5,) * 3  # all tags of the model agree on it
    assert by_path.encoder_id != by_tag.encoder_id  # but a path cannot say that it wants QuickGELU
    known["published"]["quick_gelu"] = False
    assert by_path.encoder_id == PictureEncoder(TINY, "published", path, sha256(path), running=ON_CPU).encoder_id


def test_the_picture_id_is_the_same_by_tag_and_by_path():
    by_tag = picture_id("ViT-B-32", "openai", "0" * 64)
    assert by_tag == picture_id("ViT-B-32-quickgelu", "openai", "0" * 64)
    assert by_tag == picture_id("ViT-B-32-quickgelu", "a/copy.safetensors", "0" * 64)
    others = [("ViT-B-32", "a/copy.safetensors", "0"), ("ViT-B-16", "openai", "0"), ("ViT-B-32", "openai", "1")]
    assert len({by_tag, *(picture_id(name, weights, digit * 64) for name, weights, digit in others)}) == 4
