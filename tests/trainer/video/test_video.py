"""The video stage, for real: blocks, encoder and both discriminators, on a dataset read from its shards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, FitError
from tests import paired
from tests.trainer.guided import SIDE_PX, copied, differing, fit, lines, prepared
from tests.trainer.sounding import GENERATOR
from trainer.align.frozen_encoders import OpenClipPartner
from trainer.engine.checkpoint import load_state
from trainer.engine.phases import learn
from trainer.invert.guide import clip_loss
from trainer.invert.shared import clip_reader, generator_file, model_config
from trainer.model.load import load_discriminator
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import SoundVideoHeader, load_model, save_model
from trainer.streaming.batches import Batch
from trainer.streaming.reader import Reader
from trainer.video.stage import Video, start_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

THREE = "reader.num_frames=3"
"""With two segments a block makes one step, and has nothing to remember."""
FAST = ("video.validation_samples=8", "video.num_shown=1")


def save_inverted(folder: Path, out: Path, *changes: str) -> Path:
    """What the invert stage leaves in a run; its encoder has learned nothing, but it is loud."""
    recipe, _ = prepared(folder, out, *changes)
    torch.manual_seed(5)
    model = SoundVideoModel(model_config(recipe), generator_file(recipe, out).generator())
    for head in model.inversion.heads:
        assert isinstance(head, nn.Sequential)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, 0, 0.1)
    header = SoundVideoHeader(stage="invert", model=model.config, generator=GENERATOR)
    path = out / "invert" / "best.safetensors"
    path.parent.mkdir(parents=True)
    save_model(path, header, model)
    return path


def stage_of(folder: Path, out: Path, *changes: str) -> tuple[Video, Reader]:
    if not (out / "invert").exists():
        save_inverted(folder, out, *(change for change in changes if change.startswith(("reader.", "invert."))))
    recipe, run = prepared(folder, out, *changes)
    model, held = start_model(recipe, run)
    reader = clip_reader(recipe, run, "train", recipe.video.batch_size, SIDE_PX)
    return Video(recipe, run, model, held), reader


def first_batch(reader: Reader) -> Batch:
    batch = next(iter(reader))
    reader.close()
    return batch


def named_parameters(networks: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.{path}": one for name, network in networks.items() for path, one in network.named_parameters()}


@pytest.mark.parametrize("tuned", [False, True])
def test_what_learns_gets_gradients_and_moves_and_the_rest_does_not(guided: Path, tmp_path: Path, tuned: bool) -> None:
    change = "video.generator_learning_rate=" + ("1e-3" if tuned else "null")
    stage, reader = stage_of(guided, tmp_path, change, "video.spliced_share=1.0", THREE)
    model, contest = stage.model, stage.contest
    assert contest.image is not None and contest.video is not None
    assert isinstance(stage.guide.partner, OpenClipPartner)
    learning: dict[str, nn.Module] = {
        "blocks": model.blocks, "inversion": model.inversion, "image": contest.image, "video": contest.video,
    }  # fmt: skip
    frozen: dict[str, nn.Module] = {"encoder": stage.guide.partner.encoder.model, "mapping": model.generator.mapping}
    (learning if tuned else frozen)["synthesis"] = model.generator.synthesis
    held = {name: copied(network.state_dict()) for name, network in frozen.items()}
    named = named_parameters(learning)
    started = copied(dict(named))
    had: set[str] = set()
    batch = first_batch(reader)
    for _ in range(3):
        stage.step(batch)
        had |= {name for name, one in named.items() if one.grad is not None and bool(one.grad.any())}
    # noise of StyleGAN2 is constant while it generates here, but its strength learns all the same
    assert set(named) - had == set()
    assert [name for name, one in named.items() if torch.equal(one, started[name])] == []
    for name, network in frozen.items():
        assert differing(network.state_dict(), held[name]) == [], name
        assert [one.grad for one in network.parameters() if one.grad is not None] == [], name
    assert [phase.name for phase in stage.phases] == [
        "generator", "image_discriminator", "image_r1", "video_discriminator", "video_r1",
    ]  # fmt: skip
    owned = [{id(one) for one in phase.parameters} for phase in stage.phases]
    assert owned[1] == owned[2] == {id(one) for one in stage.networks()["image_discriminator"].parameters()}
    assert owned[3] == owned[4] == {id(one) for one in stage.networks()["video_discriminator"].parameters()}
    assert owned[0] | owned[1] | owned[3] == {id(one) for one in named.values()}
    assert stage.samples_seen == 24


def test_an_encoder_that_is_to_stay_stays(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.inversion_learning_rate=null", THREE)
    before = copied(dict(stage.model.inversion.named_parameters()))
    blocks = copied(stage.model.blocks.state_dict())
    stage.step(first_batch(reader))
    assert differing(dict(stage.model.inversion.named_parameters()), before) == []
    assert differing(stage.model.blocks.state_dict(), blocks) == list(blocks)


def test_phases_are_run_when_it_is_their_turn(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.r1_every=2")
    batch = first_batch(reader)
    counts = []
    for _ in range(3):
        stage.step(batch)
        tensors = stage.tensors()
        counts.append([int(tensors[f"optimizer_{name}.0.step"]) for name in ("generator", "image_discriminator")])
    assert counts == [[1, 2], [2, 3], [3, 5]]  # R1 in the first and the third step


def test_pictures_come_to_fit_the_sound(guided: Path, tmp_path: Path) -> None:
    alone = ("video.image_weight=0", "video.video_weight=0", "video.block_learning_rate=3e-3",
             "video.inversion_learning_rate=3e-3")  # fmt: skip
    stage, reader = stage_of(guided, tmp_path, *alone)
    batch = first_batch(reader)
    told = [dict(stage.step(batch)) for _ in range(16)]
    assert set(told[0]) == {"image_loss", "video_loss", "guide_loss", "loss"}
    first, last = (sum(one["guide_loss"] for one in some) / 3 for some in (told[:3], told[-3:]))
    assert last < first - 0.1
    assert all(one["loss"] == pytest.approx(stage.settings.guide_weight * one["guide_loss"]) for one in told)


def test_the_discriminators_learn_to_tell_what_is_generated(guided: Path, tmp_path: Path) -> None:
    still = ("video.block_learning_rate=1e-20", "video.inversion_learning_rate=null", "video.augment=null",
             "video.r1_gamma=0", "video.guide_weight=0", "video.discriminator_learning_rate=5e-3")  # fmt: skip
    stage, reader = stage_of(guided, tmp_path, *still)
    batch = first_batch(reader)
    told = [dict(stage.step(batch)) for _ in range(8)]
    for name in ("image_discriminator_loss", "video_discriminator_loss"):
        assert told[-1][name] < told[0][name] - 0.2, name
    assert told[-1]["image_loss"] > told[0]["image_loss"]  # what generates is the worse off


ABLATIONS = {
    "guide": ("video.guide_weight=0", {"guide_loss"}),
    "image": ("video.image_weight=0", {"image_loss"}),
    "video": ("video.video_weight=0", {"video_loss"}),
}


@pytest.mark.parametrize("left_out", ABLATIONS)
def test_each_loss_can_be_left_out(guided: Path, tmp_path: Path, left_out: str) -> None:
    change, nothing = ABLATIONS[left_out]
    stage, reader = stage_of(guided, tmp_path, change)
    batch = first_batch(reader)
    told = [dict(stage.step(batch)) for _ in range(2)][-1]
    assert getattr(stage.contest, left_out) is None
    assert {name for name in ("image_loss", "video_loss", "guide_loss") if told[name] == 0} == nothing
    judges = {name for name in ("image", "video") if f"{name}_discriminator" in stage.networks()}
    assert judges == {"image", "video"} - {left_out}
    assert {name for name in ("image", "video") if f"{name}_discriminator_loss" in told} == judges
    assert {name for name in ("image", "video") if f"optimizer_{name}_discriminator" in stage.optimizers()} == judges
    assert {name for name in ("image", "video") if f"{name}_r1" in told} == judges
    weights = stage.settings
    wanted = (
        weights.image_weight * told["image_loss"]
        + weights.video_weight * told["video_loss"]
        + weights.guide_weight * told["guide_loss"]
    )
    assert told["loss"] == pytest.approx(wanted, rel=1e-5)


def test_one_block_for_all_layers_learns_too(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.blocks=one", THREE)
    assert len(stage.model.blocks) == 1
    before = copied(dict(stage.model.blocks.named_parameters()))
    stage.step(first_batch(reader))
    assert differing(dict(stage.model.blocks.named_parameters()), before) == list(before)


def test_a_recipe_that_learns_nothing_is_refused(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ("video.guide_weight=0", "video.image_weight=0", "video.video_weight=0")
    assert fit(guided, tmp_path, "video", *nothing) == 2
    assert "guide_weight, image_weight and video_weight are all 0: nothing would be learned" in capsys.readouterr().err


def test_the_guide_asks_every_frame_for_the_sound_it_has(guided: Path, tmp_path: Path) -> None:
    alike = ("invert.guide.smallest_cutout=1.0", "invert.guide.num_cutouts=1", "video.spliced_share=1.0")
    save_inverted(guided, tmp_path)
    stage, reader = stage_of(guided, tmp_path, *alike)
    clips = stage._clips(first_batch(reader))
    contest, invert = stage.contest, stage.recipe.invert
    torch.manual_seed(0)
    with torch.no_grad():
        styles = contest.walked(clips)
        pictures = contest.drawn(styles)
        found = float(contest._guided(styles, pictures, clips))
        sums = [0.0, 0.0]
        for step in range(2):
            seen = stage.guide.looking.look(pictures[:, step].clamp(-1, 1))[None]
            sums[0] += float(clip_loss(seen, clips.sounds_BTD[:, step]).mean()) / 2
            sums[1] += float(clip_loss(seen, clips.texts_BTD[:, step]).mean()) / 2
        far = float((styles - stage.model.w_avg).square().mean())
    assert found == pytest.approx(
        invert.sound_weight * sums[0] + invert.text_weight * sums[1] + invert.style_weight * far, rel=1e-4
    )


def test_a_spliced_clip_has_the_sound_of_another_from_the_change_on(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.spliced_share=1.0")
    batch = first_batch(reader)
    spliced = stage._clips(batch)
    stage.settings = stage.settings.model_copy(update={"spliced_share": 0.0})
    plain = stage._clips(batch)
    other = [*range(1, 8), 0]
    assert torch.equal(plain.sounds_BTD, plain.own_BD[:, None].expand(-1, 2, -1))
    assert torch.equal(plain.other_BD, plain.own_BD[other])
    # of two segments, the second is the only one that can change
    for name in ("segments_BTMS", "sounds_BTD", "texts_BTD"):
        before, after = getattr(plain, name), getattr(spliced, name)
        assert torch.equal(after[:, 0], before[:, 0]), name
        assert torch.equal(after[:, 1], before[other, 1]), name
    assert torch.equal(spliced.own_BD, plain.own_BD)
    apart = [batch.labels[one] != batch.labels[two] for one, two in enumerate(other)]
    assert plain.differs_B.tolist() == apart
    assert any(apart)
    parts = list(spliced.split(3))
    assert [len(part.reals_BTCHW) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.other_BD for part in parts]), spliced.other_BD)
    assert [len(part.own_BD) for part in spliced.split(None)] == [8]


def test_a_real_clip_with_a_sound_of_another_class_counts_against_the_discriminator(
    guided: Path, tmp_path: Path
) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.augment=null", "video.mismatch_weight=0.5")
    clips = stage._clips(first_batch(reader))
    contest = stage.contest
    assert contest.video is not None
    nn.init.normal_(contest.video.hear.weight)  # so that it hears more than a new one

    def loss(clips: object, weight: float) -> float:
        contest.settings = stage.settings.model_copy(update={"mismatch_weight": weight})
        torch.manual_seed(0)
        return float(contest.discriminate_videos(clips).loss.detach())  # type: ignore[arg-type]

    with torch.no_grad():
        said = contest.video(clips.reals_BTCHW, clips.other_BD)[:, 0]
    wanted = float((nn.functional.softplus(said) * clips.differs_B).mean())
    assert wanted > 0.05
    assert loss(clips, 0.5) - loss(clips, 0.0) == pytest.approx(0.5 * wanted, rel=1e-4)
    alike = dataclasses.replace(clips, differs_B=torch.zeros(8, dtype=torch.bool))
    assert loss(alike, 0.5) == pytest.approx(
        loss(clips, 0.0), rel=1e-5
    )  # one asks more of the network, in other batches


def test_a_discriminator_that_does_not_hear(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.hears=false")
    assert stage.contest.video is not None and stage.contest.video.sound_width == 0
    told = stage.step(first_batch(reader))
    assert math.isfinite(told["video_discriminator_loss"])


def test_the_average_follows_the_model(guided: Path, tmp_path: Path) -> None:
    stage, reader = stage_of(guided, tmp_path, "video.ema_half_life=8", "video.ema_ramp_up=0.5")
    batch = first_batch(reader)
    stage.step(batch)
    first = copied(dict(stage.average.named_parameters()))
    model = dict(stage.model.named_parameters())
    assert differing(model, first) == []
    stage.step(batch)
    # 8 seen before, so that the half-life is 4, and 8 new ones weigh 3/4
    for name, one in stage.average.named_parameters():
        assert torch.allclose(one, 0.25 * first[name] + 0.75 * model[name], atol=1e-6), name
    assert differing(dict(stage.average.named_buffers()), dict(stage.model.named_buffers())) == []


def test_micro_batches_change_no_gradient(guided: Path, tmp_path: Path) -> None:
    # no batch norm, the same style for every latent, no augmentation, the whole picture as every cutout, no weights on noise
    alike = ("invert.backbone=test_convnext", "invert.truncation=1e-9", "invert.guide.smallest_cutout=1.0")
    plain = ("video.image_weight=0", "video.augment=null", "video.r1_gamma=0")
    found = []
    for size in ("none", "3"):
        out = tmp_path / size
        save_inverted(guided, out, *alike)
        stage, reader = stage_of(guided, out, *alike, *plain, f"video.micro_batch_size={size}")
        for block in stage.model.blocks:
            block.cell.weight_ih.data[:, -stage.model.config.noise_width :] = 0  # type: ignore[union-attr,operator,index]
        clips = stage._clips(first_batch(reader))
        parts = [(part, len(part.own_BD) / 8) for part in clips.split(stage.settings.micro_batch_size)]
        told = learn(stage.phases[0], parts, list(stage.networks().values()), torch.device("cpu"), lambda: "here")
        gradients: list[Tensor] = []
        for name, one in [*stage.model.blocks.named_parameters(), *stage.model.inversion.named_parameters()]:
            assert one.grad is not None
            width = stage.model.config.noise_width
            gradients.append((one.grad[:, :-width] if name.endswith("weight_ih") else one.grad).flatten())
        found.append((torch.cat(gradients), told))
    assert float((found[0][0] - found[1][0]).abs().max()) < 1e-4 * float(found[0][0].abs().max())
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


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
            {k: v for k, v in line.items() if k in ("samples_seen", "loss", "image_r1", "right_minus_wrong")}
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
    stage.phases[0].optimizer.param_groups[0]["lr"] = math.inf  # this step goes well, what is drawn then does not
    with pytest.raises(
        FitError,
        match=r"video: the loss of the phase image_discriminator is not finite .* after 8 samples in the batch of",
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
    assert "failed: video: the loss of the phase" in said
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
    judge = load_discriminator(guided / "generator.safetensors").state_dict()
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


def test_frames_and_segments_of_a_short_clip_belong_together(guided: Path, tmp_path: Path) -> None:
    """Clips of a second in a window of three: the sound of every segment is there, not silence from the second one on."""
    window = ("reader.window_seconds=3.0", THREE)
    stage, reader = stage_of(guided, tmp_path, *window, "video.spliced_share=0", "invert.augment.num_masks=0",
                             "invert.augment.mix_probability=0", "invert.augment.min_crop=1")  # fmt: skip
    batch = first_batch(reader)
    assert batch.seconds_B.tolist() == pytest.approx([paired.SECONDS] * 8)
    segments = stage._clips(batch).segments_BTMS
    third = segments.shape[3] // 3
    assert (segments[:, :, :, : third - 2].amax(2) > 0.5).all()  # a tone in each
    assert not segments[:, :, :, third + 5 :].any()


def test_r1_of_frames_is_their_mean_whatever_their_number(guided: Path, tmp_path: Path) -> None:
    """By hand: |dD(x) / dx|² of every judged frame, one after the other."""
    stage, reader = stage_of(guided, tmp_path, "video.augment=null", "video.judged_frames=2")
    clips = stage._clips(first_batch(reader))
    contest = stage.contest
    assert contest.image is not None
    torch.manual_seed(0)
    found = contest.r1_images(clips)
    frames = clips.reals_BTCHW[:, torch.randperm(2)].flatten(0, 1)
    lengths = []
    for first in range(0, len(frames), contest.image.b4.group_size):
        # which frames are compared with each other is left as it was
        inputs = frames.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(contest.image(inputs).sum(), inputs)
        lengths += gradient[first : first + contest.image.b4.group_size].square().flatten(1).sum(1).tolist()
    wanted = sum(lengths) / len(lengths)
    torch.manual_seed(0)
    assert len(lengths) == 16
    assert found.measures["image_r1"] == pytest.approx(wanted, rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(wanted * stage.settings.r1_gamma / 2, rel=1e-4)
