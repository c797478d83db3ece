"""The agreement filter as the demo has it: the packaged pair, its own calibration, real encoding and decoding, and painted clips of
seeds that nothing was learned from. Each class is heard twice: with its own picture, and behind the picture of another class.
"""

from pathlib import Path

import pyarrow.parquet
import pytest

from pipeline.agreement.calibration import read_calibration
from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.encoders.pair import packaged_calibration
from pipeline.schema import Reason
from pipeline.synthetic.catalogue import SceneSpec, SoundSpec, SyntheticSpec, catalogue
from pipeline.synthetic.render import render
from pipeline.synthetic.sounds import NATURE_KINDS

SECONDS = 4.2
RATE = 0.1
RECIPE = f"""
name = "listened"
output = "{{folder}}/built"
sources = ["{{folder}}/sources.csv"]
[probe]
min_short_side_px = 96
[clips]
length_seconds = 4.0
min_seconds = 3.5
[encoders]
num_threads = 1
[agreement]
false_accept_rate = {RATE}
[cut]
renditions = [{{{{ name = "96", short_side_px = 96 }}}}]
preset = "ultrafast"
"""


def specs() -> list[SyntheticSpec]:
    """Of every class a clip with its own sound, and one with that of the class three places on; and the demo's wrong sound."""
    kinds = list(NATURE_KINDS)
    made = [next(spec for spec in catalogue() if spec.name == "wrong_sound")]
    for place, kind in enumerate(kinds):
        for name, sound in (("own", kind), ("other", kinds[(place + 3) % len(kinds)])):
            seed = 300 + 10 * place + (name == "other")
            scenes, sounds = (SceneSpec(kind, SECONDS, seed),), (SoundSpec(sound, SECONDS, seed + 5),)
            made.append(SyntheticSpec(f"{kind}-{name}", f"{kind}-{name}.mp4", kind, "", scenes, sounds, fps=15.0))
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listened")
    rows = ["id,path,label"]
    for spec in specs():
        render(spec, folder / spec.file_name, scale=0.5)
        rows.append(f"{spec.name},{spec.file_name},{spec.label}")
    (folder / "sources.csv").write_text("\n".join(rows))
    (folder / "listened.toml").write_text(RECIPE.format(folder=folder))
    build = Build(load_recipe(folder / "listened.toml"))
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, lambda _: None)
        build.finish(lambda _: None)
    finally:
        build.close()
    return folder / "built"


@pytest.fixture(scope="module")
def manifest(built: Path) -> Manifest:
    return read_manifest(built)


def test_clips_with_their_own_sound_are_kept_and_those_with_another_rejected(built: Path) -> None:
    rows = pyarrow.parquet.read_table(built / "samples.parquet").to_pylist()
    verdicts = {(row["source_id"], row["state"], row["reason"]) for row in rows}
    wanted = {
        (spec.name, "kept", None) if spec.name.endswith("-own") else (spec.name, "rejected", Reason.DISAGREES.value)
        for spec in specs()
    }
    assert verdicts == wanted
    assert len(wanted) == 2 * len(NATURE_KINDS) + 1


def test_the_threshold_is_the_packaged_calibration_s_and_the_manifest_says_so(manifest: Manifest, built: Path) -> None:
    path = packaged_calibration()
    assert path is not None
    calibration = read_calibration(str(path))
    point = calibration.point(RATE)
    rule = manifest.agreement_rule
    assert rule is not None
    assert (rule.origin, rule.calibration_id) == ("packaged", calibration.calibration_id)
    assert rule.min_agreement == pytest.approx(point.threshold)
    assert manifest.encoder_id == calibration.encoder_id
    rows = pyarrow.parquet.read_table(built / "samples.parquet").to_pylist()
    for row in rows:
        assert (row["agreement"] >= point.threshold) == (row["state"] == "kept"), row["source_id"]
