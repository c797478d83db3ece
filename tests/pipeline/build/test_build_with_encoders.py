"""A build that listens: embeddings and agreement of every measured clip, stored and, when asked, enforced.

The networks have random weights of the right shapes: what the numbers mean is not tested here, where they go is.
"""

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet
import pytest
import torch
import webdataset
from safetensors.torch import save_file

from pipeline.agreement.measures import NATURE_CLASSES
from pipeline.build.build import Build
from pipeline.build.recipe import load_recipe
from pipeline.dataset.manifest import read_manifest
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.errors import EncoderError, NothingKeptError
from pipeline.events import Event, StageEvent
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, shots

MODEL, WIDTH = "ViT-S-32-alt", 256
RECIPE = """
name = "heard"
output = "{folder}/built"
sources = ["{folder}/sources.csv"]
[probe]
min_short_side_px = 96
[clips]
length_seconds = 3.0
min_seconds = 2.5
[cut]
renditions = [{{ name = "96", short_side_px = 96 }}]
preset = "ultrafast"
[encoders]
picture_model = "ViT-S-32-alt"
picture_weights = "{folder}/picture.safetensors"
sound_kind = "align"
sound_weights = "{folder}/sound.safetensors"
frames_per_clip = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heard")
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "picture.safetensors")
    save_align(folder / "sound.safetensors", SoundNetwork(WIDTH, "resnet18"), AlignConfig(width=WIDTH))
    write_video(folder / "one.mp4", shots([3.4, 3.6]), noise(7, seed=1), fps=FPS)
    write_video(folder / "silent.mp4", shots([3.0]), noise(3, level=0.0), fps=FPS)
    (folder / "sources.csv").write_text("id,path,label\none,one.mp4,sea\nsilent,silent.mp4,sea\n")
    (folder / "heard.toml").write_text(RECIPE.format(folder=folder))
    return folder


def run(folder: Path, output: Path, *changes: str, events: list[Event] | None = None) -> list[Event]:
    events = [] if events is None else events
    build = Build(load_recipe(folder / "heard.toml", [f'output="{output}"', *changes]))
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, events.append)
        build.finish(events.append)
    finally:
        build.close()
    return events


@pytest.fixture(scope="module")
def first_built(folder: Path) -> Path:
    """Not to be written into."""
    run(folder, folder / "built")
    return folder / "built"


@pytest.fixture
def output(first_built: Path, tmp_path: Path) -> Path:
    """A copy of the build, for one test."""
    return Path(shutil.copytree(first_built, tmp_path / "built", ignore=shutil.ignore_patterns("lock")))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves tars open
def test_agreement_is_measured_stored_and_enforced_without_embedding_twice(folder: Path, output: Path) -> None:
    rows = pyarrow.parquet.read_table(output / "samples.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["kept", "kept", "rejected"]
    assert all(-1 <= row["agreement"] <= row["best_agreement"] + 1e-6 <= 1 + 1e-6 for row in rows)
    manifest = read_manifest(output)
    assert manifest.encoder_id == rows[0]["encoder_id"]

    embedded = {row["key"]: row for row in pyarrow.parquet.read_table(output / "embeddings.parquet").to_pylist()}
    assert sorted(embedded) == [row["key"] for row in rows]
    for row in rows:
        picture, sound = (np.asarray(embedded[row["key"]][name], np.float32) for name in ("picture", "sound"))
        assert picture.shape == (WIDTH,)
        assert float(picture @ sound) == pytest.approx(row["agreement"], abs=0.003)

    for shard in manifest.shards:
        for sample in webdataset.WebDataset([str(output / shard.path)], shardshuffle=False):
            stored = np.load(io.BytesIO(sample["picture.npy"]))
            assert stored.dtype == np.float16
            assert np.array_equal(stored, np.asarray(embedded[sample["__key__"]]["picture"], np.float16))
            told = json.loads(sample["json"])
            assert told["agreement"]["encoder_id"] == manifest.encoder_id
            (row,) = (row for row in rows if row["key"] == sample["__key__"])
            assert told["agreement"]["margin"] == row["margin"]
            assert told["in_time"]["motion_match"] == row["motion_match"]

    check_margins(output, rows, embedded)

    low, high = sorted(row["agreement"] for row in rows if row["state"] == "kept")
    events = run(folder, output, f"judge.min_agreement={(low + high) / 2}")
    stages = [event for event in events if isinstance(event, StageEvent) and event.stage in ("measure", "embed", "cut")]
    assert stages
    assert all(event.reused for event in stages)
    assert read_manifest(output).clips.reasons == {"disagrees": 1, "silent": 1}

    with pytest.raises(NothingKeptError, match="disagrees took 2 of 3 clips"):
        run(folder, output, "judge.min_agreement=0.999")


def check_margins(output: Path, rows: list[dict[str, Any]], embedded: dict[str, dict[str, Any]]) -> None:
    """The label is none of the classes: the shown class is the clip's own."""
    (stored,) = (output / "state" / "prompts").glob("*.npz")
    with np.load(stored) as arrays:
        prompts = arrays["rows"]
        assert str(arrays["kept_as"]) == f"prompts/{stored.name}"
    assert prompts.shape == (len(NATURE_CLASSES), WIDTH)
    for row in rows:
        picture, sound = (np.asarray(embedded[row["key"]][name], np.float32) for name in ("picture", "sound"))
        of_picture, of_sound = prompts @ picture, prompts @ sound
        own = int(of_picture.argmax())
        assert (row["shown_class"], row["heard_class"]) == (NATURE_CLASSES[own], NATURE_CLASSES[int(of_sound.argmax())])
        assert row["margin"] == pytest.approx(of_sound[own] - np.delete(of_sound, own).max(), abs=1e-3)


def counted(events: list[Event]) -> Counter[tuple[str, bool]]:
    """How often each stage of a source was done, and how often an earlier run had done it."""
    return Counter((event.stage, event.reused) for event in events if isinstance(event, StageEvent))


def ledger(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]


def previews(output: Path) -> list[Path]:
    return sorted((output / "state" / "previews").rglob("*.flac"))


def test_previews_that_are_gone_are_made_again_only_if_the_user_says_so(folder: Path, output: Path) -> None:
    before = (output / "embeddings.parquet").read_bytes()
    for path in previews(output):
        path.unlink()
    shutil.rmtree(output / "state" / "embedded")
    events: list[Event] = []
    with pytest.raises(NothingKeptError):
        run(folder, output, "judge.min_motion=0.3", events=events)
    assert counted(events)["measure", False] == counted(events)["embed", False] == 0
    failures = [entry["failure"] for entry in ledger(output)]
    assert [(failure["stage"], failure["code"], failure["transient"]) for failure in failures] == [
        ("embed", "previews_gone", True)
    ] * 2
    assert "set execution.decode_again=true" in failures[0]["message"]

    events = run(folder, output, "judge.min_motion=0.3", "execution.decode_again=true")
    assert counted(events)["measure", False] == counted(events)["embed", False] == 2
    assert (output / "embeddings.parquet").read_bytes() == before


def test_damaged_weights_stop_the_build_and_are_named(folder: Path, output: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((folder / "picture.safetensors").read_bytes()[:100_000])
    with pytest.raises(EncoderError, match=r"damaged\.safetensors"):
        run(folder, output, f'encoders.picture_weights="{damaged}"')
    run(folder, output)  # nothing of it was recorded


def test_another_encoder_embeds_anew_without_any_decode(folder: Path, output: Path) -> None:
    """From what the build before left, which is then not kept."""
    before = (output / "embeddings.parquet").read_bytes()
    assert len(previews(output)) == 2
    torch.manual_seed(1)
    save_align(folder / "other.safetensors", SoundNetwork(WIDTH, "resnet18"), AlignConfig(width=WIDTH))
    other = f'encoders.sound_weights="{folder}/other.safetensors"'
    events = run(folder, output, other, "execution.keep_previews=false")
    assert counted(events)["measure", False] == 0
    assert (counted(events)["measure", True], counted(events)["embed", False], counted(events)["embed", True]) == (
        2,
        2,
        0,
    )
    assert (output / "embeddings.parquet").read_bytes() != before
    assert previews(output) == []

    events = run(folder, output, other, "judge.max_speech_share=0.9")  # embedded, so that nothing needs the previews
    assert (counted(events)["measure", False], counted(events)["embed", False], counted(events)["embed", True]) == (
        0,
        0,
        2,
    )
    events = run(folder, output)  # the first encoders' are still there, too
    assert (counted(events)["measure", False], counted(events)["embed", False]) == (0, 0)
    assert (output / "embeddings.parquet").read_bytes() == before
