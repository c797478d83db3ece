"""What the video stage learns from: its losses, its phases and the gradients of its networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import paired
from tests.trainer.guided import copied, differing, fit
from tests.trainer.video.stages import THREE, first_batch, named_parameters, save_inverted, stage_of
from trainer.align.frozen_encoders import OpenClipPartner
from trainer.invert.guide import clip_loss

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

ABLATIONS = {
    "guide": ("video.guide_weight=0", {"guide_loss"}),
    "image": ("video.image_weight=0", {"image_loss"}),
    "video": ("video.video_weight=0", {"video_loss"}),
}


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
    assert set(told[0]) == {"image_loss", "video_loss", "guide_loss", "loss", "guide_gradient"}
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


@pytest.mark.parametrize("left_out", ABLATIONS)
def test_each_loss_can_be_left_out(guided: Path, tmp_path: Path, left_out: str) -> None:
    change, nothing = ABLATIONS[left_out]
    stage, reader = stage_of(guided, tmp_path, change, "video.balance_gradients=false")
    batch = first_batch(reader)
    told = [dict(stage.step(batch)) for _ in range(2)][-1]
    assert getattr(stage.contest, left_out) is None
    assert {name for name in ("image_loss", "video_loss", "guide_loss") if told[name] == 0} == nothing
    judges = {name for name in ("image", "video") if f"{name}_discriminator" in stage.networks()}
    assert judges == {"image", "video"} - {left_out}
    assert {name for name in ("image", "video") if f"{name}_discriminator_loss" in told} == judges
    assert {name for name in ("image", "video") if f"optimizer_{name}_discriminator" in stage.optimizers()} == judges
    assert {name for name in ("image", "video") if f"{name}_r1" in told} == judges
    assert {name for name in ABLATIONS if f"{name}_gradient" in told} == set(ABLATIONS) - {left_out}
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
    contest.begin(clips)
    with torch.no_grad():
        styles = contest.walked(clips, contest.features(clips))[:, 0]
        pictures = contest.drawn(styles)
        found = float(contest._guided(styles, pictures, clips))
        sums = [0.0, 0.0]
        for step in range(2):
            seen = stage.guide.partner.look(pictures[:, step].clamp(-1, 1))[None]
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
    torch.testing.assert_close(
        plain.sounds_BTD, plain.own_sounds[:, None].expand(-1, 2, -1)
    )  # of the same rows, averaged
    assert torch.equal(plain.other_BD, plain.sounds_BTD[other, 0])
    # of two segments, the second is the only one that can change; the frames change with it
    for name in ("reals_BTCHW", "segments_BTMS", "sounds_BTD", "texts_BTD"):
        before, after = getattr(plain, name), getattr(spliced, name)
        assert torch.equal(after[:, 0], before[:, 0]), name
        assert torch.equal(after[:, 1], before[other, 1]), name
    both_BD = nn.functional.normalize(plain.own_sounds + plain.own_sounds[other], dim=1)
    torch.testing.assert_close(spliced.own_sounds, both_BD)
    assert not spliced.differs_B.any()  # half of such a clip is of the other sound
    apart = [batch.labels[one] != batch.labels[two] for one, two in enumerate(other)]
    assert plain.differs_B.tolist() == apart
    assert any(apart)
    parts = list(spliced.split(3))
    assert [len(part.reals_BTCHW) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.other_BD for part in parts]), spliced.other_BD)
    assert [len(part.own_sounds) for part in spliced.split(None)] == [8]


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
    """A step of the encoder, the blocks and the video discriminator. Random transforms are left out, which are drawn for each micro-batch,
    and the image discriminator, which compares pictures within one."""
    save_inverted(guided, tmp_path)
    gradients, measures = [], []
    for size in ("none", "3"):
        stage, reader = stage_of(
            guided,
            tmp_path,
            f"video.micro_batch_size={size}",
            "video.augment=null",
            "video.image_weight=0",
            "video.r1_gamma=0",
        )
        measures.append(stage.step(first_batch(reader)))
        assert stage.contest.video is not None
        networks = (stage.model.blocks, stage.model.inversion, stage.contest.video)
        of_parameters = [one.grad for network in networks for one in network.parameters()]
        gradients.append(torch.cat([one.flatten() for one in of_parameters if one is not None]))
    assert len(gradients[0]) > 10_000
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-4 * float(gradients[0].abs().max())
    assert measures[1] == pytest.approx(measures[0], rel=1e-4)


def test_every_frame_is_drawn_once_in_a_step(guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With micro-batches, and with the phases of both discriminators."""
    stage, reader = stage_of(guided, tmp_path, "video.micro_batch_size=3")
    num_drawn: list[int] = []
    draw = stage.model.draw

    def counted(styles_BLD: Tensor) -> Tensor:
        num_drawn.append(len(styles_BLD))
        return draw(styles_BLD)

    monkeypatch.setattr(stage.model, "draw", counted)
    batch = first_batch(reader)
    stage.step(batch)
    assert sum(num_drawn) == len(batch) * stage.model.config.num_frames
    assert stage.contest.drawn_of == []


def test_frames_and_segments_of_a_short_clip_belong_together(guided: Path, tmp_path: Path) -> None:
    """Clips of a second in a window of three: the sound of every segment is there, not silence from the second one on."""
    window = ("reader.window_seconds=3.0", THREE)
    stage, reader = stage_of(guided, tmp_path, *window, "video.spliced_share=0", "invert.augment.num_masks=0",
                             "invert.augment.mix_probability=0", "invert.augment.min_crop=1", "invert.augment.max_gain_db=0")  # fmt: skip
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
    contest.begin(clips)
    found = contest.r1_images(clips)
    frames = clips.reals_BTCHW[:, contest.chosen_J].flatten(0, 1)
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
