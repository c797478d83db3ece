"""Stage after stage, through the command: from align to a video, again, further, and on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer.guided import PACKAGED, SIDE_PX, fit, lines, words
from tests.trainer.sounding import tone
from trainer import generate
from trainer.engine.checkpoint import load_state
from trainer.model.sound_video_file import find_model, load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

ROOT = Path(__file__).parents[2]
SMALL = ("align.num_samples=16", "invert.num_samples=16", "video.num_samples=16", "video.validation_samples=4",
         "video.num_shown=1")  # fmt: skip
OWN_ALIGN = "invert.guide.sound_weights=null"


def seen(out: Path) -> dict[str, int]:
    stages = ("align", "invert", "video")
    return {name: load_state(out / name / "resume.safetensors", name)[1]["samples_seen"] for name in stages}


def test_align_invert_and_video_one_after_the_other_and_on(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "video,align,invert", *SMALL, OWN_ALIGN) == 0
    assert seen(out) == {"align": 16, "invert": 16, "video": 16}
    told = [(line["stage"], line["kind"]) for kind in ("tick", "validation") for line in lines(out, kind)]
    assert told == [(stage, kind) for kind in ("tick", "validation") for stage in ("align", "invert", "video")]
    model, header = load_model(find_model(str(out)))
    assert find_model(str(out)) == out / "video" / "best.safetensors"
    assert (header.stage, header.samples_seen) == ("video", 16)
    assert model.generator.resolution == SIDE_PX
    align = load_file(out / "align" / "best.safetensors")
    assert len(header.encoder_ids) == 2
    assert align["conv.weight"].shape == model.inversion.conv.weight.shape

    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")} | {
        out / "stats.jsonl": (out / "stats.jsonl").read_bytes()
    }
    assert len(before) == 10
    assert fit(guided, out, "align,invert,video", *SMALL, OWN_ALIGN) == 0  # nothing is left to do
    assert [str(path) for path, data in before.items() if path.read_bytes() != data] == []

    assert fit(guided, out, "align,invert,video", *SMALL, OWN_ALIGN, "video.num_samples=24") == 0
    assert seen(out) == {"align": 16, "invert": 16, "video": 24}
    assert (out / "invert" / "last.safetensors").read_bytes() == before[out / "invert" / "last.safetensors"]
    assert load_model(out / "video" / "last.safetensors")[1].samples_seen == 24

    import soundfile

    soundfile.write(tmp_path / "tone.wav", tone(900, 1.5), 44_100)
    capsys.readouterr()
    named = ["--checkpoint", str(out), "--sound", str(tmp_path / "tone.wav"), "--out", str(tmp_path / "tone.mp4")]
    assert generate.main([*named, "--fps", "8"]) == 0
    import av

    with av.open(tmp_path / "tone.mp4") as container:
        assert len(list(container.decode(video=0))) == 12


SCRIPT = """
import sys
from pathlib import Path
from tests import paired
from trainer.fit import main

if __name__ == "__main__":
    paired.know_model(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
"""


def test_two_ranks_fit_both_stages_to_their_end(guided: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    changes = (*SMALL, "run.tick_seconds=0.0001", "invert.validate_every_samples=8")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(guided),
         *words(guided, out, "invert,video", *changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for stage in ("invert", "video"):
        _, values = load_state(out / stage / "resume.safetensors", stage)
        assert (values["samples_seen"], values["num_steps"]) == (16, 2)
    told = lines(out, "tick")
    assert [(line["stage"], line["samples_seen"]) for line in told] == [
        ("invert", 8), ("invert", 16), ("video", 8), ("video", 16),
    ]  # fmt: skip
    validated = lines(out, "validation")
    assert [(line["stage"], line["samples_seen"]) for line in validated] == [
        ("invert", 8),
        ("invert", 16),
        ("video", 16),
    ]
    assert [line["num_samples"] for line in validated[:2]] == [8, 8]
    assert validated[2]["num_clips"] == 4
    assert fit(guided, out, "invert,video", *changes, "video.num_samples=24") == 0  # one rank goes on where two were
    assert load_state(out / "video" / "resume.safetensors", "video")[1]["samples_seen"] == 24


AGREE = """
import sys
from pathlib import Path

import torch

from pipeline.runtime.recipe_file import read_recipe
from tests import paired
from trainer.recipe import FitRecipe, find_datasets
from trainer.engine.ranks import gather_items, leave, wait_for_all
from trainer.invert.stage import Invert
from trainer.invert.shared import clip_reader, generator_file, model_config
from trainer.model.generator import weights_sha256
from trainer.model.sound_video import SoundVideoModel
from trainer.engine.run import Run, make_fabric
from trainer.engine.stats import Stats
from trainer.video.stage import Video, start_model

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
paired.know_model(folder)
recipe = read_recipe(FitRecipe, folder / "fit.toml", sys.argv[3:])
fabric = make_fabric(recipe.run)
fabric.launch()
run = Run(out, recipe.run, find_datasets(str(folder / "sets"), {}), fabric, Stats(None))
held = generator_file(recipe, out)
torch.manual_seed(0)
model = SoundVideoModel(model_config(recipe), held.generator())
stages = [Invert(recipe, run, model, held.config)]
for number in range(2):
    stage = stages[-1]
    reader = clip_reader(recipe, run, "train", 8, 16)
    told = [stage.step(batch) for batch, _ in zip(reader, range(2))][-1]
    found = [*map(weights_sha256, stage.networks().values()), stage.samples_seen, told, stage.validate()]
    first, second = gather_items([found])
    assert first == second, (first, second)
    stage.save(reader.state_dict())
    stage.finish_saving()
    wait_for_all()
    reader.close()
    if not number:
        stages.append(Video(recipe, run, *start_model(recipe, run)))
if fabric.is_global_zero:
    print("equal", [stage.samples_seen for stage in stages])
leave()
"""


def test_two_ranks_hold_the_same_networks(guided: Path, tmp_path: Path) -> None:
    """Also the statistics that networks keep of what they saw."""
    out = tmp_path / "run"
    script = tmp_path / "agree.py"
    script.write_text(AGREE)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         str(guided), str(out), *PACKAGED, "invert.guide={sound_kind = 'small', num_cutouts = 2}", *SMALL],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ["equal [16, 16]"]


def test_a_dry_run_tells_how_far_each_stage_is(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert fit(guided, out, "invert", *SMALL, "run.pause_after_samples=8") == 0
    from trainer.fit import main

    capsys.readouterr()
    assert main([*words(guided, out, "align,invert,video", *SMALL), "--dry-run"]) == 0
    told = capsys.readouterr().out
    settings = json.loads(told[: told.index("\ndataset ")])
    assert settings["invert"]["num_samples"] == 16
    stages = [line.split(",")[0] for line in told.splitlines() if line.startswith("stage")]
    assert stages == [
        "stage    align: 0 samples done",
        "stage    invert: 8 samples done",
        "stage    video: 0 samples done",
    ]
