import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.agreement.measures import AgreementSettings, ClassPrompts, agreement, class_measures
from pipeline.encoders.vectors import mean_embedding
from pipeline.schema import AgreementMeasures


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
    code = f"import sys, pipeline.agreement.measures, pipeline.encoders.pair; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False]"


PROMPTS = ClassPrompts(("fire", "ocean", "splashing water"), np.eye(3, 4, dtype=np.float32))
SEEN = np.array([0.1, 0.9, 0.2, 0.3], dtype=np.float32)
HEARD = np.array([0.2, 0.3, 0.8, 0.1], dtype=np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("labels", "own", "others"),
    [
        (("ocean",), 1, (0, 2)),
        (("Splashing_Water",), 2, (0, 1)),
        (("a beach", "fire"), 0, (1, 2)),
        (("fire", "splashing water"), 2, (1,)),  # of two own classes the better one counts
        ((), 1, (0, 2)),  # the class that the picture shows
        (("a beach",), 1, (0, 2)),
    ],
)
def test_the_margin_is_over_the_best_wrong_class(labels, own, others):
    measures = agreement(SEEN[None] * 3, HEARD * 2, "id", PROMPTS, labels)
    heard = unit(HEARD)
    assert measures.margin == pytest.approx(heard[own] - max(heard[i] for i in others), abs=1e-6)
    assert (measures.shown_class, measures.heard_class) == ("ocean", "splashing water")
    assert measures.agreement == pytest.approx(unit(SEEN) @ heard, abs=1e-6)


def test_without_prompts_there_is_no_margin():
    assert agreement(SEEN[None], HEARD, "id") == AgreementMeasures(
        "id", pytest.approx(unit(SEEN) @ unit(HEARD)), pytest.approx(unit(SEEN) @ unit(HEARD)), None, None, None
    )


def test_no_margin_where_there_is_nothing_to_compare():
    nothing = np.zeros(4)
    assert class_measures(nothing, unit(HEARD), PROMPTS) == (None, None, "splashing water")
    assert class_measures(nothing, unit(HEARD), PROMPTS, ["ocean"])[0] == pytest.approx((0.3 - 0.8) / np.sqrt(0.78))
    assert class_measures(unit(SEEN), nothing, PROMPTS) == (None, "ocean", None)
    assert class_measures(unit(SEEN), unit(HEARD), PROMPTS, PROMPTS.names)[0] is None


def test_prompts_name_each_class_once():
    settings = AgreementSettings(classes=("rain", "splashing_water"), prompt="the sound of {}")
    assert settings.prompts == ("the sound of rain", "the sound of splashing water")
    assert AgreementSettings(classes=None).prompts == ()
    for values, message in [
        ({"prompt": "rain"}, "needs one {}"),
        ({"prompt": "{} or {}"}, "needs one {}"),
        ({"classes": ("rain",)}, "two or more"),
        ({"classes": ()}, "two or more"),
        ({"classes": ("splashing water", "Splashing_Water")}, "each once"),
    ]:
        with pytest.raises(ValidationError, match=message):
            AgreementSettings(**values)


def test_the_settings_are_documented():
    assert all(field.description for field in AgreementSettings.model_fields.values())
