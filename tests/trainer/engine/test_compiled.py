"""Compiled networks: the same numbers as without, and runs that are begun compiled and ended without.

Runs are traced and differentiated as in a fit, but their graphs are not made into C++ (torch's backend aot_eager): that takes minutes.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.guided import PACKAGED, fit, words
from trainer.adversarial.losses import r1_penalty
from trainer.engine import compiling
from trainer.engine.compiling import compile_networks, uncompiled
from trainer.model.discriminator import Discriminator

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's compiler warns of what it does itself

ROUNDING = 1e-4
"""Share of the largest number of a tensor. Sums in float32, eps 6e-8, of at most some thousand numbers in another order."""

SMALL_PRIOR = (
    "prior.generator={kind = 'stylegan2', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, widths = [8, 8, 8]}",
    "prior.batch_size=4",
    "prior.num_samples=32",
    "prior.r1_every=2",
    "prior.path_weight=2.0",
    "prior.path_every=2",
    "prior.fidelity.num_pictures=0",
)


@pytest.fixture(autouse=True)
def nothing_stays_compiled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test compiles anew: what torch had kept for AVX-512 was loaded where ATen was told to use AVX2, and ended the process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    yield
    torch.compiler.reset()


def num_graphs() -> int:
    from torch._dynamo.utils import counters

    assert not counters["recompile_limit"]
    return int(counters["stats"]["unique_graphs"])


def gradients(network: Discriminator, pictures: Tensor) -> list[Tensor]:
    """Logits, their gradient at the pictures, and then, from the same graph, those of the weights."""
    pictures = pictures.clone().requires_grad_()
    logits = network(pictures)
    (at_pictures,) = torch.autograd.grad(logits.sum(), pictures, retain_graph=True)
    return [logits.detach(), at_pictures, *torch.autograd.grad(logits.square().sum(), list(network.parameters()))]


def largest_difference(ones: list[Tensor], others: list[Tensor]) -> float:
    """As a share of a tensor's largest number."""
    pairs = zip(ones, others, strict=True)
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-12)) for one, other in pairs)


def test_a_compiled_network_gives_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    network = Discriminator(0, 8, 3, (4, 4))
    plain = copy.deepcopy(network)
    compile_networks(network, None)
    assert list(network.state_dict()) == list(plain.state_dict())
    pictures = torch.randn(4, 3, 8, 8)
    before = num_graphs()
    assert largest_difference(gradients(network, pictures), gradients(plain, pictures)) < ROUNDING
    assert num_graphs() == before + 1
    shown = pictures.clone().requires_grad_()
    penalties = []
    for one in (network, plain):
        with uncompiled():
            penalties.append(r1_penalty(one(shown), shown))
            penalties[-1].backward()  # type: ignore[no-untyped-call]
    assert penalties[0] == penalties[1]
    assert num_graphs() == before + 1
    copied = copy.deepcopy(network)
    assert largest_difference(gradients(copied, pictures), gradients(plain, pictures)) == 0


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("prior", SMALL_PRIOR),
        ("align", ()),
        ("invert", ()),
        ("video", ("reader.num_frames=3", "video.generator_learning_rate=1e-4", "video.measure_gradients_every=2")),
    ],
)
def test_a_run_that_was_begun_compiled_goes_on_uncompiled(
    guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, changes: tuple[str, ...]
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    stages = "invert,video" if stage == "video" else stage
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    before = num_graphs()
    assert fit(guided, whole, stages, *changes) == 0
    assert num_graphs() == before
    if stage == "video":
        assert fit(guided, parts, "invert", *changes) == 0
    assert fit(guided, parts, stage, *changes, "run.compile=true", "run.pause_after_samples=16") == 0
    compiled = num_graphs()
    assert compiled > before
    assert fit(guided, parts, stage, *changes) == 0
    assert num_graphs() == compiled
    one, other = (load_file(out / stage / "last.safetensors") for out in (whole, parts))
    assert one.keys() == other.keys()
    assert largest_difference([one[n].float() for n in one], [other[n].float() for n in one]) < ROUNDING


def test_a_machine_without_a_compiler_is_told_before_any_work(guided: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trainer.fit",
        *words(guided, tmp_path / "run", "invert", *PACKAGED, "run.compile=true"),
    ]
    for compiler, problem in (("no-such-compiler", "cannot be found"), ("false", "does not work here")):
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "CXX": compiler}
        )
        assert ended.returncode == 2, ended.stderr
        assert "run.compile" in ended.stderr and problem in ended.stderr
        assert not (tmp_path / "run").exists()
