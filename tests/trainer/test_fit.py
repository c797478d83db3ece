"""The command: what it refuses, how it goes on, and the same fit on two processes as on one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import RecipeError
from pipeline.runtime.recipe_file import read_recipe
from pipeline.settings import Settings
from tests import paired
from trainer.align import stage as align_module
from trainer.engine.checkpoint import load_state
from trainer.fit import main
from trainer.recipe import FitRecipe, find_datasets

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "manifests" / "recipes").glob("fit-*.toml"))


SMALL = "align.partner={picture_model = 'hearscape-small'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset ``paired`` (16 samples to train on, 4 to validate), the partner's weights, and a recipe."""
    folder = tmp_path_factory.mktemp("fit")
    paired.build_paired(folder / "sets" / "paired", {"train": 4, "validation": 1})
    (folder / "fit.toml").write_text(paired.recipe_text(paired.save_model(folder)))
    return folder


def words(folder: Path, out: Path, *changes: str) -> list[str]:
    named = ["--shards", str(folder / "sets"), "--recipe", str(folder / "fit.toml"), "--out", str(out)]
    return [*named, *(word for change in changes for word in ("--set", change))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_a_fit_loads(path: Path) -> None:
    recipe = read_recipe(FitRecipe, path)
    assert recipe.folder == Path("runs") / path.stem.removeprefix("fit-")
    assert recipe.align.num_samples % recipe.reader.batch_size < recipe.reader.batch_size


def test_there_are_recipes() -> None:
    assert [path.name for path in RECIPES] == [
        "fit-1024.toml",
        "fit-256.toml",
        "fit-landscape.toml",
        "fit-painted.toml",
        "fit-paper.toml",
        "fit-prior-1024.toml",
        "fit-prior-256.toml",
        "fit-prior-512.toml",
        "fit-prior-stylegan3-r.toml",
        "fit-prior-stylegan3-t.toml",
        "fit-prior-tiny.toml",
        "fit-tiny.toml",
    ]


def test_every_setting_says_what_it_means() -> None:
    def undocumented(kind: type[Settings], path: str) -> list[str]:
        missing = []
        for name, field in kind.model_fields.items():
            if not field.description:
                missing.append(f"{path}{name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                missing += undocumented(field.annotation, f"{path}{name}.")
        return missing

    assert undocumented(FitRecipe, "") == []


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*words(folder, out, "align.learning_rate=0.25"), "--stages", "align", "--dry-run"]) == 0
    told = capsys.readouterr().out
    settings = json.loads(told[: told.index("\ndataset ")])
    assert settings["align"]["learning_rate"] == 0.25
    assert settings["run"]["out"] == str(out)
    assert f"dataset  {folder}/sets/paired/manifest.json: train 16, validation 4; 4 classes" in told
    assert "stage    align: 0 samples done" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--stages", "align,dream"], "there is no stage 'dream'; there are: prior, align"),
        (["--stages", ","], "stages: none is named"),
        (["--shards", "{tmp}"], "there is no dataset below it"),
        (["--shards", "{tmp}/nowhere"], "nowhere is not a folder"),
        (["--shards", "http://127.0.0.1:9/sets"], "http://127.0.0.1:9/sets cannot be listed: Cannot connect"),
        (["--set", "weights={other = 1.0}"], "weights: no dataset is named other; there are: paired"),
        (["--set", "weights={paired = 0.0}"], r"none of its datasets \(paired\) has samples to train on"),
        (["--set", "align.backbone=resnet1800"], "timm has no network named 'resnet1800'"),
        (["--set", "align.partner.picture_model=ViT-B-33"], "no model named 'ViT-B-33'"),
        (["--set", "align.partner.picture_weights=nowhere.pt"], "align.partner.picture_weights: 'nowhere.pt' is no file"),
        (["--set", "align.partner.picture_weights=https://h/w.pt"], "give picture_sha256"),
        (["--set", SMALL], "hearscape-small knows classes, not captions"),
        (["--set", SMALL, "--set", "align.use_captions=false", "--set", "align.prompts=['{}']"],
         "knows no class in the text 'wood pigeon'"),
        (["--set", "align.partner.picture_model=hearscape-small"], "hearscape-small takes no picture_weights"),
        (["--set", "align.prompts=['a {thing}']"], "needs one {} for the class"),
        (["--set", "align.picture_weight=0", "--set", "align.text_weight=0", "--set", "align.augmented_weight=0"],
         "nothing would be learned"),
        (["--set", "align.rate=1"], "align.rate: there is no such setting"),
        (["--set", "reader.picture_px=64"], "64"),
        (["--set", "run.device=tpu"], "run.device: 'tpu'"),
        (["--recipe", "nowhere.toml"], "recipe nowhere.toml: No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Sequence[str], message: str
) -> None:
    given = [word.replace("{tmp}", str(tmp_path)) for word in changes]
    assert main([*words(folder, tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message if "\\" in message else re.escape(message), error)
    assert not (tmp_path / "run" / "align" / "resume.safetensors").exists()


def test_a_batch_that_the_dataset_cannot_fill_becomes_smaller_and_stays_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    larger = ("reader.batch_size=1024", "align.num_samples=32")
    said = "align: reader.batch_size is 16, not 1,024: the split train has 16 clips"
    assert main([*words(folder, out, *larger), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"note     {said}" in told
    assert json.loads(told[: told.index("\ndataset ")])["reader"]["batch_size"] == 16
    assert main(words(folder, out, *larger, "run.pause_after_samples=16")) == 0
    assert said in capsys.readouterr().err.splitlines()
    assert main(words(folder, out, *larger)) == 0
    assert load_state(out / "align" / "resume.safetensors", "align")[1]["num_steps"] == 2


def test_a_dataset_too_small_for_any_batch_is_refused_with_its_number(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "32")  # each rank wants a clip of every batch
    assert main([*words(folder, tmp_path / "run", "reader.batch_size=32"), "--dry-run"]) == 2
    assert (
        "reader.batch_size 32: the stage align needs 32 clips for a batch of 32 ranks, and the split train has 16"
        in capsys.readouterr().err
    )


def test_what_later_stages_lack_is_said_before_the_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rendition of the stage video and a class of the packaged encoder, before the prior's first picture."""
    small = ("prior.generator={kind = 'stylegan2', resolution = 16, z_dim = 8, w_dim = 8, mapping_layers = 2, widths = [8, 8, 8]}",
             "prior.batch_size=4")  # fmt: skip
    stages = ["--stages", "prior,align"]
    assert main([*words(folder, tmp_path / "run", *small, "reader.picture_px=64"), *stages]) == 2
    error = capsys.readouterr().err
    assert "align (reader.picture_px 64): dataset paired: no rendition is large enough for pictures of 64 px" in error
    packaged = (SMALL, "align.use_captions=false", "align.prompts=['{}']")
    assert main([*words(folder, tmp_path / "run", *small, *packaged), *stages]) == 2
    assert "knows no class in the text 'wood pigeon'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "prior").exists()


def test_a_disk_too_full_for_the_checkpoints_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert main(words(folder, tmp_path / "run")) == 2
    assert re.search(r"run.out .*: its checkpoints take [\d,]+ MB, and the disk has 1 MB free", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_shards_must_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", str(folder / "fit.toml")]) == 2
    assert "name the folder of your datasets with --shards" in capsys.readouterr().err


def test_one_weight_is_not_taken_for_two_datasets_of_one_name(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder / "sets" / "paired", tmp_path / name)
    assert len(find_datasets(str(tmp_path), {})) == 2
    with pytest.raises(
        RecipeError, match=r"weights: 2 datasets are named paired, .*one/manifest.json, .*two/manifest.json"
    ):
        find_datasets(str(tmp_path), {"paired": 2.0})


@pytest.fixture
def paused(folder: Path, tmp_path: Path) -> Path:
    """A run that was paused after its first step."""
    out = tmp_path / "run"
    assert main(words(folder, out, "run.pause_after_samples=8")) == 0
    return out


def test_a_run_goes_on_and_says_what_was_changed(
    folder: Path, paused: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(folder, paused), "--dry-run"]) == 0
    assert "stage    align: 8 samples done" in capsys.readouterr().out
    assert main(words(folder, paused, "align.learning_rate=0.5", "run.tick_seconds=7")) == 0
    told = [record.getMessage() for record in caplog.records if record.name == "trainer.engine.run"]
    assert told == [f"{paused} was begun with other settings: align.learning_rate was 0.001, is 0.5"]
    finished = (paused / "align" / "resume.safetensors").read_bytes()
    lines = (paused / "stats.jsonl").read_text()
    assert main(words(folder, paused, "align.learning_rate=0.5")) == 0  # nothing is left to do
    assert (paused / "align" / "resume.safetensors").read_bytes() == finished
    assert (paused / "stats.jsonl").read_text() == lines


def test_lines_of_what_is_done_again_are_forgotten(folder: Path, paused: Path) -> None:
    with (paused / "stats.jsonl").open("a") as file:
        file.write('{"stage": "align", "kind": "tick", "samples_seen": 16, "loss": -1.0}\n{"stage": "al')
    assert main(words(folder, paused)) == 0
    read = [json.loads(line) for line in (paused / "stats.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in read if line["kind"] == "tick"] == [8, 32]
    assert all(line.get("loss") != -1.0 for line in read)


def test_a_checkpoint_of_another_network_is_refused(
    folder: Path, paused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, paused, "align.backbone=test_convnext")) == 2
    assert "is of another network (backbone was test_resnet, is test_convnext)" in capsys.readouterr().err
    assert main(words(folder, paused, "reader.batch_size=4")) == 2
    assert "batch_size was 8 and is 4" in capsys.readouterr().err


def test_a_dataset_that_is_gone_between_two_runs_is_told_and_the_checkpoint_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, out = tmp_path / "sets", tmp_path / "run"
    shutil.copytree(folder / "sets" / "paired", sets / "one")
    paired.build_paired(sets / "two", {"train": 1}, name="another")
    named = [*words(folder, out, "run.pause_after_samples=8"), "--shards", str(sets)]
    assert main(named) == 0
    kept = (out / "align" / "resume.safetensors").read_bytes()
    shutil.rmtree(sets / "two")
    assert main(named) == 2
    printed = capsys.readouterr().err
    assert f"error: {out}/align/resume.safetensors does not fit what is to be read now: " in printed
    assert f"the dataset another ({sets}/two) is not there any more. Put back the datasets as they were" in printed
    assert f"To begin the stage anew, remove {out}/align, or choose another folder with --out" in printed
    assert (out / "align" / "resume.safetensors").read_bytes() == kept


def test_a_dataset_from_which_sources_were_withdrawn_is_told_by_its_folder(
    folder: Path, paused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paired.build_paired(tmp_path / "sets" / "paired", {"train": 3, "validation": 1})
    capsys.readouterr()
    assert main([*words(folder, paused), "--shards", str(tmp_path / "sets")]) == 2
    assert (
        f"the dataset paired ({tmp_path}/sets/paired) has changed: it had 16 clips and has 12. Put back"
        in capsys.readouterr().err
    )


def test_a_device_that_is_full_in_align_names_the_micro_batch_to_try_and_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a GPU does: in the middle of the third step. No micro-batch is set, so that a rank computes its whole batch at once."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(words(folder, whole)) == 0
    real, calls = align_module.backward_through, []

    def full(*arguments: object) -> torch.Tensor:
        calls.append(1)
        loss = real(*arguments)  # type: ignore[arg-type]
        if len(calls) == 3:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of"
            )
        return loss

    monkeypatch.setattr(align_module, "backward_through", full)
    assert main(words(folder, out)) == 1
    printed = capsys.readouterr().err
    assert (
        "failed: align: the device has too little memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in printed
    )
    assert "set align.micro_batch_size to 4, it is none, so that 8 are computed at once" in printed
    assert load_state(out / "align" / "resume.safetensors", "align")[1]["samples_seen"] == 16
    assert main(words(folder, out)) == 0
    first, second = (load_file(one / "align" / "last.safetensors") for one in (whole, out))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("damage", ["truncated", "pickle", "foreign", "weights"])
def test_a_damaged_checkpoint_is_refused_by_name(
    folder: Path, paused: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = paused / "align" / "resume.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:10_000])
    elif damage == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif damage == "foreign":
        shutil.copy(folder / "tiny.safetensors", path)
    else:
        from trainer.engine.checkpoint import load_state, save_state

        tensors, values = load_state(path, "align")
        save_state(path, "align", {**tensors, "network.conv.weight": torch.zeros(3, 1, 5, 5)}, values)
    before = path.read_bytes()
    assert main(words(folder, paused)) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_folder_that_is_at_work_or_cannot_be_written_is_refused(
    folder: Path, paused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.engine.run import locked

    with locked(paused, is_first=True):
        assert main(words(folder, paused)) == 2
    assert "another run is at work there" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(words(folder, tmp_path / "file")) == 2
    assert "choose another folder with --out" in capsys.readouterr().err


SCRIPT = """
import sys
from pathlib import Path
from tests import paired
from trainer.engine.checkpoint import load_state
from trainer.fit import main

if __name__ == "__main__":
    paired.know_model(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
"""


def command(folder: Path, ranks: int) -> list[str]:
    """The real command in so many processes, each of which is told of the small model first."""
    script = folder / "run_fit.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, str(script), str(folder)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_two_ranks_fit_as_one_does(folder: Path, tmp_path: Path) -> None:
    """The same batches, the same losses over all of them: micro-batches of 4 are rank 0's and rank 1's halves."""
    changes = ("align.micro_batch_size=4", "run.tick_seconds=0.0001", "align.validate_every_samples=1000")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(words(folder, one, *changes)) == 0
    ran = subprocess.run(
        [*command(folder, ranks=2), *words(folder, two, *changes)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    losses = [
        [(line["samples_seen"], line["loss"]) for line in map(json.loads, (out / "stats.jsonl").read_text().splitlines())
         if line["kind"] == "tick"]
        for out in (one, two)
    ]  # fmt: skip
    assert [seen for seen, _ in losses[0]] == [seen for seen, _ in losses[1]] == [8, 16, 24, 32]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], rel=1e-4)
    first, second = (load_file(out / "align" / "resume.safetensors") for out in (one, two))
    trained = [name for name in first if name.startswith("network.") and "running" not in name and "num_" not in name]
    assert len(trained) > 30
    for name in trained:
        assert torch.allclose(first[name], second[name], atol=2e-4), name
    validated = [json.loads((out / "stats.jsonl").read_text().splitlines()[-1]) for out in (one, two)]
    assert [line["kind"] for line in validated] == ["validation", "validation"]
    assert validated[1]["num_samples"] == validated[0]["num_samples"] == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_run_writes_a_checkpoint_and_says_how_to_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    out = tmp_path / "run"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (out / "stats.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    code = main(words(folder, out, "align.num_samples=100000", "run.tick_seconds=0.01"))
    thread.join()
    assert code == 128 + number
    assert signal.getsignal(number) is before
    assert (
        f"Interrupted. To continue, run it again: python -m trainer.fit --shards {folder}/sets"
        in capsys.readouterr().err
    )
    steps = int(load_file(out / "align" / "resume.safetensors")["optimizer.0.step"])
    assert main(words(folder, out, f"align.num_samples={8 * steps + 8}")) == 0
    assert int(load_file(out / "align" / "resume.safetensors")["optimizer.0.step"]) == steps + 1


def test_the_partner_may_not_be_a_pickle_or_another_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"visual.proj": torch.zeros(3, 3)}, wrong)
    assert main(words(folder, tmp_path / "run", f"align.partner.picture_weights={wrong}")) == 2
    assert f"{wrong} does not hold weights of {paired.MODEL}" in capsys.readouterr().err
    sums = f"align.partner.picture_sha256={'0' * 64}"
    assert main(words(folder, tmp_path / "run", sums)) == 2
    assert "has SHA-256" in capsys.readouterr().err
