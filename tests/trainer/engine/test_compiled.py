"""run.compile: compiled networks give what eager ones give, up to rounding, and penalties on gradients go around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from pipeline.errors import RecipeError
from tests.trainer.sounding import GENERATOR
from trainer.adversarial.losses import r1_penalty
from trainer.engine.learner import Learner
from trainer.engine.phases import uncompiled
from trainer.engine.run import RunSettings, make_fabric
from trainer.model.generator import build_discriminator, build_generator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")


def compile_if_wanted(network: nn.Module, wanted: bool) -> nn.Module:
    """``network``, after what a stage does with its networks."""
    learner = cast("Learner", SimpleNamespace(run=SimpleNamespace(settings=RunSettings(compile=wanted))))
    Learner.compile(learner, network, None)
    return network


def test_a_generator_gives_the_same_pictures_and_gradients() -> None:
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    generator = build_generator(GENERATOR)
    styles = torch.randn(2, generator.num_ws, generator.w_dim)
    gradients, pictures = [], []
    for wanted in (False, True):
        compile_if_wanted(generator.synthesis, wanted)
        counters.clear()
        leaf = styles.clone().requires_grad_()
        drawn = generator.synthesis(leaf, noise_mode="const")
        drawn.square().mean().backward()
        assert (counters["stats"]["unique_graphs"] > 0) == wanted
        assert leaf.grad is not None
        pictures.append(drawn.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(pictures[1], pictures[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    assert not [name for name in generator.state_dict() if "_orig_mod" in name]


def test_a_penalty_on_a_gradient_runs_as_it_was_written() -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(GENERATOR)
    pictures = torch.randn(4, 3, GENERATOR.resolution, GENERATOR.resolution, requires_grad=True)
    before = r1_penalty(discriminator(pictures), pictures)
    compile_if_wanted(discriminator, True)
    with uncompiled():
        penalty = r1_penalty(discriminator(pictures), pictures)
    assert float(penalty.detach()) == float(before.detach())
    penalty.backward()  # type: ignore[no-untyped-call]
    assert discriminator.b4.fc.weight.grad is not None
    assert discriminator.b4.fc.weight.grad.abs().sum() > 0


def test_without_a_compiler_the_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"run\.compile: .* no-such-compiler cannot be found"):
        make_fabric(RunSettings(device="cpu", compile=True))
    monkeypatch.delenv("CXX")
    assert make_fabric(RunSettings(device="cpu", compile=True)).device == torch.device("cpu")
