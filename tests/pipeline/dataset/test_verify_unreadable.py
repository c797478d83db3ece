"""Verification of files that cannot be opened or taken apart, and of media that does not decode: a line for each, never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pipeline.dataset.manifest import read_manifest, write_manifest
from pipeline.dataset.shards import SampleContent
from pipeline.dataset.tables import SAMPLES_NAME
from pipeline.dataset.verify import verify
from pipeline.manifest import main
from pipeline.runtime.folder import Folder
from tests.datasets import Clip, build_dataset, content_of, cut_clips, key_of
from tests.pipeline.dataset.test_manifest import INDEX, TAR, build

NOBODY = 65534


@pytest.fixture
def dataset() -> Iterator[Path]:
    """In a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="verified-"))
    folder.chmod(0o755)
    build(Folder(folder / "demo"))
    yield folder / "demo"
    shutil.rmtree(folder)


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read everything: the block runs as a user who may not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def forbid(path: Path) -> None:
    path.chmod(0)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (TAR, f"{TAR}: cannot be read: "),
        (INDEX, f"{TAR}: its index train-000000.index.json cannot be read: "),
        ("samples.parquet", "samples.parquet: cannot be read: "),
        ("embeddings.parquet", "embeddings.parquet: cannot be read: "),
    ],
)
@pytest.mark.parametrize(("harm", "why"), [(forbid, "Permission denied"), (make_folder, "Is a directory")])
def test_a_file_that_cannot_be_opened_is_a_difference(
    dataset: Path, name: str, told: str, harm: Callable[[Path], None], why: str
) -> None:
    assert verify(str(dataset)) == []
    harm(dataset / name)
    with without_rights():
        found = verify(str(dataset))
    assert [str(difference) for difference in found] == [told + why]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (forbid, "cannot be read: "),
        (make_folder, "cannot be read: "),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged: it is not JSON"),
        (lambda path: path.write_bytes(bytes(1000)), "is damaged: it is not JSON"),
        (lambda path: os.truncate(path, 0), "is damaged: it is not JSON"),
        (lambda path: path.write_text("[" * 100_000), "is damaged: it is not JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read_ends_with_2_and_a_line(
    dataset: Path, harm: Callable[[Path], object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(dataset / "manifest.json")
    with without_rights() if harm is forbid else nullcontext():  # without rights Python could not load its own modules
        assert main(["verify", str(dataset)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {dataset}/manifest.json {why}")


def test_a_folder_of_shards_that_may_not_be_entered(dataset: Path) -> None:
    forbid(dataset / "shards" / "256")
    with without_rights():
        found = verify(str(dataset))
    (dataset / "shards" / "256").chmod(0o755)
    assert {difference.path for difference in found} == {
        shard.path for shard in read_manifest(dataset).shards if shard.rendition == "256"
    }
    assert {difference.message for difference in found} == {"cannot be read: Permission denied"}


@pytest.mark.parametrize("content", [b"", b"no parquet", bytes(5000)])
def test_a_table_that_was_damaged_before_its_sum_was_taken(dataset: Path, content: bytes) -> None:
    (dataset / SAMPLES_NAME).write_bytes(content)
    manifest = read_manifest(dataset)
    files = tuple(
        file.model_copy(update={"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)})
        if file.path == SAMPLES_NAME
        else file
        for file in manifest.files
    )
    write_manifest(manifest.model_copy(update={"files": files}), Folder(dataset))
    (found,) = verify(str(dataset))
    assert (found.path, found.message[:20]) == (SAMPLES_NAME, "is no table of clips")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return cut_clips(tmp_path_factory.mktemp("clips"))


def zeros_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(4096) + data[middle + 4096 :]


@pytest.mark.slow
def with_record(content: SampleContent, num_frames: int, num_samples: int) -> SampleContent:
    sizes = {"width": 160, "height": 96, "num_frames": num_frames}
    told = {**content.record, "renditions": {"96": sizes}, "cut": {"num_samples": num_samples}}
    return SampleContent(content.mp4, content.flac, told, content.picture, content.sound)


def test_deep_verification_names_every_sample_that_does_not_decode(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed as they are, so that every sum is right."""
    whole = {index: content_of(index, clips, "96") for index in range(7)}

    def changed(index: int, **changes: bytes) -> SampleContent:
        old = whole[index]
        members = {"mp4": old.mp4, "flac": old.flac} | changes
        return SampleContent(members["mp4"], members["flac"], old.record, old.picture, old.sound)

    contents = {
        0: with_record(whole[0], 50, 88_200),
        1: changed(1, mp4=zeros_in_the_middle(whole[1].mp4)),
        2: changed(2, mp4=whole[2].mp4[:1000]),
        3: changed(3, flac=zeros_in_the_middle(whole[3].flac)),
        4: changed(4, flac=bytes(5000)),
        5: with_record(whole[5], 51, 88_199),
        6: changed(6, flac=whole[6].flac[:26] + b"\xff" * 16 + whole[6].flac[42:]),
    }
    build_dataset(tmp_path, clips, [4, 3], contents=contents)
    (tmp_path / "shards" / "48").rename(tmp_path / "elsewhere")  # the same contents: enough to decode them once
    values = json.loads((tmp_path / "manifest.json").read_text())
    values["shards"] = [shard for shard in values["shards"] if shard["rendition"] == "96"]
    values["renditions"] = [rendition for rendition in values["renditions"] if rendition["name"] == "96"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert [str(found) for found in verify(str(tmp_path))] == ["manifest.json: names no samples.parquet"]

    assert main(["verify", "--deep", str(tmp_path)]) == 1
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if ": sample " in line:
            key, _, problem = line.partition(": sample ")[2].partition(": ")
            found.setdefault(key, []).append(problem)
    assert found.keys() == {key_of(index) for index in range(1, 7)}
    assert any("packets that cannot be decoded" in problem for problem in found[key_of(1)])
    assert found[key_of(2)][0].startswith("its mp4 cannot be decoded")
    assert found[key_of(3)][0].startswith("its flac cannot be decoded")
    assert found[key_of(4)][0].startswith("its flac cannot be decoded")
    assert found[key_of(5)] == ["its mp4 has 50 frames, not 51", "its flac has 88200 samples, not 88199"]
    assert found[key_of(6)] == ["its flac decodes to other samples than were written"]
