"""The model from sound to styles to pictures: sound reaches every frame, and a file holds all of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError, EncoderError, GeneratorError
from tests.trainer.guided import differing
from tests.trainer.sounding import CONFIG, GENERATOR, random_model, saved_run, tone
from trainer.model.generator import GeneratorConfig, build_generator
from trainer.model.recurrent_block import START_PULL
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import (
    METADATA_KEY,
    SoundVideoHeader,
    find_model,
    load_model,
    save_model,
)
from trainer.model.stylegan3 import StyleGan3Synthesis

STEPS = CONFIG.num_frames
WINDOW = round(CONFIG.window_seconds * CONFIG.mel.sample_rate_hz)
SMALL_3 = GeneratorConfig(
    kind="stylegan3", resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8
)


@pytest.fixture(scope="module")
def model() -> SoundVideoModel:
    return random_model()


def one_block() -> SoundVideoModel:
    torch.manual_seed(1)
    config = CONFIG.model_copy(update={"blocks": "one"})
    return SoundVideoModel(config, build_generator(GENERATOR)).eval().requires_grad_(False)


def mels(seed: int, batch: int = 2) -> Tensor:
    """(B, S, M, T): segments."""
    return torch.rand(batch, STEPS, 128, 43, generator=torch.Generator().manual_seed(seed))


def latents(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, GENERATOR.z_dim, generator=torch.Generator().manual_seed(seed))


def noise(model: SoundVideoModel, seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, STEPS, model.num_noise, generator=torch.Generator().manual_seed(seed))


def differing_steps(one_BSLD: Tensor, other_BSLD: Tensor) -> list[int]:
    apart_BS = (one_BSLD - other_BSLD).abs().amax((2, 3)) > 1e-4
    assert torch.equal(apart_BS.any(0), apart_BS.all(0))  # alike in every clip
    return [step for step in range(one_BSLD.shape[1]) if bool(apart_BS[0, step])]


def test_sound_becomes_styles_becomes_pictures(model: SoundVideoModel) -> None:
    start = model.start(latents(0))
    num_layers = model.generator.num_ws
    assert start.base_BLD.shape == (2, num_layers, 16)
    inverted = model.invert(mels(0)[:, 0], start)
    walked = model.walk(mels(0), start, noise(model, 0))
    assert inverted.shape == start.base_BLD.shape
    assert walked.shape == (2, STEPS, num_layers, 16)
    assert model.draw(walked[:, -1]).shape == (2, 3, 16, 16)
    assert model.num_noise == 3 * CONFIG.noise_width
    assert model.segments_of(torch.rand(2, 128, 131)).shape == (2, STEPS, 128, 43)


def test_an_inversion_is_the_style_and_what_the_encoder_adds(model: SoundVideoModel) -> None:
    start = model.start(latents(0))
    offsets = model.inversion(mels(0)[:, 0], start.latent_BN)
    assert torch.equal(model.invert(mels(0)[:, 0], start), start.base_BLD + offsets)
    assert float(offsets.std()) > 0.1
    wanted = model.w_avg + CONFIG.truncation * (model.generator.mapping(latents(0)) - model.w_avg)
    assert torch.allclose(start.base_BLD, wanted, atol=1e-6)
    assert torch.allclose(model.start(latents(0), 1.0).base_BLD, model.generator.mapping(latents(0)), atol=1e-6)


def test_a_latent_gives_the_encoder_its_first_numbers_and_one_sound_several_pictures() -> None:
    torch.manual_seed(1)
    config = CONFIG.model_copy(update={"latent_width": 3, "truncation": 0.0})
    model = SoundVideoModel(config, build_generator(GENERATOR)).eval().requires_grad_(False)
    start = model.start(latents(0))
    assert torch.equal(start.latent_BN, latents(0)[:, :3])
    assert torch.equal(start.base_BLD, model.w_avg.expand_as(start.base_BLD))
    one, other = (model.invert(mels(0)[:, 0], model.start(latents(seed))) for seed in (0, 1))
    assert float((one - other).std()) > 0.01
    alike = latents(0).clone()
    alike[:, 3:] = 0
    assert torch.equal(model.invert(mels(0)[:, 0], model.start(alike)), one)


def test_groups_of_layers_have_heads_and_blocks_of_their_own(model: SoundVideoModel) -> None:
    sizes = [len(group) for group in model.generator.layer_groups]
    assert [block.num_layers for block in model.blocks] == sizes
    shapes = [head[-1].out_features for head in model.inversion.heads]
    assert shapes == [size * 16 for size in sizes]
    start, steady = model.start(latents(0)), noise(model, 0)
    before = model.walk(mels(0), start, steady)
    block = model.blocks[1]
    kept = block.pull.clone()
    block.pull += 1.0
    after = model.walk(mels(0), start, steady)
    block.pull.copy_(kept)
    moved_L = (before - after).abs().amax((0, 1, 3)) > 1e-6
    assert moved_L.nonzero()[:, 0].tolist() == list(model.generator.layer_groups.middle)


def test_a_walk_begins_at_the_inversion_of_the_first_segment(model: SoundVideoModel) -> None:
    start = model.start(latents(0))
    walked = model.walk(mels(0), start, noise(model, 0))
    assert torch.allclose(walked[:, 0], model.invert(mels(0)[:, 0], start), atol=1e-5)


def test_a_step_goes_half_way_to_the_segment_that_is_heard() -> None:
    model = random_model()
    for block in model.blocks:
        torch.nn.init.zeros_(block.residual.weight)
    start = model.start(latents(0))
    walked = model.walk(mels(0), start, noise(model, 0))
    wanted = model.invert(mels(0)[:, 1], start)
    assert torch.allclose(walked[:, 1], walked[:, 0] + START_PULL * (wanted - walked[:, 0]), atol=1e-5)


@pytest.mark.parametrize("blocks", ["three", "one"])
@pytest.mark.parametrize("step", range(STEPS))
def test_each_segment_is_heard_in_its_own_frame_and_later_ones(blocks: str, step: int) -> None:
    model = random_model() if blocks == "three" else one_block()
    start, steady = model.start(latents(0)), noise(model, 0)
    changed = mels(0)
    changed[:, step] = mels(1)[:, step]
    found = differing_steps(model.walk(mels(0), start, steady), model.walk(changed, start, steady))
    assert found == list(range(step, STEPS))


def test_noise_changes_every_frame_but_the_first(model: SoundVideoModel) -> None:
    start = model.start(latents(0))
    found = differing_steps(model.walk(mels(0), start, noise(model, 0)), model.walk(mels(0), start, noise(model, 1)))
    assert found == list(range(1, STEPS))


def test_a_gradient_reaches_every_part_that_learns() -> None:
    model = random_model()
    for one in model.inversion.parameters():
        if not one.any():  # the last scale of each residual block hides what is before it
            torch.nn.init.constant_(one, 0.5)
    model.requires_grad_(True)
    walked = model.walk(mels(0), model.start(latents(0)), noise(model, 0))
    model.draw(walked.flatten(0, 1)).square().mean().backward()
    named = [*model.inversion.named_parameters(), *model.blocks.named_parameters()]
    assert [name for name, one in named if one.grad is None or not bool(one.grad.any())] == []
    assert [one.grad for one in model.generator.mapping.parameters()] == [None] * 4


def test_one_block_carries_all_layers() -> None:
    model = one_block()
    assert [block.num_layers for block in model.blocks] == [model.generator.num_ws]
    assert model.num_noise == CONFIG.noise_width
    walked = model.walk(mels(0), model.start(latents(0)), noise(model, 0))
    assert walked.shape == (2, STEPS, model.generator.num_ws, 16)


def test_features_that_are_there_already_give_the_same_walk(model: SoundVideoModel) -> None:
    start, steady = model.start(latents(0)), noise(model, 0)
    features = torch.stack([model.inversion.features(mels(0)[:, step]) for step in range(STEPS)], 1)
    assert torch.allclose(model.carry(features, start, steady), model.walk(mels(0), start, steady), atol=1e-5)


def test_a_window_is_heard_when_generating_as_in_training(model: SoundVideoModel) -> None:
    sounds = torch.from_numpy(np.stack([tone(300, CONFIG.window_seconds), tone(2000, CONFIG.window_seconds, seed=1)]))
    in_training = model.segments_of(model.front_end(sounds))
    each = [model.segments_of_sound(sound) for sound in sounds]
    assert torch.allclose(in_training, torch.stack(each), atol=1e-5)
    both = model.segments_of_sound(sounds.flatten())
    assert torch.allclose(both, torch.cat(each), atol=1e-5)
    assert float((each[0] - each[1]).abs().max()) > 0.5


def test_segments_lie_one_after_another(model: SoundVideoModel) -> None:
    whole = torch.arange(131.0).expand(1, 128, -1)
    cut = model.segments_of(whole)
    assert [cut[0, step, 5, [0, -1]].tolist() for step in range(STEPS)] == [[0, 42], [43, 85], [86, 128]]


@pytest.mark.parametrize(
    ("samples", "segments"),
    [(1, 1), (WINDOW // 3, 1), (WINDOW // 3 + 1, 2), (WINDOW, 3), (WINDOW + 1, 4), (WINDOW * 5 // 3, 5)],
)
def test_a_last_window_that_is_not_whole_is_followed_by_silence(
    model: SoundVideoModel, samples: int, segments: int
) -> None:
    sound = torch.from_numpy(tone(500, samples / 44_100 + 0.1)[:samples])
    found = model.segments_of_sound(sound)
    assert found.shape == (segments, 128, 43)
    padded = torch.nn.functional.pad(sound, (0, -samples % WINDOW))
    assert torch.allclose(found, model.segments_of_sound(padded)[:segments], atol=1e-6)


def test_a_backbone_that_is_not_there_is_refused() -> None:
    with pytest.raises(EncoderError, match="timm has no network named 'resnet1800'"):
        SoundVideoModel(CONFIG.model_copy(update={"backbone": "resnet1800"}), build_generator(GENERATOR))


def header(stage: str = "video", generator: GeneratorConfig = GENERATOR) -> SoundVideoHeader:
    values = {"stage": stage, "model": CONFIG, "generator": generator, "classes": ("rain",), "samples_seen": 7}
    return SoundVideoHeader.model_validate(values)


def test_a_file_holds_the_whole_model(tmp_path: Path, model: SoundVideoModel) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, header(), model)
    loaded, said = load_model(path)
    assert said == header()
    assert not loaded.training
    assert [name for name, one in loaded.named_parameters() if one.requires_grad] == []
    drawn = []
    for each in (model, loaded):
        walked = each.walk(mels(0), each.start(latents(0)), noise(each, 0))
        drawn.append(each.draw(walked.flatten(0, 1)))
    assert differing(dict(model.state_dict()), dict(loaded.state_dict())) == []
    torch.testing.assert_close(
        *drawn, rtol=1e-4, atol=1e-5
    )  # equal weights elsewhere in memory may take another kernel
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_places_the_pictures_of_stylegan3_is_frozen_at_the_average_style(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = build_generator(SMALL_3)
    generator.w_avg.copy_(torch.linspace(-1, 1, 8))
    assert isinstance(generator.synthesis, StyleGan3Synthesis)
    torch.nn.init.normal_(generator.synthesis.input.affine.weight)  # a new one is all zeros: it turns nothing
    model = SoundVideoModel(CONFIG, generator).eval()
    path = tmp_path / "model.safetensors"
    save_model(path, header(generator=SMALL_3), model)
    loaded, _ = load_model(path)
    for each in (model, loaded):
        synthesis = each.generator.synthesis
        assert isinstance(synthesis, StyleGan3Synthesis)
        assert synthesis.input.frozen_w_D is not None
        assert torch.equal(synthesis.input.frozen_w_D, torch.linspace(-1, 1, 8))
    styles = torch.randn(2, model.generator.num_ws, 8)
    torch.testing.assert_close(model.draw(styles), loaded.draw(styles), rtol=1e-4, atol=1e-5)
    moved = styles.clone()
    moved[:, 0] += 1  # the style that turns the picture, where it is not frozen
    assert torch.equal(model.draw(styles), model.draw(moved))
    model.generator.synthesis.input.frozen_w_D = None
    assert not torch.allclose(model.draw(styles), model.draw(moved), atol=1e-4)


def test_a_model_is_found_in_a_run_in_a_folder_and_by_its_name(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "invert")
    inverted = run / "invert" / "best.safetensors"
    assert find_model(str(run)) == inverted
    saved_run(run, "video")
    best = run / "video" / "best.safetensors"
    assert find_model(str(run)) == best
    assert find_model(str(run / "video")) == best
    assert find_model(str(run / "invert")) == inverted
    assert find_model(str(inverted)) == inverted
    best.rename(run / "video" / "last.safetensors")
    assert find_model(str(run)) == run / "video" / "last.safetensors"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds no model of sound and video"):
        find_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="nowhere: there is no such file or folder"):
        find_model(str(tmp_path / "nowhere"))
    with pytest.raises(EncoderError, match="checkpoint"):
        find_model("http://127.0.0.1:9/model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "is damaged or no safetensors file"),
        ("pickle", "is damaged or no safetensors file"),
        ("empty", "is damaged or no safetensors file"),
        ("foreign", "is no model of sound and video"),
        ("nonsense", "is damaged or no safetensors file"),
        ("list", "is of another version of this format; version 1 is known"),
        ("version", "is of another version of this format; version 1 is known"),
        ("setting", "has settings that cannot be used: model.num_frames"),
        ("design", "has settings that cannot be used: generator"),
        ("weights", "does not hold|is missing|does not fit"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_its_name(tmp_path: Path, damage: str, message: str) -> None:
    path = saved_run(tmp_path / "run") / "video" / "best.safetensors"
    tensors = {
        name: one.clone() for name, one in load_file(path).items()
    }  # they lie in the file, which is written over
    values = header().model_dump(mode="json")
    text = {
        "nonsense": "{",
        "list": "[1]",
        "version": json.dumps({**values, "version": 2}),
        "setting": json.dumps({**values, "model": {**values["model"], "num_frames": 1}}),
        "design": json.dumps({**values, "generator": {**values["generator"], "resolution": 24}}),
    }.get(damage, json.dumps(values))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save(tensors, path)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file(tensors, path)
    elif damage == "weights":
        save_file({name: one for name, one in tensors.items() if "pull" not in name}, path, {METADATA_KEY: text})
    else:
        save_file(tensors, path, {METADATA_KEY: text})
    with pytest.raises((CheckpointError, GeneratorError, EncoderError), match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = saved_run(tmp_path / "run") / "video" / "best.safetensors"
    tensors = {name: one.clone() for name, one in load_file(path).items()}
    tensors["blocks.0.pull"][:] = math.nan
    save_file(tensors, path, {METADATA_KEY: header().model_dump_json()})
    with pytest.raises((CheckpointError, GeneratorError, EncoderError)) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_sound_shorter_than_its_window_is_cut_over_its_own_length(model: SoundVideoModel) -> None:
    """A third of a window of silence after it: each segment holds its share of the sound, as each frame shows its share of the clip."""
    frames = CONFIG.mel.num_frames(WINDOW)
    mels_BMT = torch.arange(1.0, frames + 1).expand(2, 128, -1).clone()
    seconds_B = torch.tensor([CONFIG.window_seconds, CONFIG.window_seconds * 2 / 3])
    num_real = CONFIG.mel.num_frames(WINDOW * 2 // 3)
    mels_BMT[1, :, num_real:] = 0
    cut = model.segments_of(mels_BMT, seconds_B)
    assert torch.equal(cut[0], model.segments_of(mels_BMT)[0])
    own = num_real // STEPS
    assert cut.shape[3] > own
    for step in range(STEPS):
        assert cut[1, step, 5, :own].tolist() == [step * own + place + 1 for place in range(own)]
        assert not cut[1, step, :, own:].any()
