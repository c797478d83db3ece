"""How the packaged pair is trained: the split, what is learned from, the fit, and the numbers that are reported of it."""

import csv
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from pipeline.agreement.calibration import read_calibration
from pipeline.encoders.pair import EncoderPairSettings, load_pair
from pipeline.encoders.small.towers import FOLDER, SmallConfig, Tower, save_tower
from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import nature_sound
from pipeline.synthetic.video import write_video
from trainer.small_pair import __main__ as small_pair
from trainer.small_pair import card as small_card
from trainer.small_pair import fit as small_fit
from trainer.small_pair import report as small_report
from trainer.small_pair.augment import changed_mel, changed_picture
from trainer.small_pair.fit import (
    AFFINITY,
    CLASSES,
    SmallFitSettings,
    SoundRows,
    Table,
    directions,
    fit_tower,
    row_weights,
)
from trainer.small_pair.material import RATE_HZ, LabelledSpan, MaterialError, read_material, read_video_clips

COLUMNS = ("path", "kind", "class", "audio_kind", "license", "repo")
SEEN = ("rain", "ocean", "fire", "wind")


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes: three photographs, two recordings and three videos of each; and a pairs.csv."""
    folder = tmp_path_factory.mktemp("material")
    rows: list[tuple[str, ...]] = []
    for kind in SEEN:
        for seed in range(3):
            (frame,) = scene_frames(kind, 300 + seed, [1.0], width=320, height=180, seconds=2.0)
            cv2.imwrite(str(folder / f"{kind}-{seed}.png"), frame[:, :, ::-1])
            rows.append((f"{kind}-{seed}.png", "photo", kind, "none", "CC0", f"photos/{seed}"))
            frames = scene_frames(kind, 400 + seed, [0.0, 1.0, 2.0], width=160, height=90, seconds=3.0)
            sound = nature_sound(kind, 400 + seed, 3.0)
            write_video(folder / f"{kind}-{seed}.mp4", frames, sound, fps=1.0)
            rows.append((f"{kind}-{seed}.mp4", "landscape", kind, "natural", "CC0", f"videos/{kind}{seed}"))
        for seed in range(2):
            soundfile.write(folder / f"{kind}-{seed}.wav", nature_sound(kind, 500 + seed, 3.0, 22_050), 22_050)
            rows.append((f"{kind}-{seed}.wav", "sound", kind, "natural", "CC-BY", "sounds"))
    rows.append(("not-there.txt", "negative", "text", "none", "", ""))
    write_csv(folder / "index.csv", COLUMNS, rows)
    pairs = [("rain-0.mp4", "rain-1.wav", "1"), ("rain-0.mp4", "fire-1.wav", "0")]
    write_csv(folder / "pairs.csv", ("video", "sound", "match"), pairs)
    return folder


# the material and its split


def test_videos_and_paired_recordings_are_held_out(folder):
    material = read_material(folder)
    held_out = {item.path.name for item in material.items if item.held_out}
    assert {name for name in held_out if name.endswith(".mp4")} == {
        f"{kind}-{i}.mp4" for kind in SEEN for i in range(3)
    }
    assert {name for name in held_out if name.endswith(".wav")} == {"rain-1.wav", "fire-1.wav"}
    assert [(pair.video.path.name, pair.sound.path.name, pair.match) for pair in material.pairs] == [
        ("rain-0.mp4", "rain-1.wav", True),
        ("rain-0.mp4", "fire-1.wav", False),
    ]
    assert "not-there.txt" not in {item.path.name for item in material.items}
    assert material == read_material(folder)


def test_what_shows_one_place_is_one_source_and_on_one_side(tmp_path):
    rows = [
        ("a.mp4", "landscape", "river", "natural", "", "walker"),
        ("b.mp4", "landscape", "river", "none", "", "walker"),
        ("c.jpg", "photo", "river", "none", "", "walker"),
        ("frame__x_0.jpg", "photo", "rain", "none", "", "stock"),
        ("frame__x_1.jpg", "photo", "rain", "none", "", "stock"),
        ("ocean__lucaslister__ocean.ogg", "sound", "ocean", "natural", "", "one"),
        ("ocean__remvze__waves.ogg", "sound", "ocean", "natural", "", "two"),
    ]
    for row in rows:
        (tmp_path / row[0]).touch()
    write_csv(tmp_path / "index.csv", COLUMNS, rows)
    write_csv(tmp_path / "pairs.csv", ("video", "sound", "match"), [("a.mp4", "ocean__remvze__waves.ogg", "0")])
    items = {item.path.name: item for item in read_material(tmp_path).items}
    assert items["a.mp4"].source == items["b.mp4"].source == items["c.jpg"].source
    assert items["c.jpg"].held_out
    assert items["frame__x_0.jpg"].source == items["frame__x_1.jpg"].source
    assert items["ocean__lucaslister__ocean.ogg"].held_out  # the same recording as the paired one
    folds = small_pair.folds_of(list(items.values()))
    assert set(folds) == {item.source for item in items.values()}
    assert set(folds.values()) <= set(range(small_pair.NUM_FOLDS))


def test_material_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(MaterialError, match=r"cannot read .*index\.csv.*--material names a folder"):
        read_material(tmp_path)
    write_csv(tmp_path / "index.csv", ("path", "kind"), [])
    with pytest.raises(MaterialError, match="has no column class, audio_kind, license"):
        read_material(tmp_path)
    write_csv(tmp_path / "index.csv", COLUMNS, [("x.jpg", "drawing", "rain", "none", "", "")])
    with pytest.raises(MaterialError, match="names no photo, landscape or sound"):
        read_material(tmp_path)
    write_csv(tmp_path / "index.csv", COLUMNS, [("x.jpg", "photo", "rain", "none", "", "")])
    with pytest.raises(MaterialError, match=r"names 1 files that are not there: \['x\.jpg'\]"):
        read_material(tmp_path)
    (tmp_path / "x.jpg").touch()
    write_csv(tmp_path / "pairs.csv", ("video", "sound", "match"), [("x.jpg", "y.ogg", "1")])
    with pytest.raises(MaterialError, match=r"names 'y\.ogg', which index\.csv does not have"):
        read_material(tmp_path)
    write_csv(tmp_path / "pairs.csv", ("video", "sound", "match"), [])
    with pytest.raises(SystemExit):
        small_pair.main(["--material", str(tmp_path), "--out", str(tmp_path / "out")])


def test_a_video_is_a_clip_of_a_frame_a_second_and_its_sound(folder):
    item = next(item for item in read_material(folder).items if item.path.name == "ocean-1.mp4")
    (clip,) = read_video_clips(item)
    assert (len(clip.frames), clip.frames[0].shape, clip.label) == (3, (90, 160, 3), "ocean")
    assert abs(len(clip.sound) - 3 * RATE_HZ) < 0.1 * RATE_HZ


# what is learned from


def test_changed_pictures_and_mels_stay_what_they_are():
    rng = np.random.default_rng(3)
    frame = rng.integers(0, 256, (90, 160, 3)).astype(np.uint8)
    one, again, other = (changed_picture(frame, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.uint8
    assert one.shape[2] == 3
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    shapes = {changed_picture(frame, np.random.default_rng(seed)).shape[:2] for seed in range(60)}
    squares = [height for height, width in shapes if height == width and height <= 96]
    assert 15 < len(squares) < len(shapes)  # about half of them have few pixels
    assert min(squares) >= 24
    power = rng.gamma(1, 1, (64, 400)).astype(np.float32)
    for seed in range(30):
        mel = changed_mel(power, np.random.default_rng(seed), power if seed % 2 else None)
        assert mel.shape[0] == 64
        assert mel.shape[1] >= 96
        assert mel.min() >= 0
        assert np.isfinite(mel).all()


def test_sounds_of_two_folds_are_never_mixed():
    clips = [
        LabelledSpan("rain", name, sound=nature_sound("rain", place, 3.0, RATE_HZ).mean(axis=1))
        for place, name in enumerate("abc")
    ]
    alone = SoundRows()(clips[0], 6, np.random.default_rng(0)).features
    apart = SoundRows(clips, {"a": 0, "b": 1, "c": 1})(clips[0], 6, np.random.default_rng(0)).features
    mixed = SoundRows(clips, {"a": 0, "b": 0, "c": 1})(clips[0], 6, np.random.default_rng(0)).features
    assert np.array_equal(alone, apart)
    assert not np.array_equal(alone, mixed)


def test_recordings_keep_what_is_known_of_them_and_painted_sounds_get_their_class():
    clip = LabelledSpan("fire", "a", sound=nature_sound("fire", 1, 3.0, RATE_HZ).mean(axis=1))
    recorded, painted = (SoundRows()(clip, 2, np.random.default_rng(0), painted=each) for each in (False, True))
    assert np.array_equal(recorded.scores, painted.scores)
    for scores, target in zip(recorded.scores, recorded.targets, strict=True):
        assert target.sum() == pytest.approx(1, abs=1e-5)
        assert np.allclose(np.log(target) - scores, (np.log(target) - scores)[0], atol=1e-4)
    assert all(target[CLASSES.index("fire")] == target.sum() == 1 for target in painted.targets)


def test_directions_have_the_wanted_cosines():
    rows = directions()
    cosines = rows @ rows.T
    assert np.allclose(np.diag(cosines), 1, atol=1e-6)
    for (one, other), cosine in AFFINITY.items():
        assert cosines[CLASSES.index(one), CLASSES.index(other)] == pytest.approx(cosine, abs=1e-6), (one, other)
    assert cosines[CLASSES.index("ocean"), CLASSES.index("fire")] == 0
    assert cosines[CLASSES.index("snow"), CLASSES.index("clouds")] == pytest.approx(0.6 * 0.7, abs=1e-6)


# the fit


def table(num_rows: int = 200, seed: int = 0) -> Table:
    """Rain where the first feature is high, fire where it is low, among 7 that say nothing."""
    rng = np.random.default_rng(seed)
    classes = np.where(np.arange(num_rows) % 2, CLASSES.index("rain"), CLASSES.index("fire"))
    features = rng.normal(0, 1, (num_rows, 8)).astype(np.float32)
    features[:, 0] += np.where(np.arange(num_rows) % 2, 30, 24)
    sources = np.asarray([f"s{row // 4}" for row in range(num_rows)])
    nothing, targets = np.zeros((num_rows, len(CLASSES)), np.float32), np.eye(len(CLASSES), dtype=np.float32)[classes]
    return Table(features, nothing, targets, classes, sources, np.ones(num_rows, np.float32))


FAST = SmallFitSettings(num_steps=100, num_networks=2, num_hidden=16, batch_size=64, learning_rate=0.02)


def test_a_fitted_tower_tells_classes_apart(tmp_path):
    path = tmp_path / "picture.safetensors"
    save_tower(path, fit_tower(table(), FAST), SmallConfig(side="picture", classes=CLASSES))
    tower = Tower(path, "picture", 8)
    fresh = table(60, seed=1)
    shares_NK = tower.shares(torch.from_numpy(fresh.features_NF))
    shares = shares_NK.numpy()
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    assert (shares.argmax(1) == fresh.classes_N).mean() > 0.9
    rows = tower.rows(shares_NK).numpy()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    rain = tower.directions_KD[CLASSES.index("rain")]
    expected = shares @ (tower.directions_KD @ rain)
    assert np.allclose(rows @ rain, expected, atol=1e-5)  # what is not known lies on an axis that no class has


def test_the_same_fit_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_tower(tmp_path / name, fit_tower(table(), FAST, seed=3), SmallConfig(side="sound", classes=CLASSES))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    other = fit_tower(table(), FAST, seed=4)
    assert not np.array_equal(load_file(tmp_path / "one")["first.weight"], other["first.weight"].astype(np.float16))


def test_a_lower_temperature_makes_a_tower_surer(tmp_path):
    sure = []
    for temperature in (1.0, 0.5):
        path = tmp_path / f"{temperature}"
        save_tower(path, fit_tower(table(), FAST, 0, temperature), SmallConfig(side="picture", classes=CLASSES))
        sure.append(Tower(path, "picture", 8).shares(torch.from_numpy(table(60, seed=1).features_NF)).numpy())
    assert np.array_equal(sure[0].argmax(1), sure[1].argmax(1))
    assert (sure[1].max(1) > sure[0].max(1)).all()
    odds = [np.log(shares[:, CLASSES.index("rain")] / shares[:, CLASSES.index("fire")]) for shares in sure]
    assert np.median(odds[1] / odds[0]) == pytest.approx(2, rel=0.1)


def test_every_network_learns():
    few, more = (fit_tower(table(), FAST.model_copy(update={"num_steps": steps})) for steps in (1, 100))
    for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
        moved = np.abs(few[name] - more[name]).reshape(FAST.num_networks, -1).max(1)
        assert (moved > 1e-3).all(), name


def test_rows_of_a_source_share_its_weight_and_rare_classes_are_lifted():
    classes = np.asarray([CLASSES.index(name) for name in ("rain", "rain", "rain", "fire")])
    sources = np.asarray(["a", "a", "b", "c"])
    nothing = np.zeros((4, len(CLASSES)), np.float32)
    weights = np.asarray([1, 1, 1, 0.5], np.float32)
    rows = Table(np.zeros((4, 1), np.float32), nothing, nothing, classes, sources, weights)
    assert np.allclose(row_weights(rows, SmallFitSettings(balance=0)), np.asarray([1, 1, 2, 1]) / 5)
    assert np.allclose(row_weights(rows, SmallFitSettings(balance=1)), [1 / 8, 1 / 8, 1 / 4, 1 / 2])
    assert rows.without(["a"]).sources_N.tolist() == ["b", "c"]


# the report


def test_accuracy_weighs_sources_alike():
    directions_KD = np.eye(3, dtype=np.float32)
    rain, ocean = CLASSES.index("rain"), CLASSES.index("ocean")
    assert (rain, ocean) == (0, 2)
    rows = directions_KD[[rain, rain, rain, ocean]]
    share = small_report.accuracy(rows, directions_KD, [rain, ocean], ["rain", "rain", "ocean", "ocean"], list("aabc"))
    assert share.share == pytest.approx(2 / 3)
    assert share.num_sources == 3
    assert share.per_class == {"rain": (2, 2), "ocean": (1, 2)}


def test_crossed_pairs_are_counted_by_hand():
    axes = np.eye(2, dtype=np.float32)
    pictures = (axes[[0, 1, 1]], ["rain", "fire", "rain"], list("abc"))
    sounds = (axes[[0, 1]], ["rain", "fire"], list("xy"))
    # matched: rain-rain 1, fire-fire 1, rain-rain 0; mismatched: rain-fire 0, fire-rain 0, rain-fire 1
    area, low, high = small_report.crossed(pictures, sounds)
    assert area == pytest.approx((2 * (1 + 1 + 0.5) + (0.5 + 0.5 + 0)) / 9)
    assert 0 <= low <= area <= high <= 1


def test_the_command_trains_reports_and_repeats_itself(folder, tmp_path, monkeypatch):
    quick = functools.partial(
        SmallFitSettings, num_changed_pictures=1, num_changed_sounds=2, num_changed_painted_pictures=1,
        num_changed_painted_sounds=1, num_steps=40, num_networks=1, num_hidden=16,
    )  # fmt: skip
    monkeypatch.setattr(small_pair, "SmallFitSettings", quick)
    monkeypatch.setattr(small_pair, "PAINTED_SEEDS", range(1000, 1001))
    monkeypatch.setattr(small_pair, "NUM_FOLDS", 2)
    monkeypatch.setattr(small_pair, "single_threaded", lambda: None)
    monkeypatch.setattr(small_card, "UNSEEN_PAINTED_SEEDS", range(2000, 2002))
    for out, flags in ((tmp_path / "one", ["--report"]), (tmp_path / "two", [])):
        assert small_pair.main(["--material", str(folder), "--out", str(out), *flags]) == 0
    for name in ("picture.safetensors", "sound.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    named = {f"{side}_weights": str(tmp_path / "one" / f"{side}.safetensors") for side in ("picture", "sound")}
    pair = load_pair(EncoderPairSettings(**named))
    calibration = read_calibration(str(tmp_path / "one" / "calibration.json"))
    assert calibration.encoder_id == pair.encoder_id
    assert (calibration.num_clips, calibration.num_sources) == (13, 12)
    card = (tmp_path / "one" / "MODEL_CARD.md").read_text()
    assert "| rain | " in card
    assert "CC0 (" in card
    assert "13 clips of 12 sources" in card
    assert str(folder) not in card


def test_the_packaged_card_has_the_limits_that_the_command_writes():
    card = small_card._Card("hearscape-small-0")
    first = len(card.lines)
    card.add_limits()
    packaged = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert packaged.endswith("\n".join(card.lines[first:]) + "\n")
    assert packaged.startswith("\n".join(card.lines[:2]))


def test_the_settings_are_documented():
    assert all(field.description for field in SmallFitSettings.model_fields.values())
    assert set(small_fit.SAME_CLASS.values()) <= set(CLASSES)
