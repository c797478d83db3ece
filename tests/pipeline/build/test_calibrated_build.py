"""Builds that ask for a false-accept rate: the threshold from the dataset's own clips or from a calibration, enforced, told of, and
changed without doing anything twice.

The networks have random weights: the numbers mean nothing, but they are numbers, and each clip must end on its side of them.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from pipeline.agreement.calibration import Calibration, read_calibration
from pipeline.agreement.dataset_calibration import calibrate_dataset
from pipeline.build.build import Build, BuildSummary, SourceBatch
from pipeline.build.recipe import load_recipe
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.verify import verify
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.errors import CalibrationError, EncoderError, RecipeError
from pipeline.events import Event, StageEvent
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.synthetic.video import write_video
from tests.footage import noise

NUM_SOURCES = 12
FPS = 12.0
RECIPE = """
name = "asked"
output = "{folder}/built"
sources = ["{folder}/sources.csv"]
[probe]
min_short_side_px = 96
[clips]
length_seconds = 2.0
min_seconds = 1.5
margin_seconds = 0.0
[cut]
renditions = [{{ name = "96", short_side_px = 96 }}]
preset = "ultrafast"
[encoders]
picture_model = "ViT-S-32-alt"
picture_weights = "{folder}/picture.safetensors"
sound_kind = "align"
sound_weights = "{folder}/sound.safetensors"
frames_per_clip = 1
num_threads = 1
[agreement]
classes = ["sea", "sky"]
"""


def picture(seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Coloured blocks of their own that drift sideways, for two seconds."""
    rng = np.random.default_rng(seed)
    view = np.kron(rng.integers(20, 236, (4, 6, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    for step in range(round(2 * FPS)):
        moved = np.roll(view, 2 * step, axis=1).astype(np.int16) + rng.integers(-9, 10, view.shape)
        yield moved.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-S-32-alt").state_dict(), folder / "picture.safetensors")
    save_align(folder / "sound.safetensors", SoundNetwork(256, "resnet18"), AlignConfig(width=256))
    rows = ["id,path,label"]
    for number in range(NUM_SOURCES):
        duller = np.convolve(noise(2, seed=number)[:, 0], np.ones(2 * number + 1), "same")[:, None]
        write_video(
            folder / f"{number}.mp4", picture(number), (0.1 * duller / duller.std()).astype(np.float32), fps=FPS
        )
        rows.append(f"s{number:02d},{number}.mp4,{'sea' if number % 2 else 'sky'}")
    (folder / "sources.csv").write_text("\n".join(rows) + "\n")
    (folder / "asked.toml").write_text(RECIPE.format(folder=folder))
    return folder


def run(folder: Path, *changes: str) -> tuple[BuildSummary, list[StageEvent]]:
    """The summary, and what was measured, embedded or cut anew."""
    events: list[Event] = []
    build = Build(load_recipe(folder / "asked.toml", changes))
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, events.append)
        summary = build.finish(events.append)
    finally:
        build.close()
    work = [event for event in events if isinstance(event, StageEvent) and event.stage in ("measure", "embed", "cut")]
    return summary, [event for event in work if not event.reused]


def rows_of(output: Path) -> dict[str, dict[str, object]]:
    return {row["key"]: row for row in pyarrow.parquet.read_table(output / "samples.parquet").to_pylist()}


def states(output: Path) -> dict[str, object]:
    return {key: row["reason"] or row["state"] for key, row in rows_of(output).items()}


def assert_judged_by(output: Path, rule: AgreementRule, words: str) -> None:
    for row in rows_of(output).values():
        limit = rule.limit(row["labels"])
        if row["agreement"] >= limit:
            assert row["state"] == "kept"
        else:
            assert row["reason"] == "disagrees"
            assert row["detail"] == f"agreement {row['agreement']:g} < {limit:g}{words}"
    assert {row["state"] for row in rows_of(output).values()} == {"kept", "rejected"}  # or it would say nothing


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[Path, Manifest, BuildSummary]:
    """Nothing is asked: every clip is kept, and the calibration is stored."""
    summary, _ = run(folder)
    return folder / "built", read_manifest(folder / "built"), summary


def test_every_build_with_encoders_stores_its_calibration(plain: tuple[Path, Manifest, BuildSummary]) -> None:
    output, manifest, summary = plain
    assert manifest.clips.states["kept"] == NUM_SOURCES
    assert manifest.agreement_rule is None
    assert manifest.calibration is not None
    assert (manifest.calibration.num_sources, manifest.calibration.num_classes) == (NUM_SOURCES, 2)
    assert manifest.calibration == calibrate_dataset(str(output))
    assert summary.notes[0].startswith("Agreement: stored, not enforced")
    assert f"with AUC {manifest.calibration.auc:.3f}" in summary.notes[1]


def test_the_datasets_own_clips_give_the_threshold_at_the_end(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary]
) -> None:
    output, before, _ = plain
    summary, work = run(folder, "agreement.false_accept_rate=0.3")
    assert work == []
    assert before.calibration is not None
    rule = before.calibration.rule(0.3, per_class=False, origin="own clips")
    manifest = read_manifest(output)
    assert manifest.agreement_rule == rule
    assert manifest.calibration == before.calibration == calibrate_dataset(str(output))
    assert_judged_by(output, rule, " (false accepts 30 %)")
    assert verify(str(output)) == []
    rejected = manifest.clips.reasons["disagrees"]
    assert manifest.clips.states == {"kept": 12 - rejected, "rejected": rejected, "failed": 0, "pending": 0}
    ledger = [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]
    assert sum(entry["reason"] == "no_clip_kept" for entry in ledger) == rejected
    assert "own clips" in summary.notes[0]
    point = before.calibration.point(0.3)
    assert (
        f"Of the 12 clips that pass every other rule, {100 * point.true_accept_rate:.1f} % have that"
        in summary.notes[1]
    )
    assert "with the sounds of other classes, 29.2 % would" in summary.notes[1]  # 21 of 72: 30 % would be 21.6

    # another rate, and none again: nothing of a source is even looked at
    build = Build(load_recipe(folder / "asked.toml", ["agreement.false_accept_rate=0.5"]))
    assert build.plan().num_finished_sources == NUM_SOURCES
    build.close()
    _, work = run(folder, "agreement.false_accept_rate=0.5")
    assert work == []
    assert_judged_by(output, before.calibration.rule(0.5, per_class=False, origin="own clips"), " (false accepts 50 %)")


def test_a_named_calibration_decides_before_the_cut(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path
) -> None:
    calibration = plain[1].calibration
    assert calibration is not None
    path = tmp_path / "calibration.json"
    path.write_bytes(calibration.to_json())
    output = tmp_path / "built"
    shutil.copytree(plain[0] / "state", output / "state", ignore=shutil.ignore_patterns("cuts", "done", "lock"))
    asked = (f'output="{output}"', f'agreement.calibration="{path}"')
    _, work = run(folder, *asked, "agreement.false_accept_rate=0.2")
    strict = calibration.rule(0.2, per_class=False, origin="calibration")
    assert read_manifest(output).agreement_rule == strict
    assert_judged_by(output, strict, " (false accepts 20 %)")
    first_kept = [key for key, state in states(output).items() if state == "kept"]
    assert [event.stage for event in work] == ["cut"] * len(first_kept)

    # the same again: nothing; a looser one: what is kept now and was not, is cut
    assert run(folder, *asked, "agreement.false_accept_rate=0.2")[1] == []
    _, work = run(folder, *asked, "agreement.false_accept_rate=0.5")
    now_kept = [key for key, state in states(output).items() if state == "kept"]
    assert len(now_kept) > len(first_kept)
    assert [event.stage for event in work] == ["cut"] * (len(now_kept) - len(first_kept))
    assert verify(str(output)) == []

    # the same file with other numbers in it: judged again, by those
    values = calibration.model_dump(mode="json")
    for point in values["points"]:
        point["threshold"] = round(point["threshold"] - 0.004, 6)
    path.write_text(json.dumps(values))
    _, work = run(folder, *asked, "agreement.false_accept_rate=0.5")
    moved = read_calibration(str(path)).rule(0.5, per_class=False, origin="calibration")
    assert read_manifest(output).agreement_rule == moved
    assert moved.min_agreement == pytest.approx(calibration.threshold(0.5) - 0.004)
    assert {event.stage for event in work} <= {"cut"}
    assert read_manifest(output).calibration == calibration  # that of its own clips does not depend on what is asked


def test_a_dataset_may_be_judged_by_the_calibration_in_its_own_manifest(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path
) -> None:
    output = tmp_path / "built"
    shutil.copytree(plain[0], output, ignore=shutil.ignore_patterns("lock"))
    asked = (f'output="{output}"', f'agreement.calibration="{output}"', "agreement.false_accept_rate=0.4")
    run(folder, *asked)
    first = read_manifest(output)
    assert first.clips.reasons["disagrees"] > 0
    run(folder, *asked)
    assert read_manifest(output) == first


def test_classes_may_have_thresholds_of_their_own(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path
) -> None:
    calibration = plain[1].calibration
    assert calibration is not None
    values = calibration.model_dump(mode="json")
    low = min(row["agreement"] for row in rows_of(plain[0]).values() if row["labels"] == ["sea"])
    points = [{"false_accept_rate": 0.1, "threshold": round(low - 0.01, 6), "true_accept_rate": 1.0}]
    values["per_class"] = {"sea": {"num_clips": 6, "num_independent_pairs": 10, "auc": 0.5, "points": points}}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(values))
    asked = (f'agreement.calibration="{path}"', "agreement.false_accept_rate=0.2", f'output="{tmp_path / "built"}"')
    shutil.copytree(plain[0] / "state", tmp_path / "built" / "state", ignore=shutil.ignore_patterns("done", "lock"))
    summary, _ = run(folder, *asked, "agreement.per_class=true")
    rule = read_manifest(tmp_path / "built").agreement_rule
    assert rule is not None
    assert rule.per_class == {"sea": round(low - 0.01, 6)}
    assert_judged_by(tmp_path / "built", rule, " (false accepts 20 %)")
    assert all(state == "kept" for key, state in states(tmp_path / "built").items() if int(key[1:3]) % 2)
    assert f"sea {low - 0.01:.4g}" in summary.notes[0]


def test_too_few_pairs_for_the_rate_end_the_build_and_lose_nothing(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary]
) -> None:
    run(folder)
    before = {path.name: path.read_bytes() for path in plain[0].iterdir() if path.is_file()}
    with pytest.raises(CalibrationError, match=r"0\.05 needs at least 20 .* has 12.*All measures are kept") as caught:
        run(folder, "agreement.false_accept_rate=0.05")
    assert "judge.min_agreement" in str(caught.value)
    assert {path.name: path.read_bytes() for path in plain[0].iterdir() if path.is_file()} == before
    cosine = sorted(row["agreement"] for row in rows_of(plain[0]).values())[3]
    summary, work = run(folder, f"judge.min_agreement={cosine}")
    assert work == []
    assert_judged_by(plain[0], AgreementRule(min_agreement=cosine), "")
    assert read_manifest(plain[0]).agreement_rule == AgreementRule(min_agreement=cosine, origin="recipe")
    assert f"{cosine:.4g} or more (judge.min_agreement)" in summary.notes[0]
    assert "75.0 % have that" in summary.notes[1]


def test_a_calibration_of_other_encoders_is_refused_before_any_work(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path
) -> None:
    calibration = plain[1].calibration
    assert calibration is not None
    path = tmp_path / "other.json"
    path.write_bytes(calibration.model_copy(update={"encoder_id": "ViT-B-32+align-0"}).to_json())
    asked = (f'agreement.calibration="{path}"', "agreement.false_accept_rate=0.3")
    build = Build(load_recipe(folder / "asked.toml", asked))
    with pytest.raises(
        CalibrationError, match=r"other\.json was made with the encoders ViT-B-32\+align-0, the recipe's"
    ):
        build.check()
    build.close()
    path.write_bytes(calibration.to_json())
    build = Build(load_recipe(folder / "asked.toml", [asked[0], "agreement.false_accept_rate=0.01"]))
    with pytest.raises(
        CalibrationError, match=r"^agreement\.false_accept_rate, .*needs at least 100 .*ask for 0\.1 or more"
    ):
        build.check()
    build.close()


def test_a_machine_with_other_weights_does_not_mix_them_in(folder: Path) -> None:
    build = Build(load_recipe(folder / "asked.toml"))
    try:
        build.check()
        source = build._sources().sources[0]
        with pytest.raises(EncoderError, match=r"the encoders are ViT-S-32-alt\+align-.* and another-pair where"):
            build.run_batch(SourceBatch("b", (source,), AgreementRule(), "another-pair"), lambda event: None)
    finally:
        build.close()


def test_other_weights_under_the_same_name_are_other_encoders(
    folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path
) -> None:
    for name in ("picture.safetensors", "sound.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    changes = [f'encoders.sound_weights="{tmp_path / "sound.safetensors"}"', f'output="{tmp_path / "built"}"']
    shutil.copytree(plain[0] / "state", tmp_path / "built" / "state", ignore=shutil.ignore_patterns("lock"))
    _, work = run(folder, *changes)
    assert work == []
    torch.manual_seed(1)
    save_align(tmp_path / "sound.safetensors", SoundNetwork(256, "resnet18"), AlignConfig(width=256))
    before = read_manifest(tmp_path / "built").encoder_id
    _, work = run(folder, *changes)
    assert [event.stage for event in work] == ["embed"] * NUM_SOURCES
    assert read_manifest(tmp_path / "built").encoder_id != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["judge.min_agreement=0.2", "agreement.false_accept_rate=0.05"], "both set the threshold of agreement"),
        (["encoders=none", "agreement.false_accept_rate=0.05"], "agreement.false_accept_rate needs encoders"),
        (["encoders=none", "judge.min_agreement=0.2"], "judge.min_agreement needs encoders"),
        (["agreement.false_accept_rate=0"], "agreement.false_accept_rate: .*greater than 0"),
        (["agreement.false_accept_rate=5"], "agreement.false_accept_rate: .*less than 1"),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be_is_refused(folder: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(folder / "asked.toml", changes)


def test_the_plan_says_what_is_asked(folder: Path, plain: tuple[Path, Manifest, BuildSummary], tmp_path: Path) -> None:
    def asked(*changes: str) -> str:
        build = Build(load_recipe(folder / "asked.toml", changes))
        try:
            return build.plan().agreement
        finally:
            build.close()

    calibration = plain[1].calibration
    assert isinstance(calibration, Calibration)
    path = tmp_path / "calibration.json"
    path.write_bytes(calibration.to_json())
    assert asked() == "agreement: stored, not enforced; agreement.false_accept_rate or judge.min_agreement would"
    assert asked("judge.min_agreement=0.25") == "agreement: 0.25 or more (judge.min_agreement)"
    assert "that is calibrated on this dataset's own clips at the end" in asked("agreement.false_accept_rate=0.3")
    assert asked("agreement.false_accept_rate=0.3", f'agreement.calibration="{path}"') == (
        f"agreement: {calibration.threshold(0.3):.4g} or more (false accepts 30 %; "
        "the calibration that agreement.calibration names)"
    )
    assert asked("encoders=none") == "agreement: not measured, the recipe names no encoders"
