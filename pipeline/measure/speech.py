"""Detects speech with the network of silero-vad, run by onnxruntime.

The weights are in the wheel of silero-vad. The package itself is not imported, because it would load torch in every worker.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

# must be set before onnxruntime is imported: it reports every session to its maker, with an id of the machine
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""The network takes every frame of 32 ms together with the 4 ms before it (silero-vad 5 and later)."""


class VoiceDetector:
    """silero-vad over whole clips. Load once per process: :func:`voice_detector`."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("silero_vad")
        assert spec is not None and spec.submodule_search_locations, "silero-vad is a dependency of this package"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        weights = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def probabilities(self, mono: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probability of speech in each frame of 32 ms, shape (frames,). ``mono``: (num_samples,) at 16 kHz, -1..1."""
        num_frames = -(-mono.size // FRAME_SAMPLES)
        padded = np.zeros(CONTEXT_SAMPLES + num_frames * FRAME_SAMPLES, np.float32)
        padded[CONTEXT_SAMPLES : CONTEXT_SAMPLES + mono.size] = mono
        windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
        state = np.zeros((1, 1, 128), np.float32)
        (probabilities,) = self._session.run(
            ["speech_probs"], {"input": np.ascontiguousarray(windows), "h": state, "c": state}
        )
        return np.asarray(probabilities, np.float32).reshape(-1)


@functools.cache
def voice_detector() -> VoiceDetector:
    """The detector of this process."""
    return VoiceDetector()


def version() -> str:
    return importlib.metadata.version("silero-vad")
