"""The student of the packaged picture encoder: it learns to see as its teacher does, and gradients pass through it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError, FitError
from tests.trainer.guided import PACKAGED, SIDE_PX, copied, differing, fit, lines, prepared
from trainer.engine.checkpoint import load_state
from trainer.invert.shared import clip_reader, generator_file
from trainer.invert.student import (
    METADATA_KEY,
    Student,
    StudentConfig,
    load_student,
    save_student,
    teacher_embeddings,
)
from trainer.invert.student_stage import StudentStage
from trainer.streaming.reader import Reader

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

CHANGES = (*PACKAGED, "invert.guide={sound_kind = 'small', num_cutouts = 2}")


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[StudentStage, Reader]:
    recipe, run = prepared(folder, out, *CHANGES, *changes)
    reader = clip_reader(recipe, run, "train", recipe.student.batch_size, SIDE_PX)
    return StudentStage(recipe, run, generator_file(recipe, run.folder).generator()), reader


def test_it_learns_to_see_as_its_teacher_does(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "student.num_samples=400", "student.learning_rate=5e-3")
    generator = copied(stage.generator.state_dict())
    before = {name: one.detach().clone() for name, one in stage.student.named_parameters()}
    first = stage.validate()
    while stage.samples_seen < 320:
        for batch in reader:
            told = stage.step(batch)
    last = stage.validate()
    assert set(first) == {"frame_cosine", "generated_cosine"}
    assert last["frame_cosine"] > first["frame_cosine"] + 0.1
    assert last["frame_cosine"] > 0.8
    assert told["loss"] == pytest.approx(1 - told["cosine"], abs=1e-5)  # float32, and near 0
    assert [name for name, one in stage.student.named_parameters() if torch.equal(one, before[name])] == []
    assert differing(stage.generator.state_dict(), generator) == []
    # always the same pictures; others would move it by a hundredth, rounding by some 1e-7
    assert stage.validate() == pytest.approx(last, abs=1e-5)
    stage.close()
    reader.close()


def test_what_it_is_taught_is_what_the_teacher_says_of_each_picture(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = next(iter(reader))
    reader.close()
    frames_NCHW = batch.frames_BTCHW.flatten(0, 1)
    wanted = torch.cat([stage.teacher.embed_frames(one[None, None]) for one in frames_NCHW])
    assert torch.allclose(teacher_embeddings(stage.teacher, frames_NCHW.float() / 127.5 - 1), wanted, atol=1e-6)


def test_half_of_a_step_is_generated(guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, reader = stage_of(guided, tmp_path, "student.generated_share=0.5")
    batch = next(iter(reader))
    reader.close()
    asked = []
    drawn = stage.generated

    def noted(count: int) -> Tensor:
        asked.append(count)
        return drawn(count)

    monkeypatch.setattr(stage, "generated", noted)
    seen = stage._pictures(batch)
    assert asked == [16]  # as many as there are frames: 8 clips of 2
    assert seen.shape[:2] == (32, 3)
    stage.settings = stage.settings.model_copy(update={"generated_share": 0.0})
    assert len(stage._pictures(batch)) == 16
    styles = drawn(64)
    assert styles.shape == (64, 3, SIDE_PX, SIDE_PX)
    assert float(styles.abs().max()) <= 1
    assert float(styles.std(0).mean()) > 0.01


def test_a_fit_in_two_runs_is_the_same_as_in_one(guided: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = (*CHANGES, "run.tick_seconds=0.0001", "student.validate_every_samples=8")
    assert fit(guided, whole, "student", *changes) == 0
    assert fit(guided, parts, "student", *changes, "run.pause_after_samples=8") == 0
    assert load_state(parts / "student" / "resume.safetensors", "student")[1]["num_steps"] == 1
    assert fit(guided, parts, "student", *changes) == 0
    (first, of_first), (second, of_second) = (
        load_state(out / "student" / "resume.safetensors", "student") for out in (whole, parts)
    )
    assert (of_first["num_steps"], of_first["samples_seen"]) == (2, 16)
    assert of_first == of_second
    assert differing(first, second) == []
    files = [load_file(out / "student" / "last.safetensors") for out in (whole, parts)]
    assert differing(*files) == []
    told = [[(line["samples_seen"], line["cosine"]) for line in lines(out, "tick")] for out in (whole, parts)]
    assert told[0] == told[1] and [seen for seen, _ in told[0]] == [8, 16]


def test_with_an_open_clip_model_there_is_nothing_to_do(guided: Path, tmp_path: Path) -> None:
    assert fit(guided, tmp_path / "run", "student") == 0
    assert not (tmp_path / "run" / "student").exists()


def test_a_loss_that_is_not_finite_changes_nothing(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batches = iter(reader)
    stage.step(next(batches))
    before, numbers = copied(stage.tensors()), stage.numbers()
    with torch.no_grad():
        stage.generator.w_avg.fill_(math.nan)  # what it draws is no picture any more
    with pytest.raises(
        FitError, match=r"student: the loss of the phase student is not finite .* after 8 samples in the batch of"
    ):
        stage.step(next(batches))
    assert differing(stage.tensors(), before) == []
    assert stage.numbers() == numbers
    reader.close()


def test_a_batch_without_a_sample_changes_nothing(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path)
    batch = next(iter(reader))
    reader.close()
    before = copied(stage.tensors())
    nothing = {
        name: value[:0] for name in ("keys", "datasets", "source_ids", "labels", "captions", "frames_BTCHW", "sounds_BN",
                                     "mels_BMT", "seconds_B") if (value := getattr(batch, name)) is not None
    }  # fmt: skip
    assert stage.step(dataclasses.replace(batch, **nothing)) == {}
    assert stage.samples_seen == 0
    assert differing(stage.tensors(), before) == []


def small_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(StudentConfig(teacher_id="teacher", width=6, backbone="test_resnet", side_px=16)).eval()


def test_a_student_of_a_file_sees_the_same(tmp_path: Path) -> None:
    student = small_student()
    save_student(tmp_path / "a.safetensors", student)
    loaded = load_student(tmp_path / "a.safetensors", "teacher").eval()
    assert differing(dict(loaded.state_dict()), dict(student.state_dict())) == []
    assert loaded.config == student.config
    pictures = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        rows = student(pictures)
        assert torch.allclose(loaded(pictures), rows, atol=1e-5)  # equal weights elsewhere in memory: up to rounding
    assert rows.shape == (2, 6)
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_a_student_of_another_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_student(path, small_student())
    with pytest.raises(
        CheckpointError, match=f"{path} learned from teacher, and the picture encoder is another; remove"
    ):
        load_student(path, "another")


def test_no_student_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student" / "last.safetensors"
    with pytest.raises(CheckpointError, match=f"{path} is not there: .* run the stage student before this one"):
        load_student(path, "teacher")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "header", "weights", "backbone"])
def test_a_damaged_student_is_refused_by_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_student(path, small_student())
    tensors = copied(load_file(path))
    config = small_student().config
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "foreign":
        save_file(tensors, path)
    elif damage == "header":
        save_file(tensors, path, {METADATA_KEY: '{"width": 0}'})
    elif damage == "weights":
        tensors.popitem()
        save_file(tensors, path, {METADATA_KEY: config.model_dump_json()})
    else:
        changed = config.model_copy(update={"backbone": "resnet1800"})
        save_file(tensors, path, {METADATA_KEY: changed.model_dump_json()})
    from pipeline.errors import EncoderError

    with pytest.raises((CheckpointError, EncoderError)) as caught:
        load_student(path, "teacher")
    assert str(path) in str(caught.value) or (damage == "backbone" and "resnet1800" in str(caught.value))
