"""What cannot be read: named, counted, left out and nothing else lost; and when that is too much."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch

from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.shards import SampleContent
from pipeline.errors import DataError, ManifestError
from pipeline.synthetic.video import write_video
from tests.datasets import Clip, as_flac, build_dataset, content_of, frames_in_rows, index_of, key_of, sound_of
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings, ReadFailure

SETTINGS = ReaderSettings(
    picture_px=48, num_frames=2, window_seconds=2.0, batch_size=4, num_workers=0, mel=False, last_batch="keep"
)
SIZES = [6, 5, 7]


@pytest.fixture
def dataset(tmp_path: Path, clips: list[Clip]) -> Path:
    build_dataset(tmp_path / "data", clips, SIZES)
    return tmp_path / "data"


def reader(folder: Path, settings: ReaderSettings = SETTINGS, *, shuffle: bool = False) -> Reader:
    return Reader([DatasetMix(location=str(folder))], settings, split="train", seed=0, shuffle=shuffle)


def shard(folder: Path, number: int) -> Path:
    return folder / f"shards/48/train-{number:06d}.tar"


def spans(folder: Path, number: int) -> dict[int, dict[str, tuple[int, int]]]:
    """Offset and size of each member of each sample of a shard."""
    index = json.loads(shard(folder, number).with_name(f"train-{number:06d}.index.json").read_text())
    return {
        index_of(one["key"]): {name: tuple(span) for name, span in one["members"].items()} for one in index["samples"]
    }


def overwrite(path: Path, offset: int, data: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read(of: Reader) -> list[int]:
    found = [index_of(key) for batch in of for key in batch.keys]
    of.close()
    return found


def without(*missing: int) -> list[int]:
    return [index for index in range(sum(SIZES)) if index not in missing]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_members_cost_their_samples_and_are_named(dataset: Path, num_workers: int):
    where, lying = shard(dataset, 0), spans(dataset, 0)
    overwrite(where, lying[1]["mp4"][0], bytes(lying[1]["mp4"][1]))
    overwrite(where, lying[2]["flac"][0] + 20_000, bytes(60_000))
    overwrite(where, lying[3]["json"][0], b"?")
    overwrite(where, lying[4]["mp4"][0] - 512, b"\xff" * 100)  # its header in the tar
    one = reader(dataset, SETTINGS.model_copy(update={"num_workers": num_workers}))
    lengths = []
    keys = []
    for batch in one:
        lengths.append(len(batch))
        keys += [index_of(key) for key in batch.keys]
        assert len(batch.frames_BTCHW) == len(batch.sounds_BN) == len(batch.seconds_B) == len(batch.keys)
    one.close()
    assert keys == without(1, 2, 3, 4)
    assert lengths == [1, 3, 4, 4, 2]  # shorter, nothing put in their place
    assert one.num_bad == 4
    assert [(bad.shard, bad.key, bad.member, times) for bad, times in one.bad] == [
        (str(where), key_of(1), "mp4", 1),
        (str(where), key_of(2), "flac", 1),
        (str(where), key_of(3), "json", 1),
        (str(where), key_of(4), "tar", 1),
    ]
    assert str(one.bad[3][0]).startswith(f"{where}: {key_of(4)}.tar: the shard is damaged where it lies: without mp4")


def test_pictures_that_are_not_asked_for_are_not_decoded(dataset: Path):
    """A sample whose film is damaged is read where only its sound is wanted."""
    where, lying = shard(dataset, 0), spans(dataset, 0)
    overwrite(where, lying[1]["mp4"][0], bytes(lying[1]["mp4"][1]))
    settings = SETTINGS.model_copy(update={"pictures": False})
    assert {batch.frames_BTCHW.shape[1:] for batch in reader(dataset, settings)} == {(0, 3, 48, 48)}
    assert read(reader(dataset, settings)) == without()
    assert read(reader(dataset)) == without(1)


def test_bytes_damaged_in_the_middle_cost_only_the_samples_hit(dataset: Path):
    where, lying = shard(dataset, 2), spans(dataset, 2)
    begin = lying[13]["flac"][0] + 100_000
    end = lying[14]["flac"][0] + 100_000
    overwrite(where, begin, np.random.default_rng(0).bytes(end - begin))
    one = reader(dataset)
    assert read(one) == without(13, 14)
    assert [bad.key for bad, _ in one.bad] == [key_of(13), key_of(14)]


def test_a_shard_that_ends_early_costs_what_lay_behind(dataset: Path):
    where, lying = shard(dataset, 1), spans(dataset, 1)
    where.chmod(0o644)
    os.truncate(where, lying[9]["mp4"][0] + 100)
    one = reader(dataset)
    assert read(one) == without(9, 10)
    assert [(bad.key, bad.member) for bad, _ in one.bad] == [(key_of(9), "tar"), (key_of(10), "tar")]
    assert f"the shard ends within it, at byte {lying[9]['mp4'][0] + 100}" in one.bad[0][0].reason


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_gone_is_named_once(dataset: Path, num_workers: int):
    shard(dataset, 1).unlink()
    one = reader(dataset, SETTINGS.model_copy(update={"num_workers": num_workers}))
    assert read(one) == without(6, 7, 8, 9, 10)
    why = "it cannot be read: No such file or directory"
    assert one.bad == ((ReadFailure("numbered", str(shard(dataset, 1)), None, None, why), 5),)
    assert str(one.bad[0][0]) == f"{shard(dataset, 1)}: shard: {why}"


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"{", "its index is damaged (JSONDecodeError"),
        (b'{"shard": 3}', "its index is damaged (TypeError"),
        (None, "its index cannot be read: [Errno 2]"),
    ],
)
def test_a_shard_without_its_index_is_named_once(dataset: Path, index: bytes | None, reason: str):
    path = shard(dataset, 0).with_name("train-000000.index.json")
    path.unlink()
    if index is not None:
        path.write_bytes(index)
    one = reader(dataset)
    assert read(one) == without(*range(6))
    ((bad, times),) = one.bad
    assert (bad.key, bad.member, times) == (None, "index", 6)
    assert bad.reason.startswith(reason)


def test_the_index_of_another_build_is_not_followed(dataset: Path, tmp_path: Path, clips: list[Clip]):
    build_dataset(tmp_path / "later", clips, SIZES, first=100)
    name = "shards/48/train-000002.index.json"
    (dataset / name).unlink()
    shutil.copy(tmp_path / "later" / name, dataset / name)
    one = reader(dataset)
    assert read(one) == list(range(11))
    assert one.bad[0][0].reason == "its index belongs to another build of the shard"


def test_a_tar_of_another_build_is_found_out_by_its_keys(dataset: Path, tmp_path: Path, clips: list[Clip]):
    build_dataset(tmp_path / "later", clips, SIZES, first=100)
    shard(dataset, 0).unlink()
    shutil.copy(shard(tmp_path / "later", 0), shard(dataset, 0))
    one = reader(dataset)
    assert read(one) == without(*range(6))
    assert len(one.bad) == 6
    assert f"the shard holds '{key_of(100)}' where the index says '{key_of(0)}'" in one.bad[0][0].reason


# ---------------------------------------------------------------------------------------------------- bad from the start


def small_mp4(folder: Path, *, picture: bool) -> bytes:
    path = folder / "odd.mp4"
    frames = [frame[:32, :64] for frame in frames_in_rows(range(25))] if picture else None
    write_video(path, frames, sound_of(0)[:, :1], sample_rate=44_100)
    return path.read_bytes()


def flac_without_samples() -> bytes:
    """The marker and the first block of a FLAC, which says that it has none."""
    head = bytearray(as_flac(sound_of(2))[:42])
    head[4] |= 0x80  # no block follows
    head[21] &= 0xF0
    head[22:26] = bytes(4)
    return bytes(head)


def wav_with_nan() -> bytes:
    sound = sound_of(1).copy()
    sound[500] = np.nan
    file = io.BytesIO()
    soundfile.write(file, sound, 44_100, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_samples_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path, clips: list[Clip]):
    good = content_of(0, clips, "48")
    contents = {
        1: SampleContent(good.mp4, wav_with_nan(), good.record),
        2: SampleContent(good.mp4, as_flac(sound_of(2)[:1000]), good.record),
        3: SampleContent(good.mp4, flac_without_samples(), good.record),
        4: SampleContent(b"<html>no such page</html>", good.flac, good.record),
        5: SampleContent(small_mp4(tmp_path, picture=False), good.flac, good.record),
        6: SampleContent(small_mp4(tmp_path, picture=True), good.flac, good.record),
        7: SampleContent(good.mp4[: len(good.mp4) // 2], good.flac, good.record),
        8: SampleContent(good.mp4, b"fLaC", good.record),
        9: SampleContent(good.mp4, good.flac, {"source_id": "s009"}),
    }
    build_dataset(tmp_path / "data", clips, [12], contents=contents)
    one = reader(tmp_path / "data", SETTINGS.model_copy(update={"bad_share": 0.75}))
    assert read(one) == [0, 10, 11]
    reasons = {index_of(bad.key): (bad.member, bad.reason) for bad, _ in one.bad if bad.key}
    assert reasons[1] == ("flac", "sound 0 holds NaN or infinity in 1 of 88200 samples")
    assert reasons[2] == ("flac", "its sound has 1000 samples at 44100 Hz: less than one mel frame")
    assert reasons[3][0] == "flac"
    assert reasons[4] == ("mp4", "it cannot be decoded: Invalid data found when processing input")
    assert reasons[5] == ("mp4", "it has no picture")
    assert reasons[6] == ("mp4", "its picture is 64x32, smaller than 48 px")
    assert reasons[7][0] == "mp4"
    assert reasons[8][0] == "flac"
    assert reasons[9] == ("json", "it is damaged (KeyError: 'caption')")


# ------------------------------------------------------------------------------------------------------------ the limit


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_samples_end_the_run_with_the_first_of_them(dataset: Path, num_workers: int):
    shard(dataset, 1).unlink()
    overwrite(shard(dataset, 0), spans(dataset, 0)[0]["mp4"][0], bytes(1000))
    limits = {"bad_samples": 4, "bad_share": 0.05, "num_workers": num_workers}
    one = reader(dataset, SETTINGS.model_copy(update=limits))
    batches = iter(one)
    got = [index_of(key) for _ in range(2) for key in next(batches).keys]
    with pytest.raises(DataError) as caught:
        next(batches)
    one.close()
    assert got == [1, 2, 3, 4, 5]  # of batches 0 and 1; with batch 2 there were 6 bad ones
    message = str(caught.value)
    assert (
        "6 samples of epoch 0 could not be read on rank 0, of 18 that it is to read; bad_share and bad_samples allow 4"
        in message
    )
    assert f"{shard(dataset, 0)}: {key_of(0)}.mp4: " in message
    assert f"{shard(dataset, 1)}: shard: it cannot be read: No such file or directory (5 times)" in message


def test_the_share_allows_as_many_as_it_says_in_every_epoch(dataset: Path):
    shard(dataset, 1).unlink()
    allowed = reader(dataset, SETTINGS.model_copy(update={"bad_samples": 0, "bad_share": 5 / 18}), shuffle=True)
    for _ in range(3):
        assert len(read(allowed)) == 13
        assert allowed.num_bad == 5
    assert allowed.bad[0][1] == 15
    refused = reader(dataset, SETTINGS.model_copy(update={"bad_samples": 0, "bad_share": 4.9 / 18}), shuffle=True)
    with pytest.raises(DataError, match="allow 4"):
        read(refused)


def test_a_small_dataset_of_which_nothing_can_be_read_is_an_error(tmp_path: Path, clips: list[Clip]):
    good = content_of(0, clips, "48")
    contents = {index: SampleContent(b"<html>", good.flac, good.record) for index in range(6)}
    build_dataset(tmp_path / "data", clips, [6], contents=contents)
    with pytest.raises(DataError, match=r"4 samples of epoch 0 could not be read on rank 0, of 6 .* allow 3"):
        read(reader(tmp_path / "data"))


def test_no_manifest_and_a_damaged_one_are_refused_before_anything_is_read(tmp_path: Path, dataset: Path):
    with pytest.raises(ManifestError, match="does not exist"):
        reader(tmp_path / "nowhere")
    (dataset / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="is damaged"):
        reader(dataset)


# ---------------------------------------------------------------------------------------------------------- processes

LOOP = """
import signal, sys, time
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

if __name__ == "__main__":
    signal.alarm(300)  # it ends, whatever becomes of the test
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may have it ignored
    settings = ReaderSettings(picture_px=48, num_frames=1, window_seconds=0.2, batch_size=2, num_workers=2, mel=False)
    reader = Reader([DatasetMix(location=sys.argv[1])], settings, split="train", seed=0)
    while True:
        for batch in reader:
            print(len(batch), flush=True)
            time.sleep(0.05)
"""


def begun(dataset: Path, script: Path) -> tuple[subprocess.Popen[str], set[psutil.Process]]:
    """A process that reads for ever, when it has handed out a batch; and all below it."""
    script.write_text(LOOP)
    process = subprocess.Popen(
        [sys.executable, str(script), str(dataset)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    return process, set(psutil.Process(process.pid).children(recursive=True))


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def have_ended(processes: set[psutil.Process], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(has_ended(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def test_a_worker_that_is_killed_ends_the_run_with_a_clear_error(dataset: Path):
    settings = SETTINGS.model_copy(update={"num_workers": 1, "last_batch": "drop"})
    one = reader(dataset, settings, shuffle=True)
    batches = iter(one)
    next(batches)
    (worker,) = [p for p in torch.multiprocessing.active_children() if p.pid is not None]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="a process that reads samples was killed"):
        list(itertools.chain.from_iterable(itertools.chain([batches], itertools.repeat(one))))
    state = one.state_dict()
    after = reader(dataset, SETTINGS.model_copy(update={"last_batch": "drop"}), shuffle=True)
    after.load_state_dict(state)
    assert len(next(iter(after))) == 4
    one.close()


def test_ctrl_c_leaves_no_process_behind(dataset: Path, tmp_path: Path):
    process, below = begun(dataset, tmp_path / "loop.py")
    assert len(below) >= 3  # two workers and the process that forks them
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGINT, 1)
    assert "KeyboardInterrupt" in said
    assert have_ended(below, 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_asks_the_run_to_stop_does_not_end_those_that_read(
    dataset: Path, tmp_path: Path, number: signal.Signals
):
    """torchrun and Slurm send it to all processes; the one that trains still needs a batch for its step."""
    process, below = begun(dataset, tmp_path / "loop.py")
    for one in below:
        one.send_signal(number)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(40)] == ["2\n"] * 40  # more than they had prepared
    assert not any(has_ended(one) for one in below)
    process.terminate()
    process.communicate(timeout=120)
    assert have_ended(below, 60)


def test_a_killed_run_leaves_no_process_behind(dataset: Path, tmp_path: Path):
    process, below = begun(dataset, tmp_path / "loop.py")
    process.kill()
    process.communicate(timeout=120)
    assert have_ended(below, 60)


def test_the_manifest_of_the_tests_is_a_real_one(dataset: Path):
    assert read_manifest(dataset).clips.total == sum(SIZES)
