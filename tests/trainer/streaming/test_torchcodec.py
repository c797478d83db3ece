"""The reader with torchcodec, on the CPU: the same frames as with PyAV, and the same refusals.

torchcodec needs FFmpeg's shared libraries, which few machines have; PyAV brings some along, under names of its own. They are given the
usual names here, for one process that does all of the reading.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.errors import DataError
from tests.datasets import Clip
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings

READING = """
import json, sys
from pathlib import Path

import av
import numpy as np

from pipeline.errors import MediaError, UserError
from tests.datasets import number_shown
from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings
from trainer.streaming.frames import as_pictures, decode_frames
from trainer.streaming.torchcodec_frames import decode_pictures

dataset, clip = sys.argv[1], Path(sys.argv[2]).read_bytes()
with av.open(sys.argv[2]) as container:
    last = container.streams.video[0].index_entries[-1].pos
TIMES = [0.0, 0.1, 0.3999, 0.4, 0.9, 1.3, 1.96, 5.0]


def by_pyav(mp4, side, upscale):
    return as_pictures(decode_frames(mp4, TIMES), side, 0.3, upscale=upscale)


def by_torchcodec(mp4, side, upscale):
    return decode_pictures(mp4, TIMES, side, 0.3, upscale=upscale, device="cpu")


def outcome(decode, mp4, side, upscale):
    try:
        return [number_shown(picture) for picture in decode(mp4, side, upscale)]
    except MediaError as error:
        return f"{type(error).__name__}: {error}"


def read(**changes):
    settings = ReaderSettings(
        picture_px=48, num_frames=3, window_seconds=1.0, batch_size=4, mel=False, crop="random", num_workers=0, **changes
    )
    try:
        reader = Reader([DatasetMix(location=dataset)], settings, split="train", seed=3)
        try:
            return [(batch.keys, [[number_shown(p) for p in row] for row in batch.frames_BTCHW.numpy()]) for batch in reader]
        finally:
            reader.close()
    except UserError as error:
        return str(error)


cases = {"whole": (clip, 96, False), "smaller": (clip, 64, False), "larger": (clip, 160, True), "too small": (clip, 160, False),
         "half": (clip[: len(clip) // 2], 96, False), "without its last frame": (clip[:last], 96, False),
         "page": (b"<html>no video</html>", 96, False)}
told = {name: [outcome(decode, *case) for decode in (by_pyav, by_torchcodec)] for name, case in cases.items()}
told["apart"] = [
    float(np.abs(by_pyav(clip, side, True).astype(float) - by_torchcodec(clip, side, True)).mean()) for side in (96, 64, 160)
]
told["read"] = [read(decoder="pyav"), read(decoder="torchcodec", decoder_device="cpu")]
told["no GPU"] = read(decoder="torchcodec", decoder_device="cuda")
print(json.dumps(told))
"""


def with_libraries_of_pyav(folder: Path) -> dict[str, str]:
    """An environment in which FFmpeg's libraries are found under their usual names."""
    own = Path(av.__file__).parents[1] / "av.libs"
    if not own.is_dir():
        pytest.skip(f"this PyAV brings no FFmpeg along in {own}")
    for path in own.glob("lib*.so*"):
        if name := re.match(r"(lib\w+)-[0-9a-f]+\.so\.(\d+)", path.name):
            (folder / f"{name[1]}.so.{name[2]}").symlink_to(path)
    assert any(folder.glob("libavcodec.so.*"))
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{own}", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def told(numbered: Path, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("torchcodec")
    (folder / "clip.mp4").write_bytes(clips[1].pictures["96"])
    (folder / "libs").mkdir()
    words = [sys.executable, "-c", READING, str(numbered), str(folder / "clip.mp4")]
    done = subprocess.run(
        words, env=with_libraries_of_pyav(folder / "libs"), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", ["whole", "smaller", "larger"])
def test_the_frames_are_those_of_pyav(told: dict[str, Any], case: str) -> None:
    by_pyav, by_torchcodec = told[case]
    assert by_torchcodec == by_pyav
    assert len(set(by_pyav)) >= 6


def test_the_pictures_are_nearly_those_of_pyav(told: dict[str, Any]) -> None:
    assert max(told["apart"]) < 3, told["apart"]


@pytest.mark.parametrize(
    ("case", "message"),
    [("too small", "MediaError: its picture is 160x96, smaller than 160 px"),
     ("half", "MediaError: it ends before its last frame"),
     ("without its last frame", "MediaError: it ends before its last frame"),
     ("page", "MediaError: it cannot be decoded: Invalid data found when processing input")],
)  # fmt: skip
def test_what_cannot_be_used_is_told_as_by_pyav(told: dict[str, Any], case: str, message: str) -> None:
    assert told[case] == [message, message]


def test_the_reader_reads_the_same(told: dict[str, Any]) -> None:
    by_pyav, by_torchcodec = told["read"]
    assert by_torchcodec == by_pyav
    assert sum(len(keys) for keys, _ in by_pyav) > 30


def test_a_machine_that_cannot_decode_is_told_at_once_and_no_sample_is_blamed(told: dict[str, Any]) -> None:
    assert told["no GPU"].startswith("reader.decoder, reader.decoder_device: torchcodec cannot decode on 'cuda' here: ")
    assert "use the decoder 'pyav'" in told["no GPU"]


def test_without_torchcodec_the_setting_is_refused(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.delitem(sys.modules, "torchcodec.decoders", raising=False)
    with pytest.raises(DataError, match="'torchcodec' is not installed: pip install torchcodec, or use 'pyav'"):
        Reader([DatasetMix(location=str(numbered))], ReaderSettings(decoder="torchcodec"), split="train", seed=0)
