"""A prior that learns by reconstruction: the encoder of frames, the features, the codes, and the stage."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import EncoderError, RecipeError
from pipeline.runtime.recipe_file import read_recipe
from tests.trainer.guided import copied, differing
from tests.trainer.prior.test_prior import lines, stage_of, words
from trainer.engine.checkpoint import load_state
from trainer.fit import main
from trainer.model.features import FeatureSettings, PictureFeatures, feature_distance
from trainer.model.frame_encoder import FrameEncoder
from trainer.model.load import load_generator, read_generator_file
from trainer.prior.networks import generator_config
from trainer.prior.reconstruction import Reconstruction
from trainer.prior.stage import Prior
from trainer.recipe import FitRecipe

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

RECONSTRUCTION = "prior.reconstruction={learning_rate = 3e-3, encoder = {width = 16, features = {picture_px = 32}}}"
PLAIN = (RECONSTRUCTION, "prior.path_weight=0", "prior.fidelity.num_pictures=0")


def reconstruction_of(stage: Prior) -> Reconstruction:
    assert stage.reconstruction is not None
    return stage.reconstruction


def weights_of(stage: Prior) -> dict[str, torch.Tensor]:
    networks = stage.networks().items()
    return {f"{name}.{path}": tensor for name, network in networks for path, tensor in network.state_dict().items()}


def test_a_code_is_of_its_own_picture_and_has_a_style_for_each_layer() -> None:
    torch.manual_seed(0)
    features = PictureFeatures(FeatureSettings(picture_px=32))
    encoder = FrameEncoder(features.num_channels(), 16, 4, 6)
    pictures = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        codes = encoder(pictures, features(pictures))
        alone = encoder(pictures[1:2], features(pictures[1:2]))
    assert codes.shape == (3, 4, 6)
    torch.testing.assert_close(codes[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(codes[0], codes[1], atol=1e-3)


def test_features_have_a_gradient_to_the_pixels_and_none_to_weights() -> None:
    features = PictureFeatures(FeatureSettings(picture_px=32))
    torch.manual_seed(0)
    picture = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    other = torch.rand(1, 3, 16, 16) * 2 - 1
    distance = feature_distance(features(picture), features(other))
    distance.sum().backward()  # type: ignore[no-untyped-call]
    assert picture.grad is not None and bool(picture.grad.any())
    assert not any(one.requires_grad for one in features.parameters())
    same = feature_distance(features(other), features(other))
    assert float(same) == pytest.approx(0, abs=1e-6) and float(distance.detach()) > 0.1


def test_features_of_a_timm_network_are_those_of_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", pretrained=False).eval()
    path = tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    features = PictureFeatures(FeatureSettings(network="test_resnet", weights=str(path), picture_px=32))
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        last = features(pictures)[-1]
        mean, std = (torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        wanted = whole.forward_features((pictures / 2 + 0.5 - mean) / std)
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)


def test_a_network_without_weights_or_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network and weights are given together"):
        FeatureSettings(network="test_resnet")
    with pytest.raises(EncoderError, match="timm has no network named 'resnet1'"):
        PictureFeatures(FeatureSettings(network="resnet1", weights=str(tmp_path / "weights.safetensors")))


def test_every_trained_module_moves_and_frames_come_back(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, *PLAIN, "prior.num_samples=1000")
    reconstruction = reconstruction_of(stage)
    before = copied(weights_of(stage))
    batch = next(batches)
    measures = [stage.step(batch) for _ in range(24)]
    still = set(before) - set(differing(weights_of(stage), before))
    assert [name for name in still if not name.endswith(("noise_const", "resample_filter"))] == []
    assert measures[-1]["pixel_loss"] < 0.8 * measures[0]["pixel_loss"]
    assert measures[-1]["code_loss"] < measures[1]["code_loss"]
    assert reconstruction.drawn_of == []
    names = [phase.name for phase in stage.phases]
    assert names == ["reconstruction", "codes", "discriminator", "r1"]


def test_without_an_adversarial_loss_no_discriminator_learns(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, *PLAIN, "prior.reconstruction.adversarial_weight=0")
    before = copied(stage.discriminator.state_dict())
    measures = stage.step(next(batches))
    assert "discriminator_loss" not in measures
    assert differing(stage.discriminator.state_dict(), before) == []


def test_a_fit_in_two_runs_is_the_same_as_in_one(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(folder, whole, *PLAIN)) == 0
    assert main(words(folder, parts, *PLAIN, "run.pause_after_samples=8")) == 0
    assert main(words(folder, parts, *PLAIN)) == 0
    (first, _), (second, _) = (load_state(out / "prior" / "resume.safetensors", "prior") for out in (whole, parts))
    assert differing(first, second) == []
    assert any(name.startswith("encoder.") for name in first)
    shown = cv2.imread(str(whole / "prior" / "samples" / "0000000016-reconstructed.png"))
    assert shown.shape == (32, 16 * 4, 3)  # four frames of the validation split, each above its reconstruction
    assert [line["samples_seen"] for line in lines(whole, "validation")] == []  # no fidelity, so only pictures
    generator = load_generator(whole / "prior" / "last.safetensors")
    assert generator.w_avg.shape == (generator.num_ws, generator.w_dim)


def test_the_encoder_is_in_the_generators_file_and_the_next_prior_starts_with_it(
    folder: Path,
    tmp_path: Path,
) -> None:
    assert main(words(folder, tmp_path / "run", *PLAIN)) == 0
    path = tmp_path / "run" / "prior" / "last.safetensors"
    codes = read_generator_file(path).frame_codes(torch.device("cpu"))
    resumed = load_state(path.with_name("resume.safetensors"), "prior")[0]
    for name, tensor in codes.encoder.state_dict().items():
        assert torch.equal(tensor, resumed[f"average_encoder.{name}"])
    next_words = [*PLAIN, f"prior.init={path}", "prior.generator=null"]
    stage, _ = stage_of(folder, tmp_path / "next", *next_words)
    assert differing(reconstruction_of(stage).codes.encoder.state_dict(), codes.encoder.state_dict()) == []
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(reconstruction_of(stage).codes(pictures), codes(pictures))


def test_settings_that_exclude_each_other_are_refused(folder: Path, tmp_path: Path) -> None:
    recipe = folder / "fit.toml"
    with pytest.raises(RecipeError, match="path_weight has no meaning with reconstruction"):
        read_recipe(FitRecipe, recipe, [RECONSTRUCTION])
    assert main(words(folder, tmp_path / "run", "prior.fidelity.num_pictures=0")) == 0
    init = f"prior.init={tmp_path / 'run' / 'prior' / 'last.safetensors'}"
    settings = read_recipe(FitRecipe, recipe, [*PLAIN, init, "prior.generator=null"]).prior
    with pytest.raises(RecipeError, match=r"prior\.reconstruction: .* maps to one style for all layers"):
        generator_config(settings)
