"""The manifest: written, read, refused, found; and every kind of damage that verification must see."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.dataset.manifest import (
    Counts,
    Manifest,
    Rendition,
    canonical_json,
    dataset_root,
    find_manifests,
    join,
    read_manifest,
    write_manifest,
)
from pipeline.dataset.shards import Sample, SampleContent, ShardSettings, member_names, plan_shards, write_shard
from pipeline.dataset.tables import ClipRow, EmbeddingRow, write_embeddings, write_samples
from pipeline.dataset.verify import verify
from pipeline.errors import ManifestError
from pipeline.manifest import main
from pipeline.runtime.folder import Folder
from pipeline.schema import Reason, State

RENDITIONS = ("1080", "256")
KEYS = {f"s{i:02d}_00000000_00010000": "test" if i % 4 == 0 else "train" for i in range(12)}


def row(key: str, shard: str | None) -> ClipRow:
    return ClipRow(
        key=key, source_id=key[:3], url="u", labels=("rain",), caption=None, licence=None,
        split=KEYS.get(key), state=State.KEPT if shard else State.REJECTED, reason=None if shard else Reason.SILENT,
        detail="", video_sha256=None, scene_index=0, start_ms=0, end_ms=10_000, shard=shard,
        source_width_px=1920, source_height_px=1080, source_fps=25.0,
    )  # fmt: skip


def content(key: str, rendition: str) -> SampleContent:
    rng = np.random.default_rng(int(key[1:3]))
    embedding = rng.standard_normal(4)
    return SampleContent(rng.bytes(900) + rendition.encode(), rng.bytes(600), {"n": 1}, embedding, embedding)


def build(folder: Folder) -> Manifest:
    samples = [Sample(key, split, 1500, "v1") for key, split in KEYS.items()]
    plans = plan_shards(samples, ShardSettings(max_samples=5))
    shards = [
        write_shard(plan, rendition, folder, lambda key, rendition=rendition: content(key, rendition))
        for rendition in RENDITIONS
        for plan in plans
    ]
    rows = [row(s.key, plan.file_name) for plan in plans for s in plan.samples] + [row("x00_00000000_00010000", None)]
    embeddings = [EmbeddingRow(key, "pair-1", np.ones(4), np.ones(4)) for key in KEYS]
    files = [write_samples(rows, folder), write_embeddings(embeddings, folder)]
    manifest = Manifest(
        name="demo",
        recipe={"name": "demo", "clips": {"length_seconds": 10.0}},
        versions={"hearscape": "0.1.0", "ffmpeg": "7.0.2"},
        encoder_id="pair-1",
        members=member_names(has_embeddings=True),
        renditions=tuple(
            Rendition(name=name, short_side_px=int(name), video_codec="h264", sound_codec="aac") for name in RENDITIONS
        ),
        splits=("test", "train"),
        shards=tuple(shards),
        files=tuple(files),
        sources=Counts(states={"kept": 12, "rejected": 1}, reasons={"no_clip_kept": 1}),
        clips=Counts(
            states={"kept": 12, "rejected": 1},
            reasons={"silent": 1},
            splits={"test": 3, "train": 9},
            classes={"rain": 12},
        ),
    )
    write_manifest(manifest, folder)
    return manifest


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built") / "demo"
    build(Folder(root))
    return root


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "demo"))


def test_a_manifest_comes_back_as_it_was_written_and_is_the_same_bytes(pristine: Path, tmp_path: Path):
    manifest = build(Folder(tmp_path))
    assert (tmp_path / "manifest.json").read_bytes() == (pristine / "manifest.json").read_bytes()
    assert read_manifest(pristine) == manifest
    assert read_manifest(str(pristine / "manifest.json")) == manifest
    assert [shard.path for shard in manifest.shards_of("256", "train")] == [
        "shards/256/train-000000.tar",
        "shards/256/train-000001.tar",
    ]
    assert manifest.clips.total == 13


def test_roots_and_paths_join_for_folders_files_and_urls(pristine: Path):
    assert dataset_root(pristine) == str(pristine)
    assert dataset_root(f"{pristine}/manifest.json") == str(pristine)
    assert dataset_root("s3://bucket/demo/manifest.json") == "s3://bucket/demo"
    assert dataset_root("manifest.json") == "."
    assert dataset_root("/manifest.json") == "/"
    assert join("s3://bucket/demo/", "shards/a.tar") == "s3://bucket/demo/shards/a.tar"
    assert join("/", "manifest.json") == "/manifest.json"


def test_canonical_json_sorts_and_refuses_what_json_has_not():
    value = {"b": 0.1 + 0.2, "a": ["海", "\udcff"], "c": None}
    assert canonical_json(value) == '{"a":["海","\\udcff"],"b":0.30000000000000004,"c":null}\n'.encode()
    assert json.loads(canonical_json(value)) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("inf")})


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_bytes(canonical_json(values, indent=1))


def test_another_version_is_named(dataset: Path):
    edit(dataset / "manifest.json", lambda values: values.update(schema_version=2, surprise=True))
    with pytest.raises(ManifestError, match="has schema version 2, this program reads 1: use the version"):
        read_manifest(dataset)


def test_all_that_is_wrong_is_told_at_once(dataset: Path):
    def change(values: dict[str, Any]) -> None:
        del values["recipe"], values["clips"]["states"]
        values["shards"][0]["num_bytes"] = "12"
        values["shards"][1]["path"] = "../outside.tar"
        values["added"] = 1

    edit(dataset / "manifest.json", change)
    with pytest.raises(ManifestError) as error:
        read_manifest(dataset)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{dataset}/manifest.json cannot be read:"
    assert sorted(line.strip().partition(":")[0] for line in lines[1:]) == [
        "added", "clips.states", "recipe", "shards.0.num_bytes", "shards.1.path",
    ]  # fmt: skip
    assert "  recipe: Field required" in lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"format": "hearscape-data', "is damaged: it is not JSON"),
        (b"\xff\xfe\x00", "is damaged: it is not JSON"),
        (b"[]", "is not the manifest of a dataset"),
        (b'{"manifest_version": 3}', "is not the manifest of a dataset"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ManifestError, match="does not exist: no dataset was built there"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="is not a folder"):
        find_manifests(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"states": {"kept": 1, "rejected": 2}, "reasons": {"silent": 1}}, "reasons add up to 1, but 2 are rejected"),
        ({"states": {"failed": 2}}, "failures add up to 0, but 2 are failed"),
        ({"states": {"kept": 2}, "splits": {"train": 3}}, "splits add up to 3, but 2 are kept"),
    ],
)
def test_counts_must_add_up(counts: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Counts(**counts)


def test_shards_must_hold_what_was_kept(dataset: Path):
    edit(dataset / "manifest.json", lambda values: values["shards"].pop())
    with pytest.raises(ManifestError, match="the shards of rendition 256 hold 8 samples, but 12 clips are kept"):
        read_manifest(dataset)


def test_every_dataset_below_a_folder_is_found_and_nothing_else(dataset: Path, tmp_path: Path):
    other = Path(shutil.copytree(dataset, tmp_path / "more" / "deep" / "second"))
    for place in (tmp_path / ".trash", dataset / "shards" / "256", tmp_path / "webapp"):
        place.mkdir(exist_ok=True)
    shutil.copy(dataset / "manifest.json", tmp_path / ".trash")
    shutil.copy(dataset / "manifest.json", dataset / "shards" / "256")
    (tmp_path / "webapp" / "manifest.json").write_text('{"name": "an app"}')
    (tmp_path / "recipes").mkdir()
    assert find_manifests(tmp_path) == [str(dataset / "manifest.json"), str(other / "manifest.json")]
    assert find_manifests(dataset) == [str(dataset / "manifest.json")]
    assert find_manifests(dataset / "manifest.json") == [str(dataset / "manifest.json")]
    assert find_manifests(tmp_path / "recipes") == []
    (tmp_path / "webapp" / "manifest.json").write_text('{"form')
    assert str(tmp_path / "webapp" / "manifest.json") in find_manifests(tmp_path)


def test_datasets_are_found_read_and_verified_by_url():
    root = "memory://found/here"
    manifest = build(Folder(f"{root}/demo"))
    (location,) = find_manifests(root)
    assert location == "memory:///found/here/demo/manifest.json"
    assert read_manifest(location) == read_manifest(f"{root}/demo") == manifest
    assert verify(location) == []
    fsspec.filesystem("memory").rm("/found/here/demo/shards/256/train-000000.tar")
    assert [str(difference) for difference in verify(f"{root}/demo")] == ["shards/256/train-000000.tar: is missing"]


def test_reading_a_manifest_needs_nothing_heavy(pristine: Path):
    program = f"""
import sys
from pipeline.dataset.manifest import find_manifests, read_manifest
read_manifest(find_manifests({str(pristine)!r})[0])
print([name for name in ("torch", "webdataset", "pyarrow", "numpy", "fsspec", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_whole_dataset_verifies(pristine: Path, capsys: pytest.CaptureFixture[str]):
    seen: list[str] = []
    bytes_read: list[int] = []
    assert verify(str(pristine), lambda path, found: seen.append(path), bytes_read.append) == []
    assert len(seen) == 8
    assert sum(bytes_read) == sum(
        path.stat().st_size for path in pristine.rglob("*") if path.suffix in (".tar", ".parquet")
    )
    assert main(["verify", str(pristine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok      shards/1080/test-000000.tar"
    assert lines[-1] == f"{pristine}: all is as the manifest says (6 shards, 12 samples in 2 renditions)"


TAR = "shards/256/train-000000.tar"
INDEX = "shards/256/train-000000.index.json"


def rewrite(
    path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]
) -> None:
    """Repacks a tar with other members."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in change(members):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def replace(name: str, data: bytes):
    def change(members):
        first = members[0][0].name.partition(".")[0]
        return [(m, data if m.name == f"{first}.{name}" else d) for m, d in members]

    return change


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def renamed(members):
    for member, _ in members:
        if member.name.endswith("mp4"):
            member.name = member.name.replace("mp4", "mov")
    return members


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a byte of a video": (lambda root: flip(root / TAR, 5_000), TAR, r"has SHA-256 \w{12}\.\.\., not \w{12}\.\.\."),
    "a byte of a header": (lambda root: flip(root / TAR, 3), TAR, "has SHA-256"),
    "a tar that is cut": (
        lambda root: cut(root / TAR, 6000),
        TAR,
        "has 6000 bytes, not",
    ),
    "a tar that breaks off": (
        lambda root: cut(root / TAR, 6000),
        TAR,
        r"cannot be read after sample s\w+: unexpected end of data",
    ),
    "an empty tar": (lambda root: (root / TAR).write_bytes(b""), TAR, "holds 0 samples, not 5"),
    "no tar": (lambda root: (root / TAR).unlink(), TAR, "is missing"),
    "no video": (lambda root: rewrite(root / TAR, lambda ms: ms[:2] + ms[3:]), TAR, r"sample s\w+ has no mp4"),
    "an empty sound": (lambda root: rewrite(root / TAR, replace("flac", b"")), TAR, r"sample s\w+: its flac is empty"),
    "a foreign member": (lambda root: rewrite(root / TAR, renamed), TAR, r"has no mp4 and has mov as well"),
    "another order": (
        lambda root: rewrite(root / TAR, lambda ms: [ms[1], ms[0], *ms[2:]]),
        TAR,
        "has its members in another order",
    ),
    "json of another": (
        lambda root: rewrite(root / TAR, replace("json", b'{"key":"x"}')),
        TAR,
        "its json is of key 'x'",
    ),
    "json that is none": (lambda root: rewrite(root / TAR, replace("json", b"{")), TAR, "its json is not JSON"),
    "no array": (lambda root: rewrite(root / TAR, replace("sound.npy", b"123")), TAR, "its sound.npy is not an array"),
    "a sample twice": (lambda root: rewrite(root / TAR, lambda ms: ms + ms[:5]), TAR, r"sample s\w+ is in it twice"),
    "a sample less": (lambda root: rewrite(root / TAR, lambda ms: ms[5:]), TAR, "holds 4 samples, not 5"),
    "a tar more": (
        lambda root: shutil.copy(root / TAR, root / "shards/256/train-000009.tar"),
        "shards/256/train-000009.tar",
        "is not in the manifest",
    ),
    "no index": (
        lambda root: (root / INDEX).unlink(),
        TAR,
        "its index train-000000.index.json is missing",
    ),
    "a damaged index": (
        lambda root: (root / INDEX).write_text("{"),
        TAR,
        "is damaged",
    ),
    "a wrong index": (
        lambda root: edit(root / INDEX, lambda v: v["samples"][0]["members"]["mp4"].reverse()),
        TAR,
        "has other places of the members than the tar",
    ),
    "a byte of the table": (lambda root: flip(root / "samples.parquet", 99), "samples.parquet", "has SHA-256"),
    "no embeddings": (lambda root: (root / "embeddings.parquet").unlink(), "embeddings.parquet", "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_where_it_is(dataset: Path, damage: str):
    harm, path, message = DAMAGES[damage]
    harm(dataset)
    found = verify(str(dataset))
    assert {difference.path for difference in found} == {path}
    assert any(re.search(message, difference.message) for difference in found), found


def redescribe(root: Path, path: str) -> None:
    """Makes the manifest agree with the bytes of a tar, as one who tampers would."""
    data = (root / path).read_bytes()

    def change(values: dict[str, Any]) -> None:
        for shard in values["shards"] + values["files"]:
            if shard["path"] == path:
                shard.update(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))

    edit(root / "manifest.json", change)


def test_renditions_must_hold_the_same_keys_in_the_same_order(dataset: Path):
    rewrite(dataset / TAR, lambda members: members[5:] + members[:5])
    redescribe(dataset, TAR)
    index = dataset / INDEX
    with tarfile.open(dataset / TAR) as tar:
        places: dict[str, dict[str, list[int]]] = {}
        for member in tar:
            key, _, name = member.name.partition(".")
            places.setdefault(key, {})[name] = [member.offset_data, member.size]
    edit(index, lambda values: values.update(samples=[{"key": k, "members": m} for k, m in places.items()]))
    assert [str(difference) for difference in verify(str(dataset))] == [
        f"{TAR}: its keys are not those of shards/1080/train-000000.tar, in that order"
    ]


def test_the_table_must_name_what_the_tars_hold(dataset: Path):
    rows = [row(key, None if key[1:3] == "05" else "test-000000.tar") for key in KEYS]
    write_samples([*rows, row("y00_00000000_00010000", "train-000000.tar")], Folder(dataset))
    redescribe(dataset, "samples.parquet")
    messages = [difference.message for difference in verify(str(dataset))]
    assert "sample s05_00000000_00010000 of" in messages[-1]
    assert "kept clip y00_00000000_00010000 is in no shard, not in train-000000.tar" in messages
    assert sum("not in test-000000.tar" in message for message in messages) == 8
    assert len(messages) == 10


def test_the_command_prints_twenty_differences_and_a_count(dataset: Path, capsys: pytest.CaptureFixture[str]):
    for path in dataset.rglob("*.tar"):
        rewrite(path, lambda members: [(m, b"" if m.name.endswith("mp4") else d) for m, d in members])
    assert main(["verify", str(dataset)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "DIFFERS shards/1080/test-000000.tar"
    # each of 6 tars: its size, and each of its samples
    assert lines[-1] == "30 differences, 10 more not shown"
    assert len(lines) == 8 + 20 + 1


def test_the_command_exits_with_2_when_there_is_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/manifest.json does not exist: no dataset was built there, or not to its end\n"
    )


def test_the_module_runs_as_a_command(dataset: Path):
    command = [sys.executable, "-m", "pipeline.manifest", "verify", str(dataset)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    flip(dataset / TAR, 5000)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 difference"
