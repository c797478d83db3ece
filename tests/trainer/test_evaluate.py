"""The command that says whether the sound matters, on small shards and models of random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.encoders.pair import EncoderPairSettings, load_pair
from tests import paired
from tests.trainer.sounding import CONFIG, saved_run
from trainer.evaluate import main
from trainer.proof.evaluation import (
    EvaluateRecipe,
    ignores_the_sound,
    locations_with,
    read_clips,
    result_text,
    verdict,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, a run, and one that learned from the packaged pair."""
    folder = tmp_path_factory.mktemp("evaluate")
    paired.build_paired(folder / "shards" / "a", {"train": 1, "validation": 2}, name="a")
    paired.build_paired(folder / "shards" / "b", {"train": 1, "validation": 1, "test": 1}, name="b", spoilt=[1])
    saved_run(folder / "run")
    pair = load_pair(EncoderPairSettings(device="cpu"))
    saved_run(folder / "pleasing", encoder_ids=(pair.picture.encoder_id, "another"))
    return folder


def test_the_command_measures_and_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "result.json"
    words = ["--checkpoint", str(folder / "run"), "--shards", str(folder / "shards"), "--json", str(out)]
    words += ["--device", "cpu", "--set", "encoders.device=cpu", "--clips", "9", "--seeds", "2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    result = json.loads(out.read_text())
    measures = result["measures"]
    # of 9 clips the first dataset gives 4, the second what is left: its 4 but for one that cannot be read
    assert (measures["num_clips"], measures["num_classes"], measures["num_seeds"]) == (7, 4, 2)
    assert result["checkpoint"] == str(folder / "run" / "video" / "best.safetensors")
    assert (result["stage"], result["samples_seen"], result["measured_by_loss_encoder"]) == ("video", 7, False)
    assert result["measured_by"].startswith("hearscape-small-")
    assert result["settings"]["num_clips"] == 9
    assert len(result["datasets"]) == 2
    assert f"right minus another class's         {measures['right_minus_wrong']:>6.3f}" in told
    assert result["verdict"] in told
    assert "part of the loss" not in told
    assert result["ignores_the_sound"] == (measures["right_minus_wrong_low"] <= 0)
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert json.loads(out.read_text()) == result, "the same command gave other numbers"


def test_an_encoder_of_the_loss_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", str(folder / "pleasing"), "--shards", str(folder / "shards"), "--split", "test"]
    assert main([*words, "--set", "device=cpu", "--clips", "6"]) == 0
    assert "This encoder was part of the loss" in capsys.readouterr().out


def test_clips_come_from_all_datasets_as_the_model_sees_them(folder: Path) -> None:
    locations = locations_with(str(folder / "shards"), "validation")
    clips = read_clips(locations, EvaluateRecipe(num_clips=6), CONFIG, 16)
    assert [clip.source_id.partition("/")[0] for clip in clips] == ["a"] * 3 + ["b"] * 3
    assert {clip.frames_THWC.shape for clip in clips} == {(3, 16, 16, 3)}
    assert len(locations_with(str(folder / "shards"), "test")) == 1


def measured(lead: float, low: float, high: float, **more: float) -> dict[str, float]:
    return {
        "right_minus_wrong": lead, "right_minus_wrong_low": low, "right_minus_wrong_high": high,
        "num_clips": 40.0, "num_sources": 20.0, **more,
    }  # fmt: skip


def test_the_verdict_says_who_wins_and_how_sure_that_is() -> None:
    wins = measured(0.2, 0.1, 0.3, real_right_minus_wrong=0.5)
    assert not ignores_the_sound(wins)
    assert verdict(wins) == (
        "The sound matters: videos of the right sound agree with it more than those of another class's sound, by +0.200 "
        "(95 % interval +0.100 to +0.300, 40 clips of 20 sources). Real frames lead by +0.500."
    )
    unsure = measured(0.1, -0.01, 0.2)
    assert ignores_the_sound(unsure)
    assert verdict(unsure).startswith(
        "The model ignores the sound: with the right sound videos do not agree with it more"
    )
    assert verdict(measured(0.0, 0.0, 0.0)).startswith("The model ignores the sound: ")
    against = verdict(measured(-0.2, -0.3, -0.1))
    assert against.startswith("The model ignores the sound: videos agree less with their own sound")
    assert "the interval is rough" in verdict(measured(0.2, 0.1, 0.3, num_sources=4.0))


def test_the_table_shows_chance_and_real_frames_beside_the_value() -> None:
    measures = measured(
        0.2, 0.1, 0.3, class_accuracy=0.75, class_accuracy_low=0.5, class_accuracy_high=0.875, class_chance=0.25,
        real_class_accuracy=0.9, change_in_time=0.1, change_in_time_low=-0.1, change_in_time_high=0.2,
    )  # fmt: skip
    result = {"measures": measures, "measured_by": "x", "measured_by_loss_encoder": False, "ignores_the_sound": False}
    text = result_text({**result, "verdict": "So it is."})
    assert "class of video is that of sound      0.750   +0.500 to +0.875       0.250         0.900" in text
    assert "the picture does not follow measurably" in text
    assert text.endswith("So it is.")
    assert "agreement, silence" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--shards", "OUT/none"], "is not a folder"),
        (["--shards", "OUT"], "there is no dataset below it; build one"),
        (
            ["--split", "nights"],
            "--split nights: no dataset below .* has samples of it; the splits there are: a: .*; b: ",
        ),
        (["--clips", "1"], "num_clips: "),
        (["--clips", "2"], r"too little to compare: 2 labelled clips of 2 sources and 1 classes \(fire\)"),
        (["--set", "encoders.sound_kind=loud"], "encoders.sound_kind: "),
        (["--set", "encoders.picture_model=ViT-B-32"], "share no space"),
        (["--set", "nothing=1"], "nothing: there is no such setting"),
        (["--recipe", "OUT/none.toml"], "none.toml: No such file"),
        (["--checkpoint", "OUT"], "holds no model of sound and video"),
        (["--checkpoint", "OUT/file"], "damaged or no safetensors file"),
        (["--json", "OUT"], "is a folder; name a file"),
        (["--device", "tpu"], "--device: 'tpu' is no device"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    (tmp_path / "file").write_text("a file")
    given = {"--checkpoint": str(folder / "run"), "--shards": str(folder / "shards")}
    given[changes[0]] = changes[1].replace("OUT", str(tmp_path))
    assert main([word for pair in given.items() for word in pair]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert re.search(words, told.err), told.err
    assert told.out == ""


def test_a_recipe_names_the_encoders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "measure.toml"
    recipe.write_text(
        "num_clips = 8\ndevice = 'cpu'\n[encoders]\npicture_model = 'ViT-B-32-quickgelu'\nsound_kind = 'align'\n"
    )
    words = ["--checkpoint", str(folder / "run"), "--shards", str(folder / "shards"), "--recipe", str(recipe)]
    assert main(words) == 2
    assert "picture_weights is missing" in capsys.readouterr().err
