"""A fit of the video stage: what it begins with, writes, resumes and refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError, FitError
from tests import paired
from tests.trainer.guided import SIDE_PX, copied, differing, fit, lines, prepared
from tests.trainer.video.stages import FAST, THREE, first_batch, save_inverted, stage_of
from trainer.engine.checkpoint import load_state
from trainer.model.load import read_generator_file
from trainer.model.sound_video_file import load_model
from trainer.video.stage import start_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


def test_a_fit_in_two_runs_is_the_same_as_in_one(guided: Path, tmp_path: Path) -> None:
    """4 steps = 2 + 2, to the last bit: networks, average, optimizers, reader, the best so far; and the same lines of stats."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        save_inverted(guided, out)
    changes = (
        *FAST,
        "video.validate_every_samples=16",
        "run.tick_seconds=0.0001",
        "video.generator_learning_rate=1e-4",
        "video.measure_gradients_every=3",
    )
    assert fit(guided, whole, "video", *changes) == 0
    assert fit(guided, parts, "video", *changes, "run.pause_after_samples=16") == 0
    assert load_state(parts / "video" / "resume.safetensors", "video")[1]["num_steps"] == 2
    assert fit(guided, parts, "video", *changes) == 0
    (first, of_first), (second, of_second) = (
        load_state(out / "video" / "resume.safetensors", "video") for out in (whole, parts)
    )
    assert of_first == of_second
    assert (of_first["num_steps"], of_first["samples_seen"]) == (4, 32)
    assert differing(first, second) == []
    groups = {name.partition(".")[0] for name in first}
    assert groups == {"model", "average", "image_discriminator", "video_discriminator", "optimizer_generator",
                      "optimizer_image_discriminator", "optimizer_video_discriminator"}  # fmt: skip
    for name in ("last", "best"):
        assert (whole / "video" / f"{name}.safetensors").read_bytes() == (
            parts / "video" / f"{name}.safetensors"
        ).read_bytes()
    told = [
        [
            {
                k: v
                for k, v in line.items()
                if k in ("samples_seen", "loss", "image_r1", "image_gradient", "right_minus_wrong")
            }
            for line in found
        ]
        for out in (whole, parts)
        for found in (lines(out, "tick"), lines(out, "validation"))
    ]
    assert told[0] == told[2] and len(told[0]) == 4
    assert told[1] == told[3] and len(told[1]) == 2
    assert of_first["best"] == pytest.approx(max(line["right_minus_wrong"] for line in told[1]))
    model, header = load_model(whole / "video" / "last.safetensors")
    assert (header.stage, header.samples_seen) == ("video", 32)
    assert header.classes == tuple(sorted(paired.CLASSES))
    kept = {name.removeprefix("average."): one for name, one in first.items() if name.startswith("average.")}
    assert differing(model.state_dict(), kept) == []


def test_a_validation_shows_videos_with_sound_and_measures_whether_it_matters(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.num_shown=2", "video.validation_samples=8")
    reader.close()
    measures = stage.validate()
    assert measures["num_clips"] == 8
    assert measures["num_classes"] == 4
    for name in ("agreement_right", "agreement_wrong", "right_minus_wrong", "retrieval_at_1", "change_in_time"):
        assert measures[f"{name}_low"] <= measures[name] <= measures[f"{name}_high"], name
    assert measures["right_minus_wrong"] == pytest.approx(measures["agreement_right"] - measures["agreement_wrong"])
    assert stage.best == measures["right_minus_wrong"]
    model, header = load_model(stage.folder / "best.safetensors")
    assert header.samples_seen == 0
    assert differing(model.state_dict(), stage.average.state_dict()) == []
    shown = sorted((stage.folder / "samples").iterdir())
    assert [path.suffix for path in shown] == [".mp4", ".mp4", ".png"]
    strip = cv2.imread(str(stage.folder / "samples" / "0000000000.png"))
    assert strip.shape == (2 * SIDE_PX, 8 * SIDE_PX, 3)
    for path in shown[:2]:
        assert path.name.startswith("0000000000-validation-")
        with av.open(path) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(path) as container:
            sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
        assert (len(frames), frames[0].shape) == (10, (SIDE_PX, SIDE_PX, 3))  # a second, ten frames of it
        assert sound.shape[1] == pytest.approx(44_100, abs=3000)
        label = path.stem.split("-")[2]
        spectrum = np.abs(np.fft.rfft(sound[0]))
        assert spectrum.argmax() * 44_100 / sound.shape[1] == pytest.approx(paired.TONES_HZ[label], rel=0.04)
    assert stage.validate() == pytest.approx(measures, abs=1e-4)  # read, drawn and embedded anew: up to rounding


def test_nothing_is_measured_where_there_is_nothing_to_compare(
    guided: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.validation_samples=1")
    reader.close()
    assert stage.validate() == {}
    assert "whether the sound matters is not measured: too little to compare: 1 labelled clips" in caplog.text
    assert stage.best is None
    assert len(list((stage.folder / "samples").glob("*.mp4"))) == 1


def test_a_loss_that_is_not_finite_changes_nothing(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = first_batch(reader)
    stage.step(batch)
    before, numbers = copied(stage.tensors()), stage.numbers()
    stage.phases[0].optimizer.param_groups[0]["lr"] = math.inf
    with pytest.raises(
        FitError,
        match=r"video: the step of the phase generator left weights that are not finite after 8 samples in the batch of",
    ):
        stage.step(batch)
    assert differing(stage.tensors(), before) == []
    assert stage.numbers() == numbers
    assert not stage.model.inversion.training


def test_the_command_leaves_a_checkpoint_of_before(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    save_inverted(guided, out)
    assert fit(guided, out, "video", *FAST, "video.block_learning_rate=1e30") == 1
    said = capsys.readouterr().err
    assert "failed: video: the step of the phase generator left weights that are not finite" in said
    assert "the same command goes on from it" in said
    tensors, values = load_state(out / "video" / "resume.safetensors", "video")
    assert values["samples_seen"] == 8 * values["num_steps"]
    assert all(bool(one.isfinite().all()) for one in tensors.values())
    assert fit(guided, out, "video", *FAST, "video.num_samples=8") == 0
    assert load_state(out / "video" / "resume.safetensors", "video")[1]["samples_seen"] == 8


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


def test_a_batch_of_one_clip_is_learned_from(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.batch_size=1", "video.r1_every=1")
    told = stage.step(first_batch(reader))
    assert all(map(math.isfinite, told.values()))
    assert stage.samples_seen == 1


def test_it_begins_with_what_invert_and_prior_left(guided: Path, tmp_path: Path) -> None:
    path = save_inverted(guided, tmp_path)
    stage, reader = stage_of(guided, tmp_path)
    reader.close()
    inverted, _ = load_model(path)
    assert differing(stage.model.inversion.state_dict(), inverted.inversion.state_dict()) == []
    assert differing(stage.model.generator.state_dict(), inverted.generator.state_dict()) == []
    assert differing(stage.average.state_dict(), stage.model.state_dict()) == []
    judge = read_generator_file(guided / "generator.safetensors").discriminator().state_dict()
    assert stage.contest.image is not None
    assert differing(stage.contest.image.state_dict(), judge) == []
    anew, reader = stage_of(guided, tmp_path, "video.image_discriminator_from_prior=false")
    reader.close()
    assert anew.contest.image is not None
    assert "b16.conv0.weight" in differing(anew.contest.image.state_dict(), judge)


def test_a_model_of_other_settings_or_none_is_refused(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "video") == 2
    assert "invert/best.safetensors is not there: run the stage invert before this one" in capsys.readouterr().err
    path = save_inverted(guided, out)
    for change, said in (
        ("invert.backbone=test_convnext", "backbone was test_resnet, is test_convnext"),
        ("reader.num_frames=3", "num_frames was 2, is 3"),
        ("reader.window_seconds=0.5", "window_seconds was 1.0, is 0.5"),
        ("invert.truncation=0.5", "truncation was 0.7, is 0.5"),
    ):
        assert fit(guided, out, "video", change) == 2
        assert f"{path} is of another model ({said})" in capsys.readouterr().err
    recipe, run = prepared(guided, out, "video.blocks=one", "video.hidden_width=8")  # these are the stage's own
    assert len(start_model(recipe, run)[0].blocks) == 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        start_model(recipe, run)


def test_half_precision_learns_and_keeps_its_weights_whole(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "run.precision=bf16", THREE)
    before = copied(stage.tensors())
    assert stage.model.generator.synthesis.half_dtype == torch.bfloat16
    measures = stage.step(first_batch(reader))
    assert all(math.isfinite(value) for value in measures.values())
    after = stage.tensors()
    assert {one.dtype for one in after.values() if one.is_floating_point()} == {torch.float32}
    assert not torch.equal(before["model.blocks.0.residual.weight"], after["model.blocks.0.residual.weight"])
