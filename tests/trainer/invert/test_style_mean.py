"""Fits whose L_enc takes the mean of the encoder's own codes: one step by hand, resuming, and what the stage video takes over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.guided import differing, fit, prepared
from tests.trainer.invert.stages import stage_of
from tests.trainer.video import stages as video_stages
from tests.trainer.video.stages import first_batch
from trainer.engine.checkpoint import load_state
from trainer.model.sound_video_file import load_model
from trainer.video.stage import start_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

ENCODER = ("invert.style_mean=encoder", "invert.style_mean_half_life=8")
ALIKE = ("invert.backbone=test_convnext", "invert.truncation=1e-9", "invert.guide.smallest_cutout=1.0")
"""No batch norm, the same style for every latent, the whole picture as every cutout: nothing random is left."""


def test_a_step_takes_the_mean_from_before_and_moves_it_by_its_codes(guided: Path, tmp_path: Path) -> None:
    steps = []
    for size in ("none", "3"):
        stage, reader = stage_of(guided, tmp_path / size, *ALIKE, *ENCODER, f"invert.micro_batch_size={size}")
        batch = first_batch(reader)
        model = stage.model
        with torch.no_grad():
            model.style_mean.add_(0.25)  # as if it had moved already
            before = model.style_mean.clone()
            stage._segment = 0  # what the first step hears
            codes = stage._inverted(stage._guided(batch))
        measures = stage.step(batch)
        assert stage._segment == 0
        assert measures["style_loss"] == pytest.approx(float((codes - before).square().mean()), rel=1e-4)
        assert torch.allclose(model.style_mean, (before + codes.mean(0)) / 2, atol=1e-5)  # eight clips are a half-life
        gradients = [one.grad.flatten() for one in model.inversion.parameters() if one.grad is not None]
        steps.append((torch.cat(gradients), model.style_mean.clone(), measures))
    assert float((steps[0][0] - steps[1][0]).abs().max()) < 1e-4 * float(steps[0][0].abs().max())
    assert torch.allclose(steps[0][1], steps[1][1], atol=1e-6)
    assert steps[1][2] == pytest.approx(steps[0][2], rel=1e-4)


def test_a_fit_in_two_runs_has_the_same_mean_and_video_goes_on_from_it(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = (*ENCODER, "invert.num_samples=16", "invert.validation_samples=1")
    assert fit(guided, whole, "invert", *changes) == 0
    assert fit(guided, parts, "invert", *changes, "run.pause_after_samples=8") == 0
    assert fit(guided, parts, "invert", *changes) == 0
    first, second = (load_state(out / "invert" / "resume.safetensors", "invert")[0] for out in (whole, parts))
    assert differing(first, second) == []
    last, _ = load_model(whole / "invert" / "last.safetensors")
    assert torch.equal(last.style_mean, first["inversion.mean_code"])
    best, _ = load_model(whole / "invert" / "best.safetensors")
    recipe, run = prepared(guided, whole, *changes)
    model, _ = start_model(recipe, run)
    assert torch.equal(model.style_mean, best.style_mean)
    assert not torch.allclose(best.style_mean, best.w_avg.expand_as(best.style_mean), atol=1e-3)
    assert fit(guided, whole, "video", "invert.style_mean=generator") == 2
    assert "style_mean was encoder, is generator" in capsys.readouterr().err


def test_in_the_stage_video_the_inversions_of_first_segments_move_it(guided: Path, tmp_path: Path) -> None:
    means = []
    plain = ("video.image_weight=0", "video.video_weight=0", "video.inversion_learning_rate=null")
    for size in ("none", "3"):
        stage, reader = video_stages.stage_of(guided, tmp_path / size, *ALIKE, *ENCODER, *plain,
                                              f"video.micro_batch_size={size}")  # fmt: skip
        batch = first_batch(reader)
        model = stage.model
        before = model.style_mean.clone()
        stage.draw_alike()
        with torch.no_grad():
            segments = stage._clips(batch).segments_BTMS
            codes = model.invert(segments[:, 0], model.start(torch.zeros(8, model.generator.z_dim)))
        stage.step(batch)
        assert torch.allclose(model.style_mean, (before + codes.mean(0)) / 2, atol=1e-5)
        assert torch.equal(stage.average.style_mean, model.style_mean)
        means.append(model.style_mean.clone())
    assert torch.allclose(means[0], means[1], atol=1e-6)
