"""The terms of L_enc, both readings of its text term, and the mean of the encoder's codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.sounding import CONFIG, GENERATOR
from trainer.invert.inversion_loss import CodeMean, inversion_terms
from trainer.invert.settings import InvertSettings
from trainer.model.generator import build_generator
from trainer.model.sound_video import SoundVideoModel

ROOT = Path(__file__).parents[3]
PICTURES_KND = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
SOUNDS_ND = torch.tensor([[0.0, 3.0], [3.0, 4.0]])
TEXTS_ND = torch.tensor([[0.8, 0.6], [0.0, 0.0]])


def terms(**changes: object) -> dict[str, float]:
    settings = InvertSettings.model_validate({"sound_weight": 2.0, "text_weight": 3.0, "style_weight": 0.5, **changes})
    losses = inversion_terms(settings, PICTURES_KND, SOUNDS_ND, TEXTS_ND, torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    return {name: float(value) for name, value in losses.items()}


def test_the_terms_by_hand() -> None:
    # cosines of pictures and sounds: 0 and 0.6 · 0.6 + 0.8 · 0.8 = 1; of the first picture and its text: 0.8; the second has no text
    assert terms() == pytest.approx({"sound_loss": 0.5, "text_loss": 0.1, "style_loss": 2.5, "loss": 1.0 + 0.3 + 1.25})


def test_the_text_can_be_compared_with_the_sound() -> None:
    # the first sound is (0, 1) in length 1: its cosine with the text is 0.6
    losses = terms(text_against="sound")
    assert losses["text_loss"] == pytest.approx(0.2)
    assert losses["loss"] == pytest.approx(1.0 + 0.6 + 1.25)


@pytest.mark.parametrize(("against", "moves"), [("picture", True), ("sound", False)])
def test_only_the_comparison_with_the_picture_teaches(against: str, moves: bool) -> None:
    settings = InvertSettings.model_validate({"text_against": against, "sound_weight": 0})
    pictures = PICTURES_KND.clone().requires_grad_()
    inversion_terms(settings, pictures, SOUNDS_ND, TEXTS_ND, torch.zeros(2, 2))["loss"].backward()
    assert pictures.grad is not None
    assert bool(pictures.grad.any()) == moves


def model_with(style_mean: str) -> SoundVideoModel:
    torch.manual_seed(0)
    generator = build_generator(GENERATOR)
    generator.w_avg.copy_(torch.linspace(-1, 1, GENERATOR.w_dim))
    return SoundVideoModel(CONFIG.model_copy(update={"style_mean": style_mean}), generator)


def codes_of(model: SoundVideoModel, *values: float) -> Tensor:
    """(B, L, D): codes that are the same in all numbers."""
    return torch.stack([torch.full((model.generator.num_ws, GENERATOR.w_dim), value) for value in values])


def test_the_mean_begins_at_the_average_of_the_generator() -> None:
    model = model_with("encoder")
    assert model.style_mean.shape == (model.generator.num_ws, GENERATOR.w_dim)
    assert torch.equal(model.style_mean, model.w_avg.expand(model.generator.num_ws, -1))
    assert "inversion.mean_code" in model.state_dict()


def test_a_model_without_it_keeps_the_average_of_the_generator() -> None:
    model = model_with("generator")
    mean = CodeMean(model, 4.0)
    mean.begin()
    mean.add(codes_of(model, 5.0))
    mean.move(1)
    assert model.style_mean is model.w_avg
    assert [name for name in model.state_dict() if "mean_code" in name] == []


def test_the_mean_by_hand_in_one_part_or_two() -> None:
    for parts in ([[1.0, 2.0, 3.0, 6.0]], [[1.0], [2.0, 3.0, 6.0]]):
        model = model_with("encoder")
        mean = CodeMean(model, 4.0)
        mean.begin()
        for part in parts:
            mean.add(codes_of(model, *part))
        assert torch.equal(model.style_mean, model.w_avg.expand_as(model.style_mean))  # until the step is done
        mean.move(4)
        # four clips are a half-life: half of what was, and half of 3, the mean of the codes
        assert torch.allclose(model.style_mean, (model.w_avg / 2 + 1.5).expand_as(model.style_mean))


def test_a_step_that_did_not_end_is_forgotten() -> None:
    model = model_with("encoder")
    mean = CodeMean(model, 2.0)
    mean.begin()
    mean.add(codes_of(model, 100.0))
    mean.begin()
    mean.add(codes_of(model, 1.0, 1.0))
    mean.move(2)
    assert torch.allclose(model.style_mean, (model.w_avg / 2 + 0.5).expand_as(model.style_mean))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_half_life_is_in_clips_whatever_the_batch(size: int) -> None:
    model = model_with("encoder")
    mean = CodeMean(model, 8.0)
    for _ in range(8 // size):
        mean.begin()
        mean.add(codes_of(model, *[1.0] * size))
        mean.move(size)
    assert torch.allclose(model.style_mean, (model.w_avg / 2 + 0.5).expand_as(model.style_mean), atol=1e-6)


def test_no_gradient_goes_into_the_mean() -> None:
    model = model_with("encoder")
    mean = CodeMean(model, 2.0)
    codes = codes_of(model, 1.0).requires_grad_()
    mean.begin()
    mean.add(codes)
    mean.move(1)
    assert not model.style_mean.requires_grad


RANKS = """
import torch
from torch import distributed
from tests.trainer.invert.test_inversion_loss import codes_of, model_with
from trainer.engine.ranks import leave
from trainer.invert.inversion_loss import CodeMean

distributed.init_process_group("gloo")
model = model_with("encoder")
mean = CodeMean(model, 4.0)
mean.begin()
if distributed.get_rank():
    mean.add(codes_of(model, 2.0, 3.0, 6.0))
else:
    mean.add(codes_of(model, 1.0))
mean.move(4)
assert torch.allclose(model.style_mean, (model.w_avg / 2 + 1.5).expand_as(model.style_mean)), model.style_mean
leave()
"""


@pytest.mark.slow
def test_two_ranks_with_one_and_three_clips_have_the_mean_of_four(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(launcher, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
