import subprocess
import sys

import numpy as np
import pytest

from pipeline.agreement import agreement, mean_embedding


def test_agreement_is_the_cosine_with_the_mean_and_the_best_with_any_frame():
    frames = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    measures = agreement(frames, np.array([0.6, 0, 0.8], dtype=np.float32), "id")
    assert measures.encoder_id == "id"
    assert measures.agreement == pytest.approx(0.6 / np.sqrt(2), abs=1e-7)
    assert measures.best_agreement == pytest.approx(0.6, abs=1e-7)


def test_lengths_do_not_matter():
    frames = np.array([[2, 0], [0, 50]], dtype=np.float32)
    measures = agreement(frames, np.array([0, 3], dtype=np.float32), "id")
    assert measures.agreement == pytest.approx(np.sqrt(0.5), abs=1e-7)
    assert measures.best_agreement == 1.0


def test_opposite_is_minus_one_and_never_beyond():
    rng = np.random.default_rng(0)
    for _ in range(50):
        vector = rng.standard_normal(512).astype(np.float32)
        measures = agreement(vector[None], -vector, "id")
        assert -1.0 <= measures.agreement < -0.999999
        assert -1.0 <= measures.best_agreement < -0.999999


def test_frames_that_cancel_out_agree_with_nothing():
    frames = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    measures = agreement(frames, np.array([1, 0], dtype=np.float32), "id")
    assert (measures.agreement, measures.best_agreement) == (0.0, 1.0)
    assert mean_embedding(frames).tolist() == [0.0, 0.0]


def test_the_mean_embedding_has_length_one():
    mean = mean_embedding(np.array([[3, 0], [0, 4]], dtype=np.float32))
    assert mean.dtype == np.float32
    assert mean == pytest.approx([np.sqrt(0.5)] * 2, abs=1e-7)


@pytest.mark.parametrize(
    ("frames", "sound", "message"),
    [
        (np.zeros((0, 4)), np.ones(4), r"\(0, 4\)"),
        (np.ones((2, 4)), np.ones(3), r"\(2, 4\) and \(3,\)"),
        (np.ones(4), np.ones(4), r"must be \(frames, width\)"),
        (np.array([[np.nan, 1]]), np.ones(2), "NaN or infinity"),
        (np.ones((1, 2)), np.array([np.inf, 1]), "NaN or infinity"),
    ],
)
def test_unusable_embeddings_are_refused(frames, sound, message):
    with pytest.raises(ValueError, match=message):
        agreement(frames, sound, "id")


def test_settings_and_agreement_import_without_torch():
    names = "[name in sys.modules for name in ('torch', 'librosa')]"
    code = f"import sys, pipeline.agreement, pipeline.encoders.pair; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False]"
