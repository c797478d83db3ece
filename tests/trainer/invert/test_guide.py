"""The guide: squares of pictures, the loss in the shared space, a picture encoder with gradients, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import EncoderError, RecipeError
from tests import paired
from tests.trainer.guided import PACKAGED, prepared, save_random_align
from trainer.align.frozen_encoders import OpenClipPartner
from trainer.invert.checks import check_guide
from trainer.invert.guide import Guide, clip_loss, cutouts
from trainer.invert.shared import clip_reader

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


def guide_of(folder: Path, out: Path, *changes: str) -> Guide:
    recipe, run = prepared(folder, out, *changes)
    return Guide(recipe.invert.guide, recipe, run, "invert.guide")


def test_cutouts_are_squares_of_all_pictures_alike() -> None:
    columns = torch.arange(20.0).expand(2, 3, 20, 20)  # each pixel tells its column
    torch.manual_seed(0)
    places_K3 = torch.rand(200, 3)
    squares = cutouts(columns, places_K3, 0.5)
    assert len(squares) == 200
    sides = [cut.shape[-1] for cut in squares]
    assert {cut.shape for cut in squares} == {(2, 3, side, side) for side in sides}
    assert (min(sides), max(sides)) == (10, 20)
    lefts, rights = ([int(cut[0, 0, 0, place]) for cut in squares] for place in (0, -1))
    assert [right - left + 1 for left, right in zip(lefts, rights, strict=True)] == sides
    assert (min(lefts), max(rights)) == (0, 19)
    assert len(set(lefts)) > 5
    assert all(torch.equal(*both) for both in zip(squares, cutouts(columns, places_K3, 0.5), strict=True))
    assert [cut.shape[-1] for cut in cutouts(columns, places_K3[:5], 1.0)] == [20] * 5


def test_a_gradient_comes_back_through_cutouts() -> None:
    torch.manual_seed(0)
    pictures = torch.zeros(1, 3, 8, 8, requires_grad=True)
    chosen = cutouts(pictures, torch.rand(3, 3), 0.5)
    sum(cut.sum() for cut in chosen).backward()  # type: ignore[union-attr]
    assert pictures.grad is not None
    assert float(pictures.grad.sum()) == sum(cut.numel() for cut in chosen)


def test_the_loss_is_one_minus_the_mean_cosine() -> None:
    seen_KND = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]])
    wanted_ND = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    # the mean of cosines 1 and 0; of 0.8 and 0.8; and nothing is asked of the third
    assert clip_loss(seen_KND, wanted_ND).tolist() == pytest.approx([0.5, 0.2, 0.0])


def test_nothing_is_learned_from_what_asks_nothing() -> None:
    seen_KND = torch.tensor([[[0.6, 0.8], [0.6, 0.8]]], requires_grad=True)
    clip_loss(seen_KND, torch.tensor([[0.0, 0.0], [1.0, 0.0]])).sum().backward()
    assert seen_KND.grad is not None
    assert seen_KND.grad.tolist() == [[[0.0, 0.0], [-1.0, 0.0]]]


def as_pictures(frames_NCHW: Tensor) -> Tensor:
    return frames_NCHW.float() / 127.5 - 1


@pytest.mark.parametrize("side", [32, 48, 16])
def test_an_open_clip_model_looks_at_pictures_as_it_embeds_frames(guided: Path, tmp_path: Path, side: int) -> None:
    partner = guide_of(guided, tmp_path).partner
    assert isinstance(partner, OpenClipPartner)
    frames = np.stack([paired.class_frame(label, 0)[:48, :48] for label in paired.CLASSES])
    frames_NCHW = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if side != 48:
        resized = torch.nn.functional.interpolate(frames_NCHW.float(), (side, side), mode="bilinear", antialias=True)
        frames_NCHW = resized.round().to(torch.uint8)
    pictures = as_pictures(frames_NCHW).requires_grad_()
    rows_ND = partner.look(pictures)
    with torch.no_grad():
        embedded_ND = partner.embed_frames(frames_NCHW[:, None])
    assert rows_ND.shape == (4, paired.WIDTH)
    assert torch.allclose((rows_ND.detach() * embedded_ND).sum(1), torch.ones(4), atol=5e-4)
    assert (
        float((embedded_ND @ embedded_ND.T).fill_diagonal_(0).max()) < 0.99
    )  # pictures differ more than the two ways do
    (gradient,) = torch.autograd.grad(rows_ND[:, 0].sum(), pictures)
    assert bool(gradient.flatten(1).any(1).all())


def test_following_the_gradient_brings_a_picture_to_its_text(guided: Path, tmp_path: Path) -> None:
    guide = guide_of(guided, tmp_path)
    wanted = torch.from_numpy(guide.partner.embed_texts(["the sound of fire"]))
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([picture], lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = clip_loss(guide.pictures(picture, guide.places()), wanted).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert [one.grad for one in guide.partner.encoder.model.parameters() if one.grad is not None] == []  # type: ignore[attr-defined]


def test_sounds_and_texts_of_a_batch(guided: Path, tmp_path: Path) -> None:
    recipe, run = prepared(guided, tmp_path)
    guide = Guide(recipe.invert.guide, recipe, run, "invert.guide")
    reader = clip_reader(recipe, run, "validation", 8, 16)
    (batch,) = reader
    reader.close()
    sounds, texts = guide.sounds(batch), guide.texts(batch)
    assert sounds.shape == texts.shape == (8, paired.WIDTH)
    assert torch.allclose(texts.norm(dim=1), torch.ones(8), atol=1e-5)
    whole = guide.sound.embed_sounds(list(batch.sounds_BN.numpy()), 44_100)  # these sounds fill their windows
    assert np.allclose(sounds.numpy(), whole, atol=1e-5)
    named = [row for row, caption in enumerate(batch.captions) if caption is not None]
    captions = guide.partner.embed_texts([batch.captions[row] or "" for row in named])
    assert len(named) == 4
    assert np.allclose(texts[named].numpy(), captions, atol=1e-5)
    assert guide.encoder_ids == (guide.partner.encoder_id, guide.sound.encoder_id)


def test_silence_after_a_sound_is_not_heard(guided: Path, tmp_path: Path) -> None:
    import dataclasses

    recipe, run = prepared(guided, tmp_path)
    guide = Guide(recipe.invert.guide, recipe, run, "invert.guide")
    reader = clip_reader(recipe, run, "validation", 8, 16)
    (batch,) = reader
    reader.close()
    half = batch.sounds_BN.shape[1] // 2
    silenced = batch.sounds_BN.clone()
    silenced[:, half:] = 0
    shorter = dataclasses.replace(batch, sounds_BN=silenced, seconds_B=torch.full((8,), half / 44_100))
    wanted = guide.sound.embed_sounds([row[:half].numpy() for row in batch.sounds_BN], 44_100)
    assert np.allclose(guide.sounds(shorter).numpy(), wanted, atol=1e-5)


def test_a_guide_without_the_align_stage_is_refused(guided: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"align/best.safetensors is not there: run the stage align first, or name"):
        guide_of(guided, tmp_path / "run", "invert.guide.sound_weights=null")
    (tmp_path / "run" / "align").mkdir(parents=True)
    path = tmp_path / "run" / "align" / "best.safetensors"
    path.write_bytes((guided / "align.safetensors").read_bytes())
    guide = guide_of(guided, tmp_path / "run", "invert.guide.sound_weights=null")
    assert guide.sound.width == paired.WIDTH


def test_encoders_of_different_spaces_are_refused(guided: Path, tmp_path: Path) -> None:
    named = f"invert.guide.sound_weights={tmp_path / 'other.safetensors'}"
    save_random_align(tmp_path / "other.safetensors", None, width=16)
    with pytest.raises(
        EncoderError, match=r"invert.guide.sound_weights: its space has 16 numbers, that of align.partner 32"
    ):
        guide_of(guided, tmp_path, named)
    save_random_align(tmp_path / "other.safetensors", "another-encoder")
    with pytest.raises(
        EncoderError, match=r"other.safetensors was trained against another-encoder, and align.partner is"
    ):
        guide_of(guided, tmp_path, named)
    save_random_align(tmp_path / "other.safetensors", None)
    assert guide_of(guided, tmp_path, named).sound.width == paired.WIDTH


def test_what_shows_without_loading_is_refused_before(guided: Path, tmp_path: Path) -> None:
    recipe, _ = prepared(guided, tmp_path, "invert.guide.sound_weights=nowhere.pt")
    with pytest.raises(EncoderError, match=r"invert.guide.sound_weights: nowhere.pt is no file"):
        check_guide(recipe.invert.guide, recipe, "invert.guide")
    recipe, _ = prepared(guided, tmp_path, "invert.guide={sound_kind = 'small'}")
    with pytest.raises(RecipeError, match="small belongs to the packaged picture encoder"):
        check_guide(recipe.invert.guide, recipe, "invert.guide")
    for change, message in (
        ("invert.guide={sound_kind = 'wav2clip'}", "sound_kind wav2clip needs sound_weights"),
        ("invert.guide={sound_weights = 'http://h/a.pt'}", "sound_weights is a URL: give sound_sha256"),
    ):
        with pytest.raises(RecipeError, match=message):
            prepared(guided, tmp_path, change)


def test_a_class_without_a_word_is_refused_before_any_step(guided: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"hearscape-small knows no class in the text '.*wood pigeon'"):
        guide_of(guided, tmp_path, PACKAGED[0], PACKAGED[1], "invert.guide={sound_kind = 'small'}")


def test_the_packaged_encoder_guides_with_gradients(guided: Path, tmp_path: Path) -> None:
    guide = guide_of(guided, tmp_path, *PACKAGED, "invert.guide={sound_kind = 'small', num_cutouts = 2}")
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = guide.pictures(pictures, guide.places())
    assert rows.shape == (2, 3, guide.partner.width)
    assert torch.allclose(rows.norm(dim=2), torch.ones(2, 3), atol=1e-5)
    rows[..., 0].sum().backward()  # type: ignore[no-untyped-call]
    assert pictures.grad is not None and bool(pictures.grad.flatten(1).any(1).all())


def test_clip_sees_what_people_see(guided: Path, tmp_path: Path) -> None:
    """Values beyond black and white look like black and white, and nothing is gained by going further."""
    guide = guide_of(guided, tmp_path, "invert.guide.smallest_cutout=1.0", "invert.guide.num_cutouts=1")
    torch.manual_seed(0)
    pictures = (torch.randn(2, 3, 16, 16) * 2).requires_grad_()
    with torch.no_grad():
        wanted = guide.partner.look(pictures.clamp(-1, 1))
    rows = guide.pictures(pictures, guide.places())[0]
    assert torch.allclose(rows, wanted, atol=1e-6)
    (gradient,) = torch.autograd.grad(rows[:, 0].sum(), pictures)
    beyond = pictures.detach().abs() > 1
    assert bool(beyond.any()) and not bool(gradient[beyond].any())
    assert bool(gradient[~beyond].any())
