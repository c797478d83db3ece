"""The video stage learns from the codes of its clips' own frames."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests.trainer.guided import copied, differing, fit
from tests.trainer.sounding import tone
from tests.trainer.video.stages import THREE, first_batch, stage_of
from trainer.model.fast_path import Moves, principal_directions
from trainer.model.sound_video_file import load_model
from trainer.rendering.sound_to_video import GenerateSettings, generate
from trainer.streaming.batches import Batch
from trainer.video.motion import motion_loss, movement
from trainer.video.settings import VideoSettings
from trainer.video.stage import Video

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

CODES = "video.codes={draws = 3, alone_share = 0.5}"


def test_at_first_codes_alone_teach_and_then_everything(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    stage, reader = stage_of(guided, tmp_path, *coded, CODES, THREE, "video.num_samples=16")
    batches = list(reader)
    reader.close()
    judges = {"image": stage.contest.image, "video": stage.contest.video}
    before = {name: copied(judge.state_dict()) for name, judge in judges.items() if judge is not None}
    blocks = copied(stage.model.blocks.state_dict())
    first = dict(stage.step(batches[0]))
    assert set(first) == {"code_loss", "loss"}
    for name, judge in judges.items():
        assert judge is not None and differing(judge.state_dict(), before[name]) == []
    assert differing(stage.model.blocks.state_dict(), blocks) != []
    second = stage.step(batches[1])
    assert {"code_loss", "image_loss", "video_loss", "guide_loss", "video_discriminator_loss"} <= set(second)


def test_walks_come_near_the_codes(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    wanted = ("video.num_samples=100000", "video.inversion_learning_rate=1e-3", "video.block_learning_rate=3e-3")
    stage, reader = stage_of(guided, tmp_path, *coded, CODES, THREE, *wanted)
    batch = first_batch(reader)
    losses = [stage.step(batch)["code_loss"] for _ in range(40)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_a_step_is_the_same_in_micro_batches(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    after = []
    alone = "video.codes={draws = 3, alone_share = 1.0}"
    for size in ("none", "3"):
        stage, reader = stage_of(guided, tmp_path / size, *coded, alone, THREE, f"video.micro_batch_size={size}")
        stage.step(first_batch(reader))
        after.append(copied(stage.model.blocks.state_dict()))
    for name, one in after[0].items():
        torch.testing.assert_close(one, after[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_run_ends_with_a_model(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    assert fit(guided, tmp_path, "invert,video", *coded, CODES) == 0
    model, _ = load_model(tmp_path / "video" / "last.safetensors")
    assert model.config.latent_width == 4


MOTION = "video.motion={frames = 4, fps = 8.0, width = 8, learning_rate = 1e-2}"


def motion_stage(guided: Path, out: Path, *wanted: str) -> tuple[Video, Batch]:
    stage, reader = stage_of(guided, out, *wanted, CODES, MOTION, THREE, "video.num_samples=100000")
    assert stage.model.motion is not None and stage.frame_codes is not None
    batch = brightening(first_batch(reader))
    bursts = stage._bursts(batch)
    moved = movement(stage._codes(bursts)).flatten(0, 1)
    stage.model.motion.directions_KLD = principal_directions(moved, 16)
    return stage, batch


def test_the_fast_path_learns_how_the_codes_move(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    stage, batch = motion_stage(guided, tmp_path, *coded, "video.spliced_share=0")
    assert stage.model.motion is not None
    before = copied(stage.model.motion.state_dict())
    losses = [stage.step(batch)["motion_loss"] for _ in range(40)]
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
    assert set(differing(stage.model.motion.state_dict(), before)) == set(before) - {"directions_KLD"}


def test_clips_that_are_spliced_teach_no_motion() -> None:
    real = torch.zeros(3, 4, 2)
    real[0] = torch.linspace(0, 1, 4)[:, None]
    real[1] = torch.linspace(0, 100, 4)[:, None]
    still, sure, whole = torch.zeros_like(real), torch.ones_like(real), torch.tensor([True, False, True])
    gap, unlikely = motion_loss(Moves(still, sure), torch.zeros(2), real, whole)
    left = torch.linspace(0, 1, 4) - 0.5
    assert float(gap) == pytest.approx(float(left.square().mean()) / 3)
    assert float(unlikely) == pytest.approx(float(left[1:].square().mean()) / 2 / 3)
    gap, unlikely = motion_loss(Moves(real + 5, sure), torch.zeros(2), real, whole)
    assert float(gap) == pytest.approx(0, abs=1e-6) == float(unlikely)


def brightening(batch: Batch) -> Batch:
    """The batch with neighbouring frames that become brighter: the clips of the dataset stand still."""
    brightness = torch.linspace(0.2, 1.0, 4)[:, None, None, None]
    return dataclasses.replace(batch, bursts_BKCHW=(batch.frames_BTCHW[:, :1] * brightness).to(torch.uint8))


def test_motion_is_the_same_in_micro_batches(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    after, losses = [], []
    for size in ("none", "3"):
        plain = ("video.spliced_share=0.5", f"video.micro_batch_size={size}")
        stage, batch = motion_stage(guided, tmp_path / size, *coded, *plain)
        losses.append(stage.step(batch)["motion_loss"])
        assert stage.model.motion is not None
        after.append(copied(stage.model.motion.state_dict()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, one in after[0].items():
        torch.testing.assert_close(one, after[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_half_precision_learns_motion(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    stage, batch = motion_stage(guided, tmp_path, *coded, "run.precision=bf16", "video.spliced_share=0")
    measures = [stage.step(batch) for _ in range(2)]
    assert all(math.isfinite(value) for one in measures for value in one.values())
    assert stage.model.motion is not None
    assert all(bool(one.isfinite().all()) for one in stage.model.motion.parameters())


def test_a_model_with_a_fast_path_is_fitted_saved_and_moves(
    guided: Path,
    tmp_path: Path,
    coded: tuple[str, ...],
) -> None:
    assert fit(guided, tmp_path, "invert,video", *coded, CODES, MOTION) == 0
    model, _ = load_model(tmp_path / "video" / "last.safetensors")
    assert model.config.motion_fps == 8.0 and model.motion is not None
    assert model.motion.directions_KLD.any()  # measured before the first step
    frames = list(generate(model, tone(400, 1.0), 44_100, GenerateSettings(fps=8.0)))
    assert len(frames) == 8


def test_motion_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="motion learns from the codes of neighbouring frames"):
        VideoSettings.model_validate({"motion": {}})
