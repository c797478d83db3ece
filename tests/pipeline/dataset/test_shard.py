"""Shards: the plan, the bytes, the index; and what WebDataset's own reader makes of them."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from pipeline.dataset.shards import (
    Sample,
    SampleContent,
    ShardPlan,
    ShardSettings,
    existing_shard,
    member_names,
    plan_shards,
    remove_other_shards,
    write_shard,
)
from pipeline.runtime.folder import Folder


def sample(i: int, split: str = "train", num_bytes: int = 100, content_id: str = "x") -> Sample:
    return Sample(f"s{i:04d}_00000000_00010000", split, num_bytes, content_id)


def content(key: str) -> SampleContent:
    """Members that differ from key to key, 512 bytes and more."""
    rng = np.random.default_rng(int(key[1:5]))
    return SampleContent(
        mp4=rng.bytes(1000 + int(key[1:5])),
        flac=rng.bytes(512),
        record={"source_id": key[:5], "measures": {"motion": 0.1 + 0.2}, "caption": "Regen über 海"},
        picture=rng.standard_normal(8),
        sound=rng.standard_normal(8).astype(np.float32),
    )


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


PLAN = ShardPlan("train", 3, tuple(sample(i) for i in (5, 2, 9)))


def test_shards_are_filled_to_their_size_and_hold_every_sample_once():
    samples = [sample(i, "train" if i % 5 else "test", num_bytes=100 + i % 7) for i in range(200)]
    plans = plan_shards(samples, ShardSettings(max_bytes=1000, max_samples=1000))
    assert sorted(s.key for plan in plans for s in plan.samples) == sorted(s.key for s in samples)
    assert [plan.file_name for plan in plans[:2]] == ["test-000000.tar", "test-000001.tar"]
    train = [plan for plan in plans if plan.split == "train"]
    assert [plan.index for plan in train] == list(range(len(train)))
    assert all(s.split == plan.split for plan in plans for s in plan.samples)
    sizes = [sum(s.num_bytes for s in plan.samples) for plan in train]
    assert max(sizes) <= 1000
    assert min(sizes[:-1]) > 1000 - 107


def test_the_order_is_a_shuffle_that_only_the_seed_changes():
    samples = [sample(i) for i in range(100)]
    settings = ShardSettings(max_samples=30)
    plans = plan_shards(samples, settings)
    assert [len(plan.samples) for plan in plans] == [30, 30, 30, 10]
    random.Random(1).shuffle(samples)
    assert plan_shards(samples, settings) == plans
    keys = [s.key for plan in plans for s in plan.samples]
    assert keys != sorted(keys)
    assert plan_shards(samples, ShardSettings(max_samples=30, seed=1)) != plans


def test_a_sample_larger_than_a_shard_has_one_for_itself():
    plans = plan_shards([sample(i, num_bytes=5000) for i in range(3)], ShardSettings(max_bytes=1000))
    assert [len(plan.samples) for plan in plans] == [1, 1, 1]


# WebDataset leaves the closing of its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_equal_input_gives_equal_bytes_and_webdataset_reads_them(tmp_path: Path):
    first = write_shard(PLAN, "256", Folder(tmp_path / "a"), content)
    second = write_shard(PLAN, "256", Folder(tmp_path / "b"), content)
    assert first == second
    assert first.path == "shards/256/train-000003.tar"
    tar = tmp_path / "a" / first.path
    assert tar.read_bytes() == (tmp_path / "b" / second.path).read_bytes()
    assert (first.num_samples, first.num_bytes) == (3, tar.stat().st_size)
    assert first.sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()

    dataset = webdataset.WebDataset(str(tar), shardshuffle=False).decode()
    read = list(dataset)
    gc.collect()
    assert [s["__key__"] for s in read] == [s.key for s in PLAN.samples]
    expected = content(PLAN.samples[0].key)
    assert read[0]["mp4"] == expected.mp4
    assert read[0]["flac"] == expected.flac
    assert read[0]["json"] == {**expected.record, "key": PLAN.samples[0].key}
    np.testing.assert_array_equal(read[0]["picture.npy"], expected.picture.astype(np.float16))
    np.testing.assert_array_equal(read[0]["sound.npy"], expected.sound.astype(np.float16))


def test_tars_tell_nothing_of_the_machine_and_the_hour(tmp_path: Path):
    record = write_shard(PLAN, "256", Folder(tmp_path), content)
    with tarfile.open(tmp_path / record.path) as tar:
        infos = tar.getmembers()
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {(0, 0, 0, "", "", 0o444)}
    key = PLAN.samples[0].key
    assert [i.name for i in infos[:5]] == [f"{key}.{name}" for name in member_names(has_embeddings=True)]
    data = members((tmp_path / record.path).read_bytes())[f"{key}.json"]
    assert (
        data
        == (
            '{"caption":"Regen über 海","key":"s0005_00000000_00010000",'
            '"measures":{"motion":0.30000000000000004},"source_id":"s0005"}\n'
        ).encode()
    )


def test_the_index_says_where_each_member_lies_even_under_long_names(tmp_path: Path):
    long = Sample(f"{'n' * 96}_00000000_00010000", "train", 100, "x")
    plan = ShardPlan("train", 0, (long, sample(7)))
    record = write_shard(plan, "1080", Folder(tmp_path), lambda key: content("s0007" if key[0] == "n" else key))
    data = (tmp_path / record.path).read_bytes()
    index = json.loads((tmp_path / record.index_path).read_bytes())
    assert record.index_path == "shards/1080/train-000000.index.json"
    assert [s["key"] for s in index["samples"]] == [long.key, plan.samples[1].key]
    found = {
        f"{s['key']}.{name}": data[offset : offset + size]
        for s in index["samples"]
        for name, (offset, size) in s["members"].items()
    }
    assert found == members(data)
    assert len(found) == 10


def test_without_embeddings_there_are_three_members(tmp_path: Path):
    record = write_shard(PLAN, "256", Folder(tmp_path), lambda key: SampleContent(b"video", b"sound", {}))
    names = {name.partition(".")[2] for name in members((tmp_path / record.path).read_bytes())}
    assert names == set(member_names(has_embeddings=False)) == {"flac", "json", "mp4"}


def test_any_file_system_will_do(tmp_path: Path):
    local = write_shard(PLAN, "256", Folder(tmp_path), content)
    remote = write_shard(PLAN, "256", Folder("memory://bucket/dataset"), content)
    assert remote == local
    fs = fsspec.filesystem("memory")
    assert fs.cat_file(f"/bucket/dataset/{remote.path}") == (tmp_path / local.path).read_bytes()
    assert existing_shard(PLAN, "256", Folder("memory://bucket/dataset")) == remote
    assert sorted(fs.find("/bucket/dataset")) == [
        "/bucket/dataset/shards/256/train-000003.index.json",
        "/bucket/dataset/shards/256/train-000003.tar",
    ]


def test_a_shard_of_the_same_plan_is_not_written_again(tmp_path: Path):
    folder = Folder(tmp_path)

    def refuse(key: str) -> SampleContent:
        raise AssertionError(f"{key} was loaded")

    record = write_shard(PLAN, "256", folder, content)
    assert write_shard(PLAN, "256", folder, refuse) == record
    other = ShardPlan("train", 3, tuple(sample(i, content_id="y") for i in (5, 2, 9)))
    with pytest.raises(AssertionError, match="was loaded"):
        write_shard(other, "256", folder, refuse)
    assert existing_shard(PLAN, "256", folder) == record, "a failed write leaves what was there"
    assert PLAN.plan_hash("256") != PLAN.plan_hash("1080")


@pytest.mark.parametrize("damage", ["truncated tar", "no tar", "no index", "index is text", "index is a list"])
def test_a_damaged_shard_is_written_again(tmp_path: Path, damage: str):
    folder = Folder(tmp_path)
    record = write_shard(PLAN, "256", folder, content)
    tar, index = tmp_path / record.path, tmp_path / record.index_path
    whole = tar.read_bytes()
    {
        "truncated tar": lambda: tar.write_bytes(whole[:-512]),
        "no tar": tar.unlink,
        "no index": index.unlink,
        "index is text": lambda: index.write_text("{"),
        "index is a list": lambda: index.write_text("[]"),
    }[damage]()
    assert existing_shard(PLAN, "256", folder) is None
    assert write_shard(PLAN, "256", folder, content) == record
    assert tar.read_bytes() == whole


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    def broken(key: str) -> SampleContent:
        if key == PLAN.samples[2].key:
            raise OSError("gone")
        return content(key)

    with pytest.raises(OSError, match="gone"):
        write_shard(PLAN, "256", Folder(tmp_path), broken)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (SampleContent(b"", b"sound", {}), "its mp4 is empty"),
        (SampleContent(b"video", b"", {}), "its flac is empty"),
        (SampleContent(b"v", b"s", {}, picture=np.array([1.0, np.nan])), "picture embedding is not finite"),
        (SampleContent(b"v", b"s", {}, sound=np.array([1e6])), "sound embedding is not finite in float16"),
        (SampleContent(b"v", b"s", {"motion": float("nan")}), "not JSON compliant"),
    ],
)
def test_members_that_cannot_be_used_are_refused(tmp_path: Path, bad: SampleContent, message: str):
    with pytest.raises(ValueError, match=message):
        write_shard(PLAN, "256", Folder(tmp_path), lambda key: bad)


def test_memory_holds_one_sample_not_the_shard(tmp_path: Path):
    plan = ShardPlan("train", 0, tuple(sample(i) for i in range(40)))
    write_shard(PLAN, "warm", Folder(tmp_path), content)
    tracemalloc.start()
    record = write_shard(plan, "256", Folder(tmp_path), lambda key: SampleContent(bytes(2_000_000), b"sound", {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.num_bytes > 80_000_000
    assert peak < 10_000_000


def test_shards_of_earlier_builds_are_removed(tmp_path: Path):
    folder = Folder(tmp_path)
    keep = write_shard(PLAN, "256", folder, content)
    old = write_shard(ShardPlan("train", 4, (sample(1),)), "256", folder, content)
    gone = write_shard(PLAN, "1080", folder, content)
    assert sorted(remove_other_shards(folder, [keep])) == sorted([gone.index_path, gone.path, old.index_path, old.path])
    assert existing_shard(PLAN, "256", folder) == keep
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["256"]
    assert remove_other_shards(Folder(tmp_path / "nothing"), []) == []


def test_what_no_build_wrote_stays_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = Folder(tmp_path)
    keep = write_shard(PLAN, "256", folder, content)
    elsewhere = write_shard(ShardPlan("train", 4, (sample(1),)), "256", Folder(tmp_path / "other"), content)
    theirs = {
        "shards/notes.txt": b"mine",
        "shards/256/labels.csv": b"mine",
        "shards/256/backup.tar": b"mine",
        "shards/256/train-000007.tar": b"no index",
        "shards/256/train-000008.index.json": b"[]",
        "shards/512/train-000004.tar": (tmp_path / "other" / elsewhere.path).read_bytes(),
        "shards/512/train-000004.index.json": (tmp_path / "other" / elsewhere.index_path).read_bytes(),
        "shards/mine/deep/train-000000.tar": b"mine",
        "shards/256/.train-000001.tar.part": b"mine",
    }
    ours = {
        "shards/256/.train-000001.tar.0123abcd.part": b"killed",
        "shards/256/.train-000001.index.json.0123abcd.part": b"killed",
        "shards/64/train-000009.tar": b"written, and killed before its index was",
    }
    for name, data in (theirs | ours).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "shards" / "empty").mkdir()
    assert sorted(remove_other_shards(folder, [keep], ["shards/64/train-000009.tar"])) == sorted(ours)
    left = {str(path.relative_to(tmp_path)) for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert left == {*theirs, keep.path, keep.index_path}
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"256", "512", "mine", "notes.txt"}
    assert (
        f"{tmp_path}: these files were not written by a build and stay: shards/256/.train-000001.tar.part, "
        in caplog.text
    )
    assert "shards/256/train-000008.index.json and 4 more" in caplog.text


def test_a_shard_of_equal_size_in_the_place_of_another_is_written_again(tmp_path: Path):
    folder = Folder(tmp_path)
    plans = [ShardPlan("train", index, (sample(index),)) for index in range(2)]
    written = [write_shard(plan, "480", folder, content) for plan in plans]
    first, second = (tmp_path / record.path for record in written)
    assert first.stat().st_size == second.stat().st_size
    aside = tmp_path / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    assert [existing_shard(plan, "480", folder) for plan in plans] == [None, None]
    assert [write_shard(plan, "480", folder, content) for plan in plans] == written
