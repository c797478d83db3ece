"""The whole build on a handful of real files, served on loopback and fetched by yt-dlp."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import webdataset

from pipeline.build.build import Build, BuildSummary
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.verify import verify
from pipeline.errors import NothingKeptError, OutputError, RecipeError, SourceListError, UserError
from pipeline.events import Event, SourceEvent, StageEvent
from pipeline.manifest import main as manifest_main
from pipeline.runtime.installed import installed_version
from pipeline.synthetic.serve import serve_folder
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise, shots

RECIPE = """
name = "small"
output = "{output}"
sources = ["{sources}"]
[probe]
min_short_side_px = 180
[clips]
length_seconds = 3.0
min_seconds = 2.5
[cut]
renditions = [{{ name = "180", short_side_px = 180 }}, {{ name = "64", short_side_px = 64 }}]
preset = "ultrafast"
[download]
retries = 0
[split]
train = 0.5
validation = 0.25
test = 0.25
"""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files: four to keep (two of them alike), and one each that is rejected or fails in its own way."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "two shots.mp4", shots([3.4, 3.6]), noise(7, seed=1), fps=FPS)
    write_video(folder / "one.MOV", list(shots([1.0, 4.0]))[25:], noise(4, seed=2, channels=2), fps=FPS)
    write_video(folder / "again.mp4", list(shots([1.0, 4.0]))[25:], noise(4, seed=2, channels=2), fps=FPS, crf=34)
    write_video(folder / "silent.mp4", list(shots([1.0] * 3 + [4.0]))[75:], noise(4, level=0.0), fps=FPS)
    write_video(folder / "deaf.mp4", shots([3.0]), None, fps=FPS)
    write_video(folder / "upright.mp4", shots([3.0], size=(192, 320)), noise(3), fps=FPS)
    write_video(folder / "brief.mp4", shots([1.2]), noise(1.2), fps=FPS)
    write_video(folder / "cut off.mp4", shots([8.0]), noise(8, seed=3), fps=FPS, faststart=True, gop=25)
    whole = (folder / "cut off.mp4").read_bytes()
    (folder / "cut off.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("This is no video.\n" * 30)
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def base_url(media: Path) -> Iterator[str]:
    with serve_folder(media) as url:
        yield url


@pytest.fixture(scope="module")
def source_list(media: Path, base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "sources.csv"
    names = sorted(file.name for file in media.iterdir())
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "url", "label", "start"])
        writer.writerows(
            [
                Path(name).stem.replace(" ", "-"),
                base_url + name.replace(" ", "%20"),
                "sea" if "o" in name else "sky",
                "",
            ]
            for name in names
        )
        writer.writerow(["gone", base_url + "gone.mp4", "sea", ""])
        writer.writerow(["broken", base_url + "one.MOV", "sea", "minus one"])
    return path


def recipe(source_list: Path, output: Path, *changes: str) -> BuildRecipe:
    path = output.parent / f"{output.name}.toml"
    path.write_text(RECIPE.format(output=output, sources=source_list))
    return load_recipe(path, changes)


def run(wanted: BuildRecipe) -> tuple[BuildSummary, list[Event]]:
    events: list[Event] = []
    build = Build(wanted)
    try:
        build.check()
        for batch in build.plan().batches:
            build.run_batch(batch, events.append)
        return build.finish(events.append), events
    finally:
        build.close()


@pytest.fixture(scope="module")
def built(source_list: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildSummary, list[Event]]:
    output = tmp_path_factory.mktemp("built") / "small"
    summary, events = run(recipe(source_list, output))
    return output, summary, events


def ledger(output: Path) -> dict[str, dict[str, object]]:
    return {entry["source_id"]: entry for entry in map(json.loads, (output / "ledger.jsonl").read_text().splitlines())}


def test_every_source_ends_in_the_state_it_should(built: tuple[Path, BuildSummary, list[Event]]) -> None:
    entries = ledger(built[0])
    outcome = {
        name: (e["state"], e.get("reason") or (e.get("failure") or {}).get("code")) for name, e in entries.items()
    }  # type: ignore[attr-defined]
    bad_row = next(name for name in outcome if name.startswith("bad-row"))
    assert outcome == {
        bad_row: ("failed", "bad_row"),
        "two-shots": ("kept", None),
        "one": ("kept", None),
        "again": ("rejected", "no_clip_kept"),
        "silent": ("rejected", "no_clip_kept"),
        "deaf": ("rejected", "no_audio"),
        "upright": ("rejected", "portrait"),
        "brief": ("rejected", "too_short"),
        "cut-off": ("failed", "truncated"),
        "text": ("failed", "not_media"),
        "empty": ("failed", "empty"),
        "gone": ("failed", "http_404"),
    }
    assert [clip["reason"] for clip in entries["again"]["clips"]] == ["duplicate"]  # type: ignore[attr-defined]
    assert [clip["reason"] for clip in entries["silent"]["clips"]] == ["silent"]  # type: ignore[attr-defined]


def test_the_numbers_add_up(built: tuple[Path, BuildSummary, list[Event]]) -> None:
    manifest = read_manifest(built[0])
    assert manifest.sources.states == {"kept": 2, "rejected": 5, "failed": 5, "pending": 0}
    assert manifest.clips.states == {"kept": 3, "rejected": 2, "failed": 0, "pending": 0}
    assert manifest.clips.reasons == {"duplicate": 1, "silent": 1}
    assert sum(manifest.clips.splits.values()) == 3
    text = "\n".join(built[1].funnel)
    assert "sources       12  2 kept, 5 rejected, 5 failed" in text
    assert "clips          5  3 kept, 2 rejected, 0 failed" in text


def test_events_tell_of_every_source(built: tuple[Path, BuildSummary, list[Event]]) -> None:
    told = [event.source_id for event in built[2] if isinstance(event, SourceEvent)]
    assert sorted(told) == sorted(name for name in ledger(built[0]) if not name.startswith("bad-row"))


def test_verify_finds_it_whole_and_finds_a_changed_byte(
    built: tuple[Path, BuildSummary, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built[0], copy, ignore=shutil.ignore_patterns("state"))
    assert manifest_main(["verify", str(copy)]) == 0
    tar = sorted((copy / "shards").rglob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    capsys.readouterr()
    assert manifest_main(["verify", str(copy)]) == 1
    assert tar.name in capsys.readouterr().out


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves tars open
def test_webdataset_reads_what_was_written(built: tuple[Path, BuildSummary, list[Event]]) -> None:
    output = built[0]
    manifest = read_manifest(output)
    keys: dict[str, list[str]] = {}
    for shard in manifest.shards:
        for sample in webdataset.WebDataset([str(output / shard.path)], shardshuffle=False):
            keys.setdefault(shard.rendition, []).append(sample["__key__"])
            record = json.loads(sample["json"])
            assert record["key"] == sample["__key__"]
            assert record["split"] == shard.split
            assert sample["flac"][:4] == b"fLaC"
            assert sample["mp4"][4:8] == b"ftyp"
            width = record["renditions"][shard.rendition]["width"]
            assert width == {"180": 300, "64": 106}[shard.rendition]
    assert keys["180"] == keys["64"]
    assert sorted(keys["180"]) == [
        "one_00000000_00003000",
        "two-shots_00000000_00003000",
        "two-shots_00003680_00006680",
    ]


def digests(output: Path) -> dict[str, bytes]:
    files = [output / "manifest.json", output / "samples.parquet", *sorted((output / "shards").rglob("*"))]
    return {str(file.relative_to(output)): file.read_bytes() for file in files if file.is_file()}


def test_the_same_build_is_the_same_bytes_however_it_is_run(
    built: tuple[Path, BuildSummary, list[Event]], source_list: Path, tmp_path: Path
) -> None:
    wide = recipe(
        source_list, tmp_path / "wide", "execution.workers=3", "execution.batch_size=2", "execution.downloads=1"
    )
    run(wide)
    assert digests(tmp_path / "wide") == digests(built[0])


def test_a_finished_build_has_nothing_to_do(built: tuple[Path, BuildSummary, list[Event]], source_list: Path) -> None:
    build = Build(recipe(source_list, built[0]))
    try:
        build.check()
        plan = build.plan()
    finally:
        build.close()
    assert plan.batches == ()
    assert (plan.num_sources, plan.num_finished_sources, plan.num_bad_rows) == (11, 11, 1)


def test_another_threshold_decodes_nothing_and_fetches_nothing(
    built: tuple[Path, BuildSummary, list[Event]], source_list: Path, media: Path, tmp_path: Path
) -> None:
    output = tmp_path / "small"
    shutil.copytree(built[0], output)
    summary, events = run(recipe(source_list, output, "judge.max_silent_share=none", "judge.min_loudness_lufs=none"))
    stages = [event for event in events if isinstance(event, StageEvent)]
    assert {event.subject for event in stages if event.stage == "measure" and not event.reused} == set()
    assert {event.subject for event in stages if event.stage == "cut" and not event.reused} == {"silent"}
    # the newly kept clip needs its video, which is in the store
    assert {event.subject for event in stages if event.stage == "fetch"} == {"silent"}
    assert read_manifest(output).clips.states["kept"] == 4
    assert any("kept" in line for line in summary.funnel)


def test_a_tree_that_is_not_installed_has_a_version_too() -> None:
    assert installed_version("numpy")[0].isdigit()
    assert installed_version("hearscape-that-nobody-installed") == "not installed"


def test_a_build_that_keeps_nothing_says_what_took_most(
    source_list: Path, built: tuple[Path, BuildSummary, list[Event]], tmp_path: Path
) -> None:
    output = tmp_path / "small"
    shutil.copytree(built[0], output)
    with pytest.raises(NothingKeptError, match="blurred took 5 of 5 clips"):
        run(recipe(source_list, output, "judge.min_sharpness=1000", "judge.max_still_share=none"))
    assert ledger(output)["one"]["state"] == "rejected"
    assert not (output / "manifest.json").exists()


def test_two_builds_on_one_output_do_not_meet(source_list: Path, tmp_path: Path) -> None:
    first, second = (Build(recipe(source_list, tmp_path / "small")) for _ in range(2))
    first.check()
    try:
        with pytest.raises(OutputError, match="another build is running there"):
            second.check()
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["clips.lenght_seconds=3"], "clips.lenght_seconds: there is no such setting"),
        (["clips.length_seconds=-1", "cut.quality=99"], "cut.quality: .*got 99"),
        (["judge.min_agreement=0.2"], "judge.min_agreement needs encoders"),
        (["execution.min_free_bytes=1000000000000000"], "execution.min_free_bytes asks for"),
        (
            ['cut.codec="nvenc"', 'cut.preset="p4"'],
            "cut.codec = 'nvenc': the ffmpeg that is used has no working h264_nvenc here",
        ),
        (['output="/proc/nowhere"'], "/proc/nowhere: cannot write there"),
        (['output="nowhere://x/y"'], "^output nowhere://x/y: Protocol not known: nowhere"),
        (
            ['download.cookies_browser="lynx"'],
            '^download.cookies_browser: unsupported browser: "lynx"; choose one of brave',
        ),
        (['sources=["missing.csv"]'], "missing.csv"),
        (['encoders={picture_weights="nowhere.safetensors", sound_weights="nor/this"}'], r"nowhere\.safetensors"),
    ],
)
def test_what_cannot_go_well_is_refused_before_any_work(
    source_list: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(recipe(source_list, tmp_path / "small", *changes))
    assert not (tmp_path / "small" / "state" / "downloads").exists()


def test_every_problem_of_a_recipe_is_told_at_once(source_list: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(
            source_list,
            tmp_path / "small",
            "clips.length_seconds=-1",
            "cut.quality=99",
            "judge.no_such=1",
            'name="a/b"',
        )
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "name",
        "clips.length_seconds",
        "judge.no_such",
        "cut.quality",
    ]


def test_a_section_keeps_its_place_in_the_source(media: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sections.csv"
    sources.write_text(f"id,path,start,end\nlater,{media / 'two shots.mp4'},3.9,6.9\n")
    output = tmp_path / "small"
    run(recipe(sources, output, "split.train=1", "split.validation=0", "split.test=0"))
    names = [clip["key"] for clip in ledger(output)["later"]["clips"]]  # type: ignore[attr-defined]
    assert names == ["later_00003920_00006900"]


def test_the_output_may_be_on_any_file_system(media: Path, tmp_path: Path) -> None:
    sources = tmp_path / "one.csv"
    sources.write_text(f"id,path\none,{media / 'two shots.mp4'}\n")
    wanted = recipe(sources, tmp_path / "here", f'execution.store="{tmp_path / "store"}"')
    run(wanted)
    elsewhere = wanted.model_copy(update={"output": "memory://bucket/there"})
    run(elsewhere)
    assert verify("memory://bucket/there") == []
    memory = fsspec.filesystem("memory")
    assert {name: memory.cat(f"/bucket/there/{name}") for name in digests(tmp_path / "here")} == digests(
        tmp_path / "here"
    )
    build = Build(elsewhere)
    assert build.plan().batches == ()
    build.close()


def test_no_good_row_is_an_error_with_the_line(tmp_path: Path) -> None:
    sources = tmp_path / "bad.csv"
    sources.write_text("url,start\nhttp://127.0.0.1/a.mp4,later\n")
    with pytest.raises(SourceListError, match=r"bad\.csv:2"):
        run(recipe(sources, tmp_path / "small"))


def test_one_kept_clip_of_each_is_not_lost_when_cuts_are_not_kept(
    source_list: Path, built: tuple[Path, BuildSummary, list[Event]], tmp_path: Path
) -> None:
    output = tmp_path / "small"
    shutil.copytree(built[0], output)
    before = digests(output)
    run(recipe(source_list, output, "execution.keep_cuts=false"))
    assert digests(output) == before
    assert not (output / "state" / "cuts").exists()
    run(recipe(source_list, output, "execution.keep_cuts=false"))
    assert digests(output) == before
