"""The align stage, for real: a small network, a frozen open_clip model with random weights, a dataset read from its shards."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.build.recipe import load_recipe
from pipeline.encoders.device import ComputeOptions
from pipeline.encoders.pair import EncoderPairSettings, load_pair
from pipeline.encoders.picture import PictureEncoder
from pipeline.encoders.sound import read_align_config
from pipeline.encoders.weights import file_sha256
from pipeline.errors import FitError
from pipeline.runtime.recipe_file import read_recipe
from tests import paired
from trainer.align.frozen_encoders import OpenClipPartner, PartnerSettings, load_partner
from trainer.align.retrieval import retrieval_measures
from trainer.align.stage import Align
from trainer.engine.run import Run, make_fabric
from trainer.engine.stats import Stats
from trainer.fit import main
from trainer.recipe import FitRecipe, find_datasets
from trainer.streaming.reader import Reader

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset ``paired`` (24 samples to train on, 8 to validate), the partner's weights, and a recipe."""
    folder = tmp_path_factory.mktemp("align")
    paired.build_paired(folder / "sets" / "paired", {"train": 6, "validation": 2})
    (folder / "fit.toml").write_text(paired.recipe_text(paired.save_model(folder)))
    return folder


def fit(folder: Path, out: Path, *changes: str) -> int:
    words = ["--shards", str(folder / "sets"), "--recipe", str(folder / "fit.toml"), "--out", str(out)]
    return main([*words, *(word for change in changes for word in ("--set", change))])


def lines(out: Path, kind: str) -> list[dict[str, float]]:
    read = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[Align, Reader]:
    """A stage that no run has touched yet, and what it learns from."""
    recipe = read_recipe(FitRecipe, folder / "fit.toml", changes)
    run = Run(
        out, recipe.run, find_datasets(str(folder / "sets"), {}), make_fabric(recipe.run), Stats(None)
    )  # fmt: skip
    return Align(recipe.align, recipe.reader, run), Reader(run.mixes("train"), recipe.reader, split="train", seed=0)


def test_frames_are_embedded_as_the_encoder_itself_does(folder: Path) -> None:
    path = folder / "tiny.safetensors"
    encoder = PictureEncoder(
        paired.MODEL, str(path), path, file_sha256(path), running=ComputeOptions(torch.device("cpu"), 3)
    )
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 2, 6, 6, 3)).astype(np.uint8)
    frames = np.kron(coarse, np.ones((1, 1, 8, 8, 1), np.uint8))
    found = OpenClipPartner(encoder).embed_frames(torch.from_numpy(frames).permute(0, 1, 4, 2, 3))
    for clip, row in zip(frames, found.numpy(), strict=True):
        mean = encoder.embed_pictures(clip).mean(0)
        assert float(row @ mean / np.linalg.norm(mean)) > 0.999
        assert float(np.linalg.norm(row)) == pytest.approx(1, abs=1e-5)


def test_the_packaged_encoder_is_a_partner_too() -> None:
    settings = PartnerSettings(picture_model="hearscape-small")
    partner = load_partner(settings, torch.device("cpu"), "fp32", "align.partner")
    encoder = load_pair(EncoderPairSettings(device="cpu")).picture
    assert (partner.encoder_id, partner.width) == (encoder.encoder_id, encoder.width)
    frames = np.stack([[paired.class_frame(label, seed)[:, :48] for seed in (0, 1)] for label in ("fire", "ocean")])
    found = partner.embed_frames(torch.from_numpy(frames).permute(0, 1, 4, 2, 3)).numpy()
    for clip, row in zip(frames, found, strict=True):
        mean = encoder.embed_pictures(clip).mean(0)
        assert (
            float(row @ mean / np.linalg.norm(mean)) > 0.999
        )  # frames of another size are rounded to 8 bits in another way
    assert partner.embed_texts(["the sound of rain"]).shape == (1, encoder.width)


def test_every_trained_part_gets_a_gradient_and_moves_and_the_partner_does_not(folder: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(folder, tmp_path / "run")
    partner = stage.partner
    assert isinstance(partner, OpenClipPartner)
    named = [*stage.network.named_parameters(), ("log_scale", stage.log_scale)]
    before = {name: parameter.detach().clone() for name, parameter in named}
    frozen = {name: tensor.clone() for name, tensor in partner.encoder.model.state_dict().items()}
    batches = iter(reader)
    stage.step(
        next(batches)
    )  # after it, what begins at zero (the last scale of each block) no longer hides what is before it
    measures = stage.step(next(batches))
    still = [name for name, parameter in named if parameter.grad is None or not bool(parameter.grad.any())]
    assert still == []
    unmoved = [name for name, parameter in named if torch.equal(parameter, before[name])]
    assert unmoved == []
    assert {id(p) for group in stage.optimizer.param_groups for p in group["params"]} == {id(p) for _, p in named}
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in partner.encoder.model.state_dict().items())
    assert stage.samples_seen == 16
    parts = measures["sound_picture"] + measures["sound_text"] + measures["sound_augmented"]
    assert measures["loss"] == pytest.approx(parts, rel=1e-5)
    reader.close()


def test_each_loss_can_be_left_out_and_weighed(folder: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(
        folder, tmp_path / "run", "align.picture_weight=0.5", "align.text_weight=0", "align.augmented_weight=2"
    )
    measures = stage.step(next(iter(reader)))
    assert "sound_text" not in measures
    wanted = 0.5 * measures["sound_picture"] + 2 * measures["sound_augmented"]
    assert measures["loss"] == pytest.approx(wanted, rel=1e-5)
    reader.close()


def test_micro_batches_change_no_gradient(folder: Path, tmp_path: Path) -> None:
    """The network computes in float64, so that rounding hides nothing."""
    gradients = []
    for size in ("none", "3"):
        stage, reader = stage_of(folder, tmp_path / size, f"align.micro_batch_size={size}")
        stage.network.double()
        stage.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        stage.network.register_forward_hook(lambda _, __, output: output.float())
        stage.step(next(iter(reader)))
        reader.close()
        gradients.append(torch.cat([p.grad.flatten() for p in stage.network.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-5 * float(gradients[0].abs().max())


def test_it_learns_and_the_pipeline_loads_what_it_learned(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # many small steps: BatchNorm's running statistics forget where they began only after a hundred
    changes = ("align.num_samples=480", "align.validate_every_samples=240", "align.learning_rate=3e-3",
               "align.picture_positives=class", "run.tick_seconds=0.0001")  # fmt: skip
    assert fit(folder, out, *changes) == 0
    ticks, checks = lines(out, "tick"), lines(out, "validation")
    assert len(ticks) == 60
    assert [check["samples_seen"] for check in checks] == [240, 480]
    for part in ("sound_picture", "sound_text", "sound_augmented"):
        first, last = (sum(tick[part] for tick in some) / 10 for some in (ticks[:10], ticks[-10:]))
        assert last < first - 0.3, part
    assert checks[-1]["zero_shot_accuracy"] >= 0.75  # chance: 0.25
    assert checks[-1]["auc"] > 0.9  # chance: 0.5
    assert ticks[-1]["data_wait_share"] < 1 and ticks[-1]["memory_bytes"] > 1e8

    last = out / "align" / "last.safetensors"
    config = read_align_config(last)
    assert (config.width, config.backbone, config.num_frames) == (paired.WIDTH, "test_resnet", 1 + 44_100 // 512)
    build = tmp_path / "build.toml"
    build.write_text(
        f"""
name = "heard"
output = "built"
sources = ["a.csv"]
[encoders]
picture_model = "{paired.MODEL}"
picture_weights = "{folder / "tiny.safetensors"}"
sound_kind = "align"
sound_weights = "{last}"
device = "cpu"
"""
    )
    encoders = load_recipe(build).encoders
    assert encoders is not None
    pair = load_pair(encoders)
    assert config.picture_id == pair.picture.encoder_id
    recipe = read_recipe(FitRecipe, folder / "fit.toml")
    mix = find_datasets(str(folder / "sets"), {})[0].mix
    reader = Reader([mix], recipe.reader, split="validation", seed=0, shuffle=False)
    (batch,) = reader
    reader.close()
    frames = list(batch.frames_BTCHW.permute(0, 1, 3, 4, 2).contiguous().numpy())
    embedded = pair.embed_clips(frames, list(batch.sounds_BN.numpy()), 44_100)
    stage, _ = stage_of(folder, out)
    stage.resume()
    stage.network.eval()
    sounds = torch.nn.functional.normalize(stage.embed(batch), dim=1)
    assert sounds.numpy() == pytest.approx(embedded.sound, abs=1e-4)
    assert stage.partner.embed_frames(batch.frames_BTCHW).numpy() == pytest.approx(embedded.picture, abs=0.02)
    sources, labels = batch.source_ids, batch.labels
    found = retrieval_measures(
        torch.from_numpy(embedded.sound), torch.from_numpy(embedded.picture), {}, sources, labels
    )
    assert found["auc"] == pytest.approx(checks[-1]["auc"], abs=0.02)

    events = list((out / "tensorboard" / "align").glob("events.*"))
    assert len(events) == 1 and events[0].stat().st_size > 1000


def test_a_fit_in_two_runs_is_the_same_as_in_one(folder: Path, tmp_path: Path) -> None:
    """4 steps = 2 + 2, to the last bit: weights, optimizer, temperature, statistics; and the same lines of stats."""
    changes = ("align.validate_every_samples=16", "align.warmup_share=0.1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(folder, whole, *changes, "run.tick_seconds=0.0001") == 0
    assert fit(folder, parts, *changes, "run.tick_seconds=0.0001", "run.pause_after_samples=16") == 0
    assert load_file(parts / "align" / "resume.safetensors")["optimizer.0.step"] == 2
    assert fit(folder, parts, *changes, "run.tick_seconds=0.0001") == 0
    for name in ("resume", "last", "best"):
        one, two = (load_file(out / "align" / f"{name}.safetensors") for out in (whole, parts))
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert load_file(whole / "align" / "resume.safetensors")["optimizer.0.step"] == 4
    measured = [
        [{k: v for k, v in line.items() if k in ("samples_seen", "loss", "auc", "learning_rate")} for line in found]
        for out in (whole, parts)
        for found in (lines(out, "tick"), lines(out, "validation"))
    ]
    assert measured[0] == measured[2] and len(measured[0]) == 4
    assert measured[1] == measured[3] and len(measured[1]) == 2


def test_samples_that_cannot_be_read_are_counted_and_the_rest_is_learned_from(folder: Path, tmp_path: Path) -> None:
    paired.build_paired(tmp_path / "sets" / "spoilt", {"train": 4}, spoilt=(3, 7))
    out = tmp_path / "run"
    recipe = ["--recipe", str(folder / "fit.toml"), "--shards", str(tmp_path / "sets"), "--out", str(out)]
    assert main([*recipe, "--set", "align.num_samples=28", "--set", "run.tick_seconds=0.0001"]) == 0
    ticks = lines(out, "tick")
    assert ticks[-1]["samples_seen"] == 28  # two epochs of 14, not of 16
    assert ticks[-1]["bad_samples"] == 4
    assert lines(out, "validation") == []
    assert (out / "align" / "best.safetensors").exists()
    assert main([*recipe, "--set", "align.num_samples=56", "--set", "reader.bad_samples=0"]) == 2


def test_the_best_network_stays_when_a_later_one_is_worse(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, reader = stage_of(folder, tmp_path / "run")
    values = iter([0.6, 0.8, 0.7])
    monkeypatch.setattr(stage, "measure", lambda _reader: {"auc": next(values)})
    kept = []
    for batch, _ in zip(reader, range(3), strict=False):
        stage.step(batch)
        stage.validate()
        stage.save(reader.state_dict())
        stage.finish_saving()
        kept.append((stage.best, (stage.folder / "best.safetensors").read_bytes()))
    assert [best for best, _ in kept] == [0.6, 0.8, 0.8]
    assert kept[0][1] != kept[1][1] == kept[2][1] != (stage.folder / "last.safetensors").read_bytes()
    again, _ = stage_of(folder, tmp_path / "run")
    assert again.resume() == reader.state_dict()
    assert (again.best, again.samples_seen) == (0.8, 24)
    stage.close()
    reader.close()


def test_half_precision_learns_too(folder: Path, tmp_path: Path) -> None:
    assert fit(folder, tmp_path / "run", "run.precision=bf16", "align.num_samples=16") == 0
    losses = [tick["loss"] for tick in lines(tmp_path / "run", "tick")]
    assert len(losses) == 1 and 0 < losses[0] < 12
    assert all(
        tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "align" / "last.safetensors").values()
    )


def test_a_batch_without_a_sample_changes_nothing(folder: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(folder, tmp_path / "run")
    batch = next(iter(reader))
    stage.step(batch)
    before = {name: tensor.clone() for name, tensor in stage.network.state_dict().items()}
    nothing = {
        name: value[:0] for name in ("keys", "datasets", "source_ids", "labels", "captions", "frames_BTCHW", "sounds_BN",
                                     "mels_BMT", "seconds_B") if (value := getattr(batch, name)) is not None
    }  # fmt: skip
    assert stage.step(dataclasses.replace(batch, **nothing)) == {}
    assert stage.samples_seen == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.network.state_dict().items())
    reader.close()


def test_a_loss_that_is_not_finite_stops_before_the_step(folder: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(folder, tmp_path / "run")
    batch = next(iter(reader))
    stage.step(batch)
    before = {name: tensor.clone() for name, tensor in stage.network.state_dict().items()}
    with torch.no_grad():
        stage.log_scale.fill_(math.nan)
    with pytest.raises(FitError, match=r"not finite after 8 samples \(sound_picture nan.* in the batch of train-"):
        stage.step(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.network.state_dict().items())
    assert stage.samples_seen == 8
    reader.close()


def test_a_fit_whose_loss_breaks_leaves_a_checkpoint_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert fit(folder, out, "run.pause_after_samples=8") == 0
    good = load_file(out / "align" / "resume.safetensors")
    monkeypatch.setattr(
        "trainer.align.stage.learning_rate_share", lambda *_: math.inf
    )  # the next step spoils every weight
    assert fit(folder, out) == 1
    message = capsys.readouterr().err
    assert "failed: align: the loss is not finite after 16 samples" in message
    assert f"a checkpoint was written to {out / 'align'}" in message
    values = json.loads((out / "recipe.json").read_text())
    assert values["align"]["num_samples"] == 32
    assert good["optimizer.0.step"] == 1
    assert load_file(out / "align" / "resume.safetensors")["optimizer.0.step"] == 2
