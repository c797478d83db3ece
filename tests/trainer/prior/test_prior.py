"""The prior stage, for real: a very small generator, frames out of shards and pictures out of a folder, through the command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import FitError, RecipeError
from pipeline.runtime.recipe_file import read_recipe
from trainer.engine.checkpoint import load_state
from trainer.engine.run import Run, make_fabric
from trainer.engine.stats import Stats
from trainer.fit import main
from trainer.model.load import load_generator, read_generator_file, save_generator
from trainer.model.pictures import grid, pictures
from trainer.prior.networks import generator_config
from trainer.prior.phases import make_networks
from trainer.prior.source import make_source
from trainer.prior.stage import Prior
from trainer.recipe import FitRecipe, find_datasets
from trainer.streaming.reader import Batch

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

ROOT = Path(__file__).parents[3]


def words(folder: Path, out: Path, *changes: str, shards: bool = True) -> list[str]:
    named = ["--recipe", str(folder / "fit.toml"), "--out", str(out)]
    named += ["--shards", str(folder / "sets")] if shards else ["--set", f"prior.pictures={folder / 'pictures'}"]
    return [*named, *(word for change in changes for word in ("--set", change))]


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[Prior, Iterator[Batch]]:
    recipe = read_recipe(FitRecipe, folder / "fit.toml", changes)
    run = Run(out, recipe.run, find_datasets(str(folder / "sets"), {}), make_fabric(recipe.run), Stats(None))
    return Prior(recipe, run), iter(make_source(recipe, run, shuffle=True))


def lines(out: Path, kind: str) -> list[dict[str, float]]:
    read = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_every_trained_module_gets_a_gradient_and_moves(folder: Path, tmp_path: Path, kind: str) -> None:
    of_three = ["prior.generator={kind = 'stylegan3', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, "
                "channel_base = 64, channel_max = 8}"]  # fmt: skip
    stage, batches = stage_of(folder, tmp_path, *(of_three if kind == "stylegan3" else []))
    networks = {"generator": stage.generator, "discriminator": stage.discriminator}
    named = [(f"{name}.{path}", one) for name, network in networks.items() for path, one in network.named_parameters()]
    before = {name: one.detach().clone() for name, one in named}
    had: set[str] = set()
    for _ in range(2):  # the noise's strength begins at 0, but its gradient does not
        stage.step(next(batches))
        had |= {name for name, one in named if one.grad is not None and bool(one.grad.any())}
    assert {name for name, _ in named} - had == set()
    assert [name for name, one in named if torch.equal(one, before[name])] == []
    learning = {
        "generator": "generator",
        "path_length": "generator",
        "discriminator": "discriminator",
        "r1": "discriminator",
    }
    for phase in stage.phases:
        owned = {id(one) for one in phase.parameters}
        assert owned == {id(one) for one in networks[learning[phase.name]].parameters()}
    assert [phase.name for phase in stage.phases] == ["generator", "path_length", "discriminator", "r1"]
    assert stage.samples_seen == 8
    assert not torch.equal(stage.generator.w_avg, torch.zeros(8))


def test_phases_are_run_when_it_is_their_turn(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, "prior.r1_every=3", "prior.path_every=2")
    counts = {"optimizer_generator": [], "optimizer_discriminator": []}  # type: dict[str, list[int]]
    for _ in range(4):
        stage.step(next(batches))
        tensors = stage.tensors()
        for name, found in counts.items():
            found.append(int(tensors[f"{name}.0.step"]))
    # steps 0 to 3: path lengths at 0 and 2, R1 at 0 and 3
    assert counts == {"optimizer_generator": [2, 3, 5, 6], "optimizer_discriminator": [2, 3, 4, 6]}


def test_the_average_follows_the_generator(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, "prior.ema_half_life=8", "prior.ema_ramp_up=0.5")
    stage.step(next(batches))
    first = {name: one.clone() for name, one in stage.average.named_parameters()}
    assert all(torch.equal(one, first[name]) for name, one in stage.generator.named_parameters())
    stage.step(next(batches))
    # 4 seen before, so that the half-life is 2, and 4 new ones weigh 3/4
    for name, one in stage.average.named_parameters():
        wanted = 0.25 * first[name] + 0.75 * dict(stage.generator.named_parameters())[name]
        assert torch.allclose(one, wanted, atol=1e-6), name
    assert torch.equal(stage.average.w_avg, stage.generator.w_avg)


def test_augmentation_follows_what_is_said_of_real_pictures(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, "prior.ada_target=-0.99", "prior.r1_gamma=0")
    measures = [stage.step(next(batches)) for _ in range(2)]
    # 2 steps of 4 pictures, and 64 lead from 0 to 1
    assert [one["augment_p"] for one in measures] == pytest.approx([0.0, 8 / 64])
    stage, batches = stage_of(folder, tmp_path, "prior.ada_fixed_p=0.4")
    assert [stage.step(next(batches))["augment_p"] for _ in range(2)] == [0.4, 0.4]


def test_style_mixing_gives_the_later_layers_another_style(folder: Path, tmp_path: Path) -> None:
    stage, _ = stage_of(folder, tmp_path, "prior.style_mixing=1")
    torch.manual_seed(0)
    _, ws_NLD = stage.adversaries.generate(64)
    changes = (ws_NLD[:, 1:] != ws_NLD[:, :-1]).any(2)
    assert changes.sum(1).tolist() == [1] * 64  # one place each
    assert bool(changes.any(0).all())  # anywhere
    stage, _ = stage_of(folder, tmp_path, "prior.style_mixing=0")
    _, ws_NLD = stage.adversaries.generate(8)
    assert torch.equal(ws_NLD, ws_NLD[:, :1].expand_as(ws_NLD))


SCRIPT = """
import sys
from pathlib import Path

from pipeline.runtime.recipe_file import read_recipe
from trainer.recipe import FitRecipe
from trainer.engine.ranks import gather_items, leave
from trainer.model.generator import weights_sha256
from trainer.prior.stage import Prior
from trainer.prior.source import make_source
from trainer.engine.run import Run, make_fabric
from trainer.engine.stats import Stats

recipe = read_recipe(FitRecipe, sys.argv[1], sys.argv[3:])
fabric = make_fabric(recipe.run)
fabric.launch()
stage = Prior(recipe, Run(Path(sys.argv[2]), recipe.run, [], fabric, Stats(None)))
batches = iter(make_source(recipe, stage.run, shuffle=True))
told = [stage.step(batch) for batch, _ in zip(batches, range(2))][-1]
networks = (stage.generator, stage.average, stage.discriminator)
found = [*map(weights_sha256, networks), stage.samples_seen, stage.adversaries.p, float(stage.adversaries.path_mean), told]
first, second = gather_items([found])
assert first == second, (first, second)
measured = stage.validate()
first, second = gather_items([measured])
assert first == second, (first, second)
if fabric.is_global_zero:
    print("equal", stage.samples_seen, sorted(measured))
leave()
"""


def test_two_ranks_hold_the_same_networks(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    changes = [f"prior.pictures={folder / 'pictures'}", "prior.ada_every=1"]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         str(folder / "fit.toml"), str(tmp_path / "run"), *changes],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ["equal 8 ['frechet_random', 'kid_random']"]


@pytest.mark.parametrize("shards", [True, False])
def test_resuming_changes_nothing(folder: Path, tmp_path: Path, shards: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    small = ("prior.validate_every_samples=1000", "prior.frames_per_clip=1")
    assert main(words(folder, whole, *small, shards=shards)) == 0
    assert main(words(folder, parts, *small, "run.pause_after_samples=8", shards=shards)) == 0
    assert load_state(parts / "prior" / "resume.safetensors", "prior")[1]["samples_seen"] == 8
    assert main(words(folder, parts, *small, shards=shards)) == 0
    (first, of_first), (second, of_second) = (
        load_state(out / "prior" / "resume.safetensors", "prior") for out in (whole, parts)
    )
    assert of_first == of_second
    assert of_first["num_steps"] == 4
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    files = [load_file(out / "prior" / "last.safetensors") for out in (whole, parts)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_a_run_leaves_a_generator_pictures_and_numbers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(words(folder, out, "run.tick_seconds=0.0001")) == 0
    generator = load_generator(out / "prior" / "last.safetensors")
    tensors, values = load_state(out / "prior" / "resume.safetensors", "prior")
    state = generator.state_dict()
    assert all(torch.equal(state[name], tensors[f"average.{name}"]) for name in state)
    assert not all(torch.equal(state[name], tensors[f"generator.{name}"]) for name in state)
    judge = read_generator_file(out / "prior" / "last.safetensors").discriminator().state_dict()
    assert all(torch.equal(judge[name], tensors[f"discriminator.{name}"]) for name in judge)
    assert sorted(path.name for path in (out / "prior" / "samples").iterdir()) == [
        "0000000008.png", "0000000016.png", "real.png",
    ]  # fmt: skip
    shown = cv2.imread(str(out / "prior" / "samples" / "0000000016.png"))
    drawn = grid(pictures(generator, range(6)))
    # equal weights elsewhere in memory: where a value lies between two levels, the last bit decides
    assert np.abs(shown[:, :, ::-1].astype(int) - drawn).max() <= 1
    assert np.ptp(drawn) > 20
    assert cv2.imread(str(out / "prior" / "samples" / "real.png")).shape == (32, 48, 3)
    validated = lines(out, "validation")
    assert [line["samples_seen"] for line in validated] == [8, 16]
    assert all(set(line) >= {"frechet_random", "kid_random"} for line in validated)
    assert values["best"] == pytest.approx(min(line["frechet_random"] for line in validated))
    ticks = lines(out, "tick")
    assert [line["samples_seen"] for line in ticks] == [4, 8, 12, 16]
    names = {"generator_loss", "discriminator_loss", "r1_penalty", "path_length", "augment_p", "real_score"}
    assert all(names <= set(line) for line in ticks)
    assert all(line["loss"] == pytest.approx(line["generator_loss"] + line["discriminator_loss"]) for line in ticks)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard" / "prior"), size_guidance={"images": 0})
    board.Reload()
    assert [(one.step, one.width, one.height) for one in board.Images("samples")] == [(8, 48, 32), (16, 48, 32)]


def test_it_goes_on_from_a_published_generator(folder: Path, tmp_path: Path) -> None:
    config = read_recipe(FitRecipe, folder / "fit.toml").prior.generator
    assert config is not None
    stage, _ = stage_of(folder, tmp_path / "first", "run.seed=5")
    path = tmp_path / "published.safetensors"
    save_generator(path, config, stage.generator)
    other, _ = stage_of(folder, tmp_path / "second", f"prior.init={path}")
    wanted = stage.generator.state_dict()
    assert all(torch.equal(one, wanted[name]) for name, one in other.generator.state_dict().items())
    assert all(torch.equal(one, wanted[name]) for name, one in other.average.state_dict().items())
    save_generator(path, config, stage.generator, stage.discriminator_config, stage.discriminator)
    other, _ = stage_of(folder, tmp_path / "third", f"prior.init={path}")
    judge = stage.discriminator.state_dict()
    assert all(torch.equal(one, judge[name]) for name, one in other.discriminator.state_dict().items())


def test_a_loss_that_is_not_finite_changes_nothing(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path)
    stage.step(next(batches))
    before = {name: one.clone() for name, one in stage.tensors().items()}
    values = stage.numbers()
    for phase in stage.phases[:1]:
        phase.optimizer.param_groups[0]["lr"] = (
            1e30  # the generator's loss and gradient are finite, its weights then are not
        )
    with pytest.raises(
        FitError,
        match=r"prior: the step of the phase generator left weights that are not finite after 4 samples in the batch of",
    ):
        stage.step(next(batches))
    after = stage.tensors()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert stage.numbers() == values


def test_the_command_stops_with_a_checkpoint_where_a_loss_is_not_finite(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(words(folder, out, "prior.generator_learning_rate=1e30")) == 1
    said = capsys.readouterr().err
    assert "failed: prior: the step of the phase generator left weights that are not finite" in said
    assert "the same command goes on from it" in said
    assert main(words(folder, out)) == 0
    assert load_state(out / "prior" / "resume.safetensors", "prior")[1]["samples_seen"] == 16


def test_micro_batches_and_clips_of_frames(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(
        folder, tmp_path, "prior.frames_per_clip=2", "prior.batch_size=8", "prior.micro_batch_size=4"
    )
    measures = stage.step(next(batches))
    assert stage.samples_seen == 16
    assert np.isfinite(list(measures.values())).all()
    parts = list(stage._micro_batches(torch.zeros(8, 2, 3, 16, 16)))
    assert [part.shape[:2] for part in parts] == [(2, 2)] * 4
    parts = list(stage._micro_batches(torch.zeros(12, 3, 3, 16, 16)))  # 4 pictures would be no whole clips
    assert [part.shape[:2] for part in parts] == [(1, 3)] * 12


def test_a_batch_with_bad_samples_keeps_whole_groups(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, "prior.batch_size=8")
    batch = next(batches)
    read = {name: value for name in Batch.__dataclass_fields__ if (value := getattr(batch, name)) is not None}
    short = Batch(**{name: value[:7] for name, value in read.items()}, mels_BMT=None)
    stage.step(short)
    assert stage.samples_seen == 4
    assert (
        stage.step(Batch((), (), (), (), (), batch.frames_BTCHW[:0], batch.sounds_BN[:0], None, batch.seconds_B[:0]))
        == {}
    )


def test_half_precision_computes_and_keeps_weights_whole(folder: Path, tmp_path: Path) -> None:
    table = "prior.generator={kind = 'stylegan2', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, widths = [8, 8, 8], "
    changes = (table + "num_half = 1, conv_clamp = 256.0}", "run.precision=bf16", "prior.path_weight=0")
    stage, batches = stage_of(folder, tmp_path, *changes)
    assert stage.discriminator.half_dtype == torch.bfloat16
    assert np.isfinite(list(stage.step(next(batches)).values())).all()
    assert {one.dtype for one in stage.generator.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["prior.pictures=nowhere"], "prior.pictures: nowhere is not a folder"),
        (["prior.init=nowhere.pkl"], "prior.init: there is no file 'nowhere.pkl'"),
        (["prior.generator.resolution=24"], "resolution 24 is no power of two"),
        (["prior.generator.c_dim=3"], "3 classes"),
        (["prior.generator={kind = 'stylegan2', resolution = 8}"], "8 pixels are too few"),
        (["prior.generator={kind = 'stylegan2', resolution = 64}"], "64 px"),
        (["prior.batch_size=6"], "prior.batch_size 6: every one of 1 ranks needs a multiple of 4 pictures"),
        (["prior.micro_batch_size=6"], "micro_batch_size 6: take a multiple of 4"),
        (["prior.betas=[0.0, 1.0]"], "each is from 0 up to, not including, 1"),
        (["prior.init_sha256=ab"], "init_sha256 is given without init"),
        (["prior.frozen_blocks=1"], "frozen_blocks is given without init"),
        (["prior.blur_px=-1"], "prior.blur_px"),
        (["prior.fidelity.inception_weights=nowhere.pth"], "prior.fidelity.inception_weights"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Sequence[str], message: str
) -> None:
    assert main(words(folder, tmp_path / "run", *changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(re.escape(message), error)
    assert not (tmp_path / "run" / "prior" / "resume.safetensors").exists()


def test_a_checkpoint_of_another_network_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small = ("prior.fidelity.num_pictures=0", "run.pause_after_samples=4")
    assert main(words(folder, out, *small)) == 0
    assert main(words(folder, out, *small, "prior.generator.w_dim=4")) == 2
    assert "is of another network (w_dim was 8, is 4)" in capsys.readouterr().err
    path = tmp_path / "other.safetensors"
    stage, _ = stage_of(folder, tmp_path / "other")
    save_generator(path, stage.made, stage.generator)
    assert main(words(folder, tmp_path / "new", f"prior.init={path}", "prior.generator.w_dim=4")) == 2
    assert "prior.generator: is not the network that prior.init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "side", "millions"),
    [("tiny", 32, 0.19), ("256", 256, 24.8), ("512", 512, 30.3), ("1024", 1024, 30.37),
     ("stylegan3-t", 256, 23.32), ("stylegan3-r", 256, 15.78)],
)  # fmt: skip
def test_the_presets_are_the_networks_they_say(name: str, side: int, millions: float) -> None:
    """Whole networks, as large as they are, without memory for them."""
    settings = read_recipe(FitRecipe, ROOT / "manifests" / "recipes" / f"fit-prior-{name}.toml").prior
    config = generator_config(settings)
    with torch.device("meta"):
        generator, discriminator, _ = make_networks(settings)
        pictures_NCHW = generator(torch.zeros(4, config.z_dim))
        logits = discriminator(pictures_NCHW)
    assert pictures_NCHW.shape == (4, 3, side, side)
    assert logits.shape == (4, 1)
    assert sum(one.numel() for one in generator.parameters()) / 1e6 == pytest.approx(millions, abs=0.04)
    if name != "tiny":
        assert (config.num_half, config.conv_clamp) == (4, 256)


def test_the_discriminator_sees_blurred_pictures_until_the_blur_has_faded(folder: Path, tmp_path: Path) -> None:
    stage, batches = stage_of(folder, tmp_path, "prior.blur_px=2", "prior.blur_samples=16")
    assert [stage.settings.blur_at(seen) for seen in (0, 4, 12, 16, 1000)] == [2.0, 1.5, 0.5, 0.0, 0.0]
    seen = []
    for _ in range(4):
        stage.step(next(batches))
        seen.append(stage.adversaries.blur_px)
    assert seen == [2.0, 1.5, 1.0, 0.5]
    stage.adversaries.p = stage.adversaries.blur_px = 0.0
    dot_BTCHW = torch.zeros(1, 2, 3, 16, 16)
    dot_BTCHW[..., 8, 8] = 1
    assert torch.equal(stage.adversaries.shown(dot_BTCHW), dot_BTCHW[0])
    stage.adversaries.blur_px = 2.0
    shown_NCHW = stage.adversaries.shown(dot_BTCHW)
    assert shown_NCHW.shape == (2, 3, 16, 16)
    assert float(shown_NCHW[1, 2, 8, 10] / shown_NCHW[1, 2, 8, 8]) == pytest.approx(0.5, rel=1e-4)


def test_frozen_blocks_of_the_discriminator_stay(folder: Path, tmp_path: Path) -> None:
    first, batches = stage_of(folder, tmp_path / "first")
    path = tmp_path / "whole.safetensors"
    save_generator(path, first.made, first.generator, first.discriminator_config, first.discriminator)
    stage, _ = stage_of(folder, tmp_path / "second", f"prior.init={path}", "prior.frozen_blocks=1")
    before = {name: one.detach().clone() for name, one in stage.discriminator.named_parameters()}
    for _ in range(2):
        stage.step(next(batches))
    stayed = {name for name, one in stage.discriminator.named_parameters() if torch.equal(one, before[name])}
    # the highest of 16, 8 and 4 pixels, and nothing else
    assert stayed == {name for name in before if name.startswith("b16.")}
    assert {name.partition(".")[0] for name in before} - {"b16"} == {"b8", "b4"}
    of_judge = next(phase for phase in stage.phases if phase.name == "r1")
    assert len(of_judge.parameters) == len(before) - len(stayed)


def test_frozen_blocks_want_a_discriminator_that_has_learned(folder: Path, tmp_path: Path) -> None:
    stage, _ = stage_of(folder, tmp_path / "first")
    bare, whole = tmp_path / "bare.safetensors", tmp_path / "whole.safetensors"
    save_generator(bare, stage.made, stage.generator)
    save_generator(whole, stage.made, stage.generator, stage.discriminator_config, stage.discriminator)
    for path, count, message in (
        (bare, 1, "holds no discriminator"),
        (whole, 3, r"frozen_blocks: 3; a discriminator of 16 pixels has 2"),
    ):
        settings = read_recipe(FitRecipe, folder / "fit.toml", [f"prior.init={path}", f"prior.frozen_blocks={count}"])
        with pytest.raises(RecipeError, match=message):
            generator_config(settings.prior)
