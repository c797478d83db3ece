"""The invert stage, for real: a small generator with random weights, a guide that knows colours, a dataset read from its shards."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainer.invert.stage as stage_module
from pipeline.encoders.pair import EncoderPairSettings, load_pair
from pipeline.errors import CheckpointError, FitError
from tests import paired
from tests.trainer.guided import SIDE_PX, copied, differing, fit, lines, prepared
from tests.trainer.invert.stages import stage_of
from tests.trainer.sounding import GENERATOR
from tests.trainer.video.stages import first_batch
from trainer.align.frozen_encoders import OpenClipPartner
from trainer.engine.checkpoint import load_state, save_state
from trainer.invert.guide import ALIGN_CHECKPOINT
from trainer.invert.shared import clip_reader, generator_file, model_config
from trainer.invert.stage import start_hearing
from trainer.model.pictures import to_uint8
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


def test_the_inversion_learns_and_nothing_else_moves(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    assert isinstance(stage.guide.partner, OpenClipPartner)
    encoder, sound = stage.guide.partner.encoder.model, stage.guide.sound
    frozen = {
        "generator": stage.model.generator, "blocks": stage.model.blocks, "encoder": encoder, "sound": sound.network,  # type: ignore[attr-defined]
    }  # fmt: skip
    before = {name: copied(network.state_dict()) for name, network in frozen.items()}
    named = list(stage.model.inversion.named_parameters())
    started = {name: one.detach().clone() for name, one in named}
    had: set[str] = set()
    for (
        batch
    ) in reader:  # after the first step, the last scale of each residual block no longer hides what is before it
        measures = stage.step(batch)
        had |= {name for name, one in named if one.grad is not None and bool(one.grad.any())}
    reader.close()
    assert {name for name, _ in named} - had == set()
    assert [name for name, one in named if torch.equal(one, started[name])] == []
    for name, network in frozen.items():
        assert differing(network.state_dict(), before[name]) == [], name
        assert [one.grad for one in network.parameters() if one.grad is not None] == [], name
    owned = {id(one) for group in stage.optimizer.param_groups for one in group["params"]}
    assert owned == {id(one) for _, one in named}
    assert (stage.samples_seen, stage.num_steps) == (16, 2)
    settings = stage.settings
    wanted = (
        settings.sound_weight * measures["sound_loss"]
        + settings.text_weight * measures["text_loss"]
        + settings.style_weight * measures["style_loss"]
    )
    assert measures["loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_loss_falls(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "invert.num_samples=1000", "invert.learning_rate=3e-3")
    batch = first_batch(reader)
    told = [stage.step(batch) for _ in range(32)]
    for name in ("sound_loss", "text_loss"):
        first, last = (sum(one[name] for one in some) / 4 for some in (told[:4], told[-4:]))
        assert last < first - 0.03, name


def test_whole_windows_and_every_segment_are_heard_in_turn(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = first_batch(reader)
    heard = []
    for _ in range(4):
        stage.step(batch)
        heard.append(stage._segment)
    assert sorted(heard, key=str) == [0, 1, None, None]


def test_micro_batches_change_no_gradient(guided: Path, tmp_path: Path) -> None:
    found = []
    for size in ("none", "3"):
        stage, reader = stage_of(guided, tmp_path / size, f"invert.micro_batch_size={size}")
        told = stage.step(first_batch(reader))
        gradients = [one.grad.flatten() for one in stage.model.inversion.parameters() if one.grad is not None]
        found.append((torch.cat(gradients), told))
    assert len(found[0][0]) > 10_000
    assert float((found[0][0] - found[1][0]).abs().max()) < 1e-4 * float(found[0][0].abs().max())
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


@pytest.mark.parametrize("left_out", ["sound", "text", "style"])
def test_each_term_can_be_left_out(guided: Path, tmp_path: Path, left_out: str) -> None:
    stage, reader = stage_of(guided, tmp_path, f"invert.{left_out}_weight=0")
    measures = stage.step(first_batch(reader))
    weights = {name: getattr(stage.settings, f"{name}_weight") for name in ("sound", "text", "style")}
    assert weights.pop(left_out) == 0
    wanted = sum(weight * measures[f"{name}_loss"] for name, weight in weights.items())
    assert measures["loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_fit_in_two_runs_is_the_same_as_in_one(guided: Path, tmp_path: Path) -> None:
    """4 steps = 2 + 2, to the last bit: weights, optimizer, reader, the best so far; and the same lines of stats."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = ("invert.validate_every_samples=16", "run.tick_seconds=0.0001")
    assert fit(guided, whole, "invert", *changes) == 0
    assert fit(guided, parts, "invert", *changes, "run.pause_after_samples=16") == 0
    assert load_state(parts / "invert" / "resume.safetensors", "invert")[1]["num_steps"] == 2
    assert fit(guided, parts, "invert", *changes) == 0
    (first, of_first), (second, of_second) = (
        load_state(out / "invert" / "resume.safetensors", "invert") for out in (whole, parts)
    )
    assert of_first == of_second
    assert (of_first["num_steps"], of_first["samples_seen"]) == (4, 32)
    assert first["optimizer.0.step"] == 4
    assert differing(first, second) == []
    for name in ("last", "best"):
        files = [load_file(out / "invert" / f"{name}.safetensors") for out in (whole, parts)]
        assert differing(*files) == []
    told = [
        [{k: v for k, v in line.items() if k in ("samples_seen", "loss", "own_minus_wrong")} for line in found]
        for out in (whole, parts)
        for found in (lines(out, "tick"), lines(out, "validation"))
    ]
    assert told[0] == told[2] and len(told[0]) == 4
    assert told[1] == told[3] and len(told[1]) == 2
    validated = lines(whole, "validation")
    assert of_first["best"] == pytest.approx(max(line["own_minus_wrong"] for line in validated))
    for line in validated:
        assert line["num_samples"] == 8
        assert line["own_minus_wrong"] == pytest.approx(line["own_cosine"] - line["wrong_cosine"], abs=1e-6)
    shown = cv2.imread(str(whole / "invert" / "samples" / "0000000032.png"))
    assert shown.shape[0] % SIDE_PX == shown.shape[1] % SIDE_PX == 0 and shown.size == 9 * SIDE_PX**2 * 3
    model, header = load_model(whole / "invert" / "last.safetensors")
    assert (header.stage, header.samples_seen, header.classes) == ("invert", 32, tuple(sorted(paired.CLASSES)))
    assert header.generator == GENERATOR
    assert differing(model.inversion.state_dict(), {k.removeprefix("inversion."): v for k, v in first.items()
                                                    if k.startswith("inversion.")}) == []  # fmt: skip


def test_a_loss_that_is_not_finite_changes_nothing(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = first_batch(reader)
    stage.step(batch)
    before, numbers = copied(stage.tensors()), stage.numbers()
    with torch.no_grad():
        stage.model.w_avg.fill_(math.nan)
    with pytest.raises(
        FitError, match=r"invert: the loss of the phase invert is not finite .* after 8 samples in the batch of train-"
    ):
        stage.step(batch)
    assert differing(stage.tensors(), before) == []
    assert stage.numbers() == numbers


def test_the_command_leaves_a_checkpoint_of_before(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "invert", "invert.learning_rate=1e30", "invert.max_gradient_norm=1e30") == 1
    said = capsys.readouterr().err
    assert "failed: invert: the loss of the phase invert is not finite" in said
    assert f"a checkpoint was written to {out / 'invert'}: the same command goes on from it" in said
    tensors, values = load_state(out / "invert" / "resume.safetensors", "invert")
    assert values["samples_seen"] == 8 * values["num_steps"] == 8 * int(tensors["optimizer.0.step"])
    assert all(bool(one.isfinite().all()) for one in tensors.values())


def test_a_batch_without_a_sample_changes_nothing(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = first_batch(reader)
    before = copied(stage.tensors())
    nothing = {
        name: value[:0] for name in ("keys", "datasets", "source_ids", "labels", "captions", "frames_BTCHW", "sounds_BN",
                                     "mels_BMT", "seconds_B") if (value := getattr(batch, name)) is not None
    }  # fmt: skip
    assert stage.step(dataclasses.replace(batch, **nothing)) == {}
    assert differing(stage.tensors(), before) == []
    assert stage.numbers()["samples_seen"] == 0


def test_validation_says_the_same_of_the_same_model(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    reader.close()
    told = [stage.validate() for _ in range(2)]
    stage.close()
    assert told[1] == pytest.approx(told[0], abs=1e-5)  # read and embedded anew: up to rounding
    assert stage.best == pytest.approx(told[0]["own_minus_wrong"])


def test_what_align_learned_to_hear_is_taken_over(guided: Path, tmp_path: Path) -> None:
    recipe, run = prepared(guided, tmp_path)
    generator = generator_file(recipe, tmp_path).generator()
    torch.manual_seed(9)
    model = SoundVideoModel(model_config(recipe), generator)
    fresh = copied(model.inversion.state_dict())
    path = tmp_path / ALIGN_CHECKPOINT
    start_hearing(model, path)
    assert differing(model.inversion.state_dict(), fresh) == []  # there is none
    path.parent.mkdir()
    path.write_bytes((guided / "align.safetensors").read_bytes())
    start_hearing(model, path)
    held = load_file(path)
    state = model.inversion.state_dict()
    heard = {name for name in state if name.startswith(("conv.", "body."))}
    assert len(heard) > 30
    assert {
        name for name in heard if not torch.equal(state[name], held[name.replace("body.", "feature_extractor.")])
    } == set()
    assert set(differing(state, fresh)) <= heard
    assert not torch.equal(state["conv.weight"], fresh["conv.weight"])
    other = SoundVideoModel(model_config(recipe).model_copy(update={"backbone": "test_convnext"}), generator)
    fresh = copied(other.inversion.state_dict())
    start_hearing(other, path)
    assert differing(other.inversion.state_dict(), fresh) == []
    del run


def test_the_stage_takes_it_over_where_it_is_told_to(guided: Path, tmp_path: Path) -> None:
    started = []
    for takes in ("true", "false"):
        out = tmp_path / takes
        (out / "align").mkdir(parents=True)
        shutil.copy(guided / "align.safetensors", out / ALIGN_CHECKPOINT)
        tiny = ("invert.num_samples=8", "invert.learning_rate=1e-20", "invert.validation_samples=1")
        assert fit(guided, out, "invert", *tiny, f"invert.start_from_align={takes}") == 0
        kept = load_file(out / "invert" / "last.safetensors")["inversion.conv.weight"]
        started.append(torch.equal(kept, load_file(guided / "align.safetensors")["conv.weight"]))
    assert started == [True, False]


def test_without_a_generator_it_says_what_to_do(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(guided, tmp_path / "run", "invert", "invert.generator=null") == 2
    assert (
        "prior/best.safetensors is not there: run the stage prior first, or name a generator" in capsys.readouterr().err
    )
    assert fit(guided, tmp_path / "run", "invert", "invert.generator=nowhere.pt") == 2
    assert "invert.generator: nowhere.pt is no file" in capsys.readouterr().err
    assert fit(guided, tmp_path / "run", "invert", "reader.num_frames=1") == 2
    assert "reader.num_frames: a clip of one frame is no video" in capsys.readouterr().err
    (tmp_path / "run" / "prior").mkdir(parents=True)
    shutil.copy(guided / "generator.safetensors", tmp_path / "run" / "prior" / "last.safetensors")
    recipe, _ = prepared(guided, tmp_path / "run", "invert.generator=null")
    assert generator_file(recipe, tmp_path / "run").config == GENERATOR
    with pytest.raises(CheckpointError, match="run the stage prior first"):
        generator_file(recipe, tmp_path)


def test_a_checkpoint_of_another_network_is_refused(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "invert", "run.pause_after_samples=8", "invert.num_samples=16") == 0
    before = (out / "invert" / "resume.safetensors").read_bytes()
    assert fit(guided, out, "invert", "invert.backbone=test_convnext") == 2
    assert "is of another network (backbone was test_resnet, is test_convnext)" in capsys.readouterr().err
    assert (out / "invert" / "resume.safetensors").read_bytes() == before
    assert json.loads((out / "recipe.json").read_text())["invert"]["num_samples"] in (16, 32)


def test_a_checkpoint_from_before_a_setting_existed_goes_on(guided: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "invert", "run.pause_after_samples=8", "invert.num_samples=16") == 0
    path = out / "invert" / "resume.safetensors"
    tensors, values = load_state(path, "invert")
    assert values["config"].pop("pull") is True
    save_state(path, "invert", tensors, values)
    assert fit(guided, out, "invert", "invert.num_samples=16") == 0
    assert load_state(path, "invert")[1]["num_steps"] == 2


def test_half_precision_learns_and_keeps_its_weights_whole(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "run.precision=bf16")
    assert stage.model.generator.synthesis.half_dtype == torch.bfloat16
    before = copied(stage.tensors())
    batch = first_batch(reader)
    told = [stage.step(batch) for _ in range(2)]
    assert all(math.isfinite(value) for one in told for value in one.values())
    after = stage.tensors()
    assert {one.dtype for one in after.values() if one.is_floating_point()} == {torch.float32}
    assert not torch.equal(before["inversion.conv.weight"], after["inversion.conv.weight"])


def test_the_best_is_chosen_by_an_encoder_that_did_not_guide(guided: Path, tmp_path: Path) -> None:
    """Not by the guide, whose own cosine is told beside it: pictures can be made for the guide alone."""
    stage, reader = stage_of(guided, tmp_path)
    reader.close()
    measures = stage.validate()
    stage.close()
    assert stage.best == measures["own_minus_wrong"]
    judge = load_pair(EncoderPairSettings())
    recipe, run = prepared(guided, tmp_path)
    (batch,) = clip_reader(recipe, run, "validation", 8, SIDE_PX)
    stage.draw_alike()
    with torch.no_grad():
        pictures = stage._drawn(batch)[1]
    seen = torch.from_numpy(
        np.stack([judge.picture.embed_pictures(one[None])[0] for one in to_uint8(pictures).numpy()])
    )
    heard = torch.from_numpy(judge.sound.embed_sounds(list(batch.sounds_BN.numpy()), 44_100))
    apart = torch.tensor([[not set(one) & set(other) for other in batch.labels] for one in batch.labels])
    cosines = seen @ heard.T
    assert measures["own_cosine"] == pytest.approx(float(cosines.diagonal().mean()), abs=1e-4)
    assert measures["wrong_cosine"] == pytest.approx(float(cosines[apart].mean()), abs=1e-4)
    assert measures["guide_own_minus_wrong"] != pytest.approx(measures["own_minus_wrong"], abs=1e-4)


def test_a_device_that_is_full_names_the_micro_batch_to_try_and_loses_nothing(
    guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a GPU does: in the middle of the second step."""
    out = tmp_path / "run"
    real, calls = stage_module.guided_losses, []

    def full(*arguments: object) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 4:  # the second half of the second step
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of"
            )
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_module, "guided_losses", full)
    changes = ("invert.micro_batch_size=4", "invert.num_samples=24", "invert.validation_samples=1")
    assert fit(guided, out, "invert", *changes) == 1
    said = capsys.readouterr().err
    assert "failed: invert: the device has too little memory (CUDA out of memory. Tried to allocate 20.00 MiB.)" in said
    assert "set invert.micro_batch_size to 2, it is 4" in said
    assert load_state(out / "invert" / "resume.safetensors", "invert")[1]["samples_seen"] == 8
    assert fit(guided, out, "invert", *changes[1:], "invert.micro_batch_size=2") == 0
    assert load_state(out / "invert" / "resume.safetensors", "invert")[1]["num_steps"] == 3
