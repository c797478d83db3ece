"""The pair that comes in the package: that it loads, that its numbers are defined, and that it hears what it should."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from pipeline.agreement.measures import agreement
from pipeline.encoders import pair as pairs
from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, check_settings, find_files, load_pair
from pipeline.encoders.small import trunks as small_trunks
from pipeline.encoders.small.towers import (
    FEATURES_VERSION,
    PACKAGED,
    SmallConfig,
    Tower,
    classes_named,
    known_scores,
    read_config,
    save_tower,
)
from pipeline.encoders.small.trunks import TAGS_OF_CLASS, TRUNKS, magnitude_mel, picture_features, sound_features, trunk
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.encoders.weights import file_sha256
from pipeline.errors import EncoderError, MediaError
from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import NATURE_KINDS, nature_sound

RATE = 44_100
SEED = 77  # neither the catalogue's nor one that the pair learned from


@pytest.fixture(scope="module")
def small() -> EncoderPair:
    return load_pair(EncoderPairSettings())


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Frames and sound of a painted scene of each kind, 5 s."""
    return {
        kind: (
            np.stack(list(scene_frames(kind, SEED, (0.5, 2.5, 4.5), width=456, height=256, seconds=5.0))),
            nature_sound(kind, SEED, 5.0, RATE).mean(axis=1),
        )
        for kind in NATURE_KINDS
    }


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def copied(folder: Path) -> dict[str, str]:
    for path in PACKAGED.values():
        shutil.copy(path, folder)
    return {f"{side}_weights": str(folder / path.name) for side, path in PACKAGED.items()}


def test_settings_without_arguments_are_the_packaged_pair(small, tmp_path):
    files = find_files(EncoderPairSettings())
    assert (files.picture_path, files.sound_path) == (PACKAGED["picture"], PACKAGED["sound"])
    assert files.encoder_id == small.encoder_id
    assert small.encoder_id.startswith("hearscape-small-")
    check_settings(EncoderPairSettings())
    assert find_files(EncoderPairSettings(**copied(tmp_path))).encoder_id == small.encoder_id
    assert find_files(EncoderPairSettings(frames_per_clip=3)).encoder_id != small.encoder_id
    assert sum(path.stat().st_size for path in (*PACKAGED.values(), *TRUNKS.values())) < 9e6


@pytest.mark.slow
@pytest.mark.slow
def test_painted_scenes_agree_with_their_own_sounds_only(small, scenes):
    found = small.embed_clips([frames for frames, _ in scenes.values()], [sound for _, sound in scenes.values()], RATE)
    cosines = found.picture @ found.sound.T
    own = np.diag(cosines)
    others = cosines[~np.eye(len(own), dtype=bool)]
    assert own.min() > 0.3, dict(zip(scenes, own.round(2), strict=True))
    assert np.quantile(others, 0.9) < 0.2
    sea, fire = NATURE_KINDS.index("ocean"), NATURE_KINDS.index("fire")
    assert agreement(found.picture_frames[sea], found.sound[fire], small.encoder_id).agreement < 0.1


def test_texts_lie_where_their_classes_are(small, scenes):
    kinds = list(scenes)
    found = small.embed_clips([frames for frames, _ in scenes.values()], [sound for _, sound in scenes.values()], RATE)
    prompts = small.embed_texts([f"the sound of {kind}" for kind in kinds])
    assert np.allclose(np.linalg.norm(prompts, axis=1), 1, atol=1e-6)
    shown = [kinds[index] for index in (found.picture @ prompts.T).argmax(1)]
    heard = [kinds[index] for index in (found.sound @ prompts.T).argmax(1)]
    assert sum(one == kind for one, kind in zip(shown, kinds, strict=True)) >= 7
    assert sum(one == kind for one, kind in zip(heard, kinds, strict=True)) >= 7


def test_texts_name_classes_by_many_words(small):
    assert classes_named("Waves and a campfire under the night sky") == ("ocean", "fire", "night_sky")
    assert classes_named("underwater bubbling, squishing water") == ("underwater", "splashing_water")
    assert classes_named("splashing_water") == ("splashing_water",)
    rows = small.embed_texts(["a photo of the sea", "ocean", "rain on a lake"])
    assert np.array_equal(rows[0], rows[1])
    assert rows[2] @ small.embed_texts(["rain"])[0] == pytest.approx(rows[2] @ small.embed_texts(["lake"])[0], abs=1e-6)
    assert small.embed_texts([]).shape == (0, small.width)
    with pytest.raises(EncoderError, match=r"knows no class in the text 'a violin'; it knows: .*campfire.*waterfall"):
        small.embed_texts(["rain", "a violin"])


def test_no_clip_depends_on_what_it_is_embedded_beside(small, scenes):
    frames = [scenes["rain"][0], scenes["fire"][0][:1]]
    sounds = [scenes["rain"][1], noise(3)]
    both = small.embed_clips(frames, sounds, RATE)
    for index in range(2):
        alone = small.embed_clips(frames[index : index + 1], sounds[index : index + 1], RATE)
        assert np.array_equal(alone.picture[0], both.picture[index])
        assert np.array_equal(alone.sound[0], both.sound[index])
    assert (both.picture.dtype, both.sound.dtype) == (np.float32, np.float32)
    assert small.embed_clips([], [], RATE).sound.shape == (0, small.width)


def test_the_number_of_threads_changes_no_bit_and_is_left_as_it_was(small, scenes):
    before = torch.get_num_threads()
    frames, sound = scenes["rain"]
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            rows = small.picture.embed_pictures(frames), small.sound.embed_sounds([sound], RATE)
            found.append([each.tobytes() for each in rows])
            assert torch.get_num_threads() == threads
            with pytest.raises(MediaError):
                small.sound.embed_sounds([np.full(800, np.nan, np.float32)], RATE)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_loudness_and_rate_do_not_matter_much(small, scenes):
    sound = scenes["waterfall"][1]
    loud, quiet, slow = (
        small.sound.embed_sounds(each, rate)[0]
        for each, rate in (([sound], RATE), ([sound * np.float32(0.03)], RATE), ([sound[::2].copy()], RATE // 2))
    )
    assert loud @ quiet > 0.999
    assert loud @ slow > 0.5


@pytest.mark.parametrize("num_samples", [1, 500, 2048, 12 * RATE, 45 * RATE])
def test_sounds_of_any_length(small, num_samples):
    row = small.sound.embed_sounds([noise(46)[:num_samples]], RATE)[0]
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (16, 9), (1080, 1920)])
@pytest.mark.parametrize("value", [0, 255, None])
def test_frames_of_any_size_and_flat_ones(small, size, value):
    shape = (1, *size, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape) if value is None else np.full(shape, value)
    row = small.picture.embed_pictures(frames.astype(np.uint8))[0]
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


def test_digital_silence_belongs_to_no_class(small, scenes):
    row = small.sound.embed_sounds([np.zeros(RATE, np.float32)], RATE)[0]
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    assert [float(small.picture.embed_pictures(frames)[0] @ row) for frames, _ in scenes.values()] == [0.0] * len(
        scenes
    )
    assert not (small.embed_texts(["wind", "rain"]) @ row).any()


def test_sounds_that_are_none_are_refused(small):
    with pytest.raises(MediaError, match="sound 1 has no samples"):
        small.sound.embed_sounds([noise(1), np.zeros(0, np.float32)], RATE)
    with pytest.raises(MediaError, match="NaN or infinity in 1 of 100"):
        small.sound.embed_sounds([np.r_[noise(1)[:99], np.float32(np.nan)]], RATE)
    with pytest.raises(ValueError, match="frames must be uint8"):
        small.picture.embed_pictures(np.zeros((1, 8, 8, 3), np.float32))


def test_features_are_of_the_picture_not_of_its_size(scenes):
    import cv2

    frame = scenes["river"][0][0]
    larger = cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    near, far = (
        np.abs(picture_features(frame) - picture_features(other)).mean() for other in (larger, scenes["fire"][0][0])
    )
    assert near < 0.3 * far


def test_a_trunk_is_convolutions_with_same_padding_and_added_inputs():
    """Against layers of torch, for an odd size: strides, groups, cut-offs, and the inputs that blocks add."""
    rng = torch.Generator().manual_seed(0)
    layers = (
        small_trunks.Layer(2, 6.0, is_read=True),
        small_trunks.Layer(1, 6.0, opens_residual=True),
        small_trunks.Layer(1, float("inf")),
        small_trunks.Layer(closes_residual=True, is_read=True),
    )
    shapes = ((4, 3, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1))
    tensors = {}
    for number, shape in enumerate(shapes):
        tensors[f"{number:02}.weight"] = torch.randint(-127, 128, shape, generator=rng).to(torch.int8)
        tensors[f"{number:02}.factor"] = torch.rand(shape[0], generator=rng) / 60
        tensors[f"{number:02}.bias"] = torch.randn(shape[0], generator=rng)
    x = torch.randn(2, 3, 9, 14, generator=rng)
    first, wide, deep, last = (
        tensors[f"{n:02}.weight"].float() * tensors[f"{n:02}.factor"][:, None, None, None] for n in range(4)
    )
    bias = [tensors[f"{n:02}.bias"] for n in range(4)]
    functional = torch.nn.functional
    y = functional.conv2d(functional.pad(x, (0, 1, 1, 1)), first, bias[0], stride=2).clamp(0, 6)
    inner = functional.conv2d(y, wide, bias[1]).clamp(0, 6)
    inner = functional.conv2d(inner, deep, bias[2], padding=1, groups=8).relu()
    expected = y + functional.conv2d(inner, last, bias[3])
    trunk = small_trunks.Trunk(layers, tensors)
    early, late = trunk(x)
    assert late.shape == (2, 4, 5, 7)
    assert torch.allclose(early, y, atol=1e-5)
    assert torch.allclose(late, expected, atol=1e-5)
    assert trunk.num_channels == 8


def test_other_trunks_are_another_version_of_the_features():
    """``encoder_id`` knows the towers' files and this version: stored embeddings must not outlive what they were made with."""
    sums = {side: file_sha256(path)[:16] for side, path in TRUNKS.items()}
    assert (FEATURES_VERSION, sums) == (2, {"picture": "61d35382a9769681", "sound": "7c09fdf2926b5a4f"})


def test_what_is_known_beforehand_counts_beside_what_was_learned(tmp_path):
    config = SmallConfig(side="sound", classes=("lake", "fire", "rain"))
    state = {
        "mean": np.zeros(2), "scale": np.ones(2), "first.weight": np.zeros((1, 2, 3)), "first.bias": np.zeros((1, 3)),
        "second.weight": np.zeros((1, 3, 3)), "second.bias": np.zeros((1, 3)), "directions": np.eye(3),
    }  # fmt: skip
    save_tower(tmp_path / "sound.safetensors", state, config)
    tower = Tower(tmp_path / "sound.safetensors", "sound", 2)
    scores = np.full((1, len(TAGS_OF_CLASS)), np.log(0.25), np.float32)
    scores[0, list(TAGS_OF_CLASS).index("rain")] = np.log(0.75)
    known = torch.from_numpy(known_scores(scores, config.classes))
    assert np.allclose(known.exp().numpy(), [[1e-4, 0.25, 0.75]])
    nothing = torch.zeros(1, 2)
    assert np.allclose(tower.shares(nothing, known).numpy(), [[1e-4, 0.25, 0.75]], atol=1e-3)
    assert np.allclose(tower.shares(nothing).numpy(), 1 / 3)


def test_the_mel_of_sounds_is_of_magnitudes_at_16_khz():
    """Against librosa, frame by frame: windows start where their frame does, and nothing is padded."""
    import librosa

    sound = noise(2)[:32_000]
    window = np.pad(np.hanning(401)[:-1], (0, 112))
    frames = [sound[start : start + 512] for start in range(0, 32_000 - 512, 160)]
    spectrum = np.abs(np.fft.rfft(np.stack(frames) * window, axis=1))
    bank = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None)
    mel = magnitude_mel(sound)
    assert mel.shape == (1 + (32_000 - 400) // 160, 64)
    assert np.allclose(mel[: len(frames)], spectrum @ bank.T, rtol=1e-3, atol=1e-3)
    assert magnitude_mel(sound[:1]).shape == (96, 64)


def test_sounds_have_features_and_scores_of_classes_whatever_their_length_and_level(scenes):
    mel = magnitude_mel(noise(3)[:48_000])
    features, scores = sound_features(mel)
    assert (features.shape, scores.shape) == ((2048,), (len(TAGS_OF_CLASS),))
    quiet, _ = sound_features(mel / 50)
    assert np.allclose(features, quiet, atol=1e-3)
    assert sound_features(mel[:96])[0].shape == features.shape
    assert scores.max() <= np.log(1 + 1e-4)
    assert scores.min() >= np.log(1e-4) - 1e-4


# damaged files


def test_files_that_are_missing_damaged_or_swapped_are_named(tmp_path, monkeypatch):
    named = copied(tmp_path)
    picture, sound = (Path(named[f"{side}_weights"]) for side in ("picture", "sound"))

    def refused(match: str, **changes: str) -> None:
        with pytest.raises(EncoderError, match=match):
            load_pair(EncoderPairSettings(**{**named, **changes}))

    refused("is the sound tower, wanted the picture tower", picture_weights=str(sound))
    refused("there is no file 'gone.safetensors'", sound_weights="gone.safetensors")
    picture.write_bytes(PACKAGED["picture"].read_bytes()[:5000])
    refused(r"picture\.safetensors is no safetensors file, or a damaged one")
    picture.write_bytes(b"not weights at all")
    refused(r"picture\.safetensors is no safetensors file, or a damaged one")
    save_file({"a": np.ones(1, np.float32)}, picture)
    refused("is no tower of a small pair")

    trunk.cache_clear()
    monkeypatch.setitem(small_trunks.TRUNKS, "sound", tmp_path / "sound_trunk.safetensors")
    save_file({"00.weight": np.ones((1, 1, 1, 1), np.int8)}, tmp_path / "sound_trunk.safetensors")
    with pytest.raises(EncoderError, match=r"sound_trunk\.safetensors lacks .*install hearscape again"):
        load_pair(EncoderPairSettings())
    trunk.cache_clear()

    monkeypatch.setattr(pairs, "_PACKAGED_FOLDER", tmp_path)
    picture.unlink()
    with pytest.raises(EncoderError, match="is missing; it is part of the package: install hearscape again"):
        check_settings(EncoderPairSettings())
    assert pairs.packaged_calibration() is None


def test_tensors_of_other_shapes_are_named(tmp_path):
    config = read_config(PACKAGED["picture"], "picture")
    state = load_file(PACKAGED["picture"])
    num_features = len(state["mean"])
    path = tmp_path / "picture.safetensors"
    cases = {
        r"mean is \(3,\), wanted": state | {"mean": state["mean"][:3]},
        r"second\.bias is missing": {name: values for name, values in state.items() if name != "second.bias"},
        "first.weight holds NaN": state | {"first.weight": state["first.weight"] * np.float16(np.nan)},
        "scale holds NaN or infinity": state | {"scale": state["scale"] + np.float16(np.inf)},
        "directions has a class without a direction": state | {"directions": state["directions"] * np.float16(0)},
        "more is not part of a tower": state | {"more": state["mean"]},
        r"first\.weight is .*, wanted \(1, ": state | {"first.bias": np.ones(1, np.float16)},
    }
    for message, changed in cases.items():
        save_tower(path, changed, config)
        with pytest.raises(EncoderError, match=message):
            Tower(path, "picture", num_features)
    save_tower(path, state, config)
    assert path.read_bytes() == PACKAGED["picture"].read_bytes()
    save_tower(path, state, config.model_copy(update={"features": 0}))
    with pytest.raises(EncoderError, match="was trained on features of version 0, this is version"):
        Tower(path, "picture", num_features)
    save_file(state, path, metadata={"hearscape_small": '{"side": "picture", "classes": []}'})
    with pytest.raises(EncoderError, match="classes: Tuple should have at least 1 item"):
        read_config(path, "picture")


@pytest.mark.parametrize("side", ["picture", "sound"])
def test_damage_in_weights_that_a_recipe_names_is_told_by_their_setting(tmp_path, side):
    named = copied(tmp_path)
    path = Path(named[f"{side}_weights"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        EncoderError,
        match=rf"^encoders\.{side}_weights: .*is no safetensors file.*write it again with python -m trainer.small_pair",
    ):
        check_settings(EncoderPairSettings(**named))
    state = load_file(PACKAGED[side])
    save_tower(path, state | {"mean": state["mean"] + np.float16(np.inf)}, read_config(PACKAGED[side], side))
    with pytest.raises(EncoderError, match=rf"^encoders\.{side}_weights: {path} is no {side} tower: .*NaN or infinity"):
        load_pair(EncoderPairSettings(**named))


def test_a_damaged_packaged_trunk_asks_for_the_package(tmp_path, monkeypatch):
    path = tmp_path / "sound_trunk.safetensors"
    path.write_bytes(TRUNKS["sound"].read_bytes()[:1000])
    monkeypatch.setitem(TRUNKS, "sound", path)
    with pytest.raises(
        EncoderError, match=r"is damaged or not complete.*; it is part of the package: install hearscape again"
    ):
        trunk.__wrapped__("sound")


def test_towers_of_two_trainings_are_no_pair(tmp_path):
    named = copied(tmp_path)
    state = load_file(PACKAGED["sound"])
    config = read_config(PACKAGED["sound"], "sound").model_copy(update={"trained_with": "0" * 64})
    save_tower(Path(named["sound_weights"]), state, config)
    with pytest.raises(EncoderError, match="was trained with another picture tower"):
        load_pair(EncoderPairSettings(**named))


def test_settings_refuse_half_a_pair():
    for values, message in (
        ({"picture_model": "ViT-B-32", "picture_weights": "openai"}, "share no space"),
        ({"sound_kind": "soundclip", "sound_weights": "a.pt"}, "share no space"),
        ({"picture_weights": "a.safetensors"}, "name both, or neither"),
        ({"picture_model": "ViT-B-32", "sound_kind": "align", "sound_weights": "a"}, "picture_weights is missing"),
    ):
        with pytest.raises(ValidationError, match=message):
            EncoderPairSettings(**values)


def test_the_config_of_a_tower_is_strict():
    with pytest.raises(ValidationError, match="side"):
        SmallConfig(side="taste", classes=("rain",))
    assert all(field.description for field in SmallConfig.model_fields.values())


def test_the_calibration_belongs_to_the_weights(small):
    path = pairs.packaged_calibration()
    assert path is not None
    assert json.loads(path.read_text(encoding="utf-8"))["encoder_id"] == small.encoder_id


@pytest.mark.slow
def test_the_pair_needs_neither_open_clip_nor_timm():
    code = (
        "import sys\n"
        "from pipeline.encoders.pair import EncoderPairSettings, load_pair\n"
        "load_pair(EncoderPairSettings())\n"
        "assert not {'open_clip', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_a_sound_network_fitted_to_the_packaged_picture_tower_is_its_partner(small, scenes, tmp_path):
    path = tmp_path / "best.safetensors"
    torch.manual_seed(0)
    save_align(path, SoundNetwork(small.width), AlignConfig(width=small.width, picture_id=small.picture.encoder_id))
    settings = EncoderPairSettings(sound_kind="align", sound_weights=str(path))
    fitted = load_pair(settings)
    frames, sound = scenes["rain"]
    found = fitted.embed_clips([frames], [sound], RATE)
    assert np.allclose(found.picture, small.embed_clips([frames], [sound], RATE).picture, atol=1e-6)  # loaded twice
    assert found.sound.shape == (1, small.width)
    assert fitted.encoder_id == find_files(settings).encoder_id != small.encoder_id

    save_align(path, SoundNetwork(7), AlignConfig(width=7))
    with pytest.raises(EncoderError, match=f"hearscape-small has width {small.width}, the align network .* has 7"):
        check_settings(settings)
    save_align(path, SoundNetwork(small.width), AlignConfig(width=small.width, picture_id="another"))
    with pytest.raises(EncoderError, match="was trained with the picture encoder another"):
        load_pair(settings)
    with pytest.raises(ValidationError, match="sound_weights is missing"):
        EncoderPairSettings(sound_kind="align")
