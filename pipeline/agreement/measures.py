"""Agreement: how well the sound of a clip fits its picture, computed from their embeddings in the shared space.

Shape suffixes: T frames, C classes, D width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.encoders.vectors import unit_vectors
from pipeline.schema import AgreementMeasures
from pipeline.settings import Settings
from pipeline.sources.class_names import normalised_name

NATURE_CLASSES = (
    "fire",
    "forest",
    "ocean",
    "rain",
    "river",
    "snow",
    "splashing water",
    "thunder",
    "underwater",
    "waterfall",
    "wind",
)
"""Default classes: sounds of nature, in words that describe pictures as well."""


class AgreementSettings(Settings):
    """How well sound and picture must agree in the shared space."""

    false_accept_rate: float | None = Field(None, gt=0, lt=1)
    """Share of wrong pairs (a picture with the sound of another class) that may pass, 0..1. The calibration converts it into a
    cosine. None: agreement is stored, and enforced only by ``judge.min_agreement``."""
    calibration: str | None = None
    """Path or URL of the calibration: a dataset's folder or manifest, or a calibration's JSON. None: that of the packaged pair; with
    other encoders this dataset's own clips are calibrated on at the end of the build."""
    per_class: bool = False
    """Whether every class with enough pairs has a threshold of its own."""
    classes: tuple[str, ...] | None = NATURE_CLASSES
    """The classes that a sound is compared with for its margin. A label of the source that is among them (upper or lower case, spaces
    or underscores) is its own class. None: neither margin nor classes are measured."""
    prompt: str = "a photo of {}"
    """Text that is embedded for a class, with {} for its name."""

    @model_validator(mode="after")
    def _prompts_differ(self) -> Self:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt {self.prompt!r} needs one {{}} where the class's name goes")
        if self.classes is not None and len({normalised_name(name) for name in self.classes}) < max(
            len(self.classes), 2
        ):
            raise ValueError(f"classes: give two or more, each once, got {', '.join(self.classes) or 'none'}")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """The text of each class. Empty if margins are not measured."""
        return tuple(self.prompt.replace("{}", normalised_name(name)) for name in self.classes or ())


@dataclass(frozen=True, slots=True)
class ClassPrompts:
    """Classes, and the embeddings of their texts: (C, D), rows of length 1."""

    names: tuple[str, ...]
    rows: NDArray[np.float32]


def agreement(
    picture_frames_TD: NDArray[np.float32],
    sound_D: NDArray[np.float32],
    encoder_id: str,
    prompts: ClassPrompts | None = None,
    labels: Sequence[str] = (),
) -> AgreementMeasures:
    """Cosine of the mean picture embedding and the sound, and the highest cosine of one frame and the sound, both -1..1. With
    ``prompts`` also the margin: see :func:`class_measures`.

    Frame embeddings are scaled to length 1 before the mean is taken. The agreement of a vector of length 0, such as the mean of
    frames that cancel out, is 0.

    Raises ValueError for embeddings without frames, of different widths, or not finite.
    """
    if picture_frames_TD.ndim != 2 or sound_D.shape != picture_frames_TD.shape[1:] or 0 in picture_frames_TD.shape:
        raise ValueError(
            f"embeddings must be (frames, width) and (width,), got {picture_frames_TD.shape} and {sound_D.shape}"
        )
    if not (np.isfinite(picture_frames_TD).all() and np.isfinite(sound_D).all()):
        raise ValueError(f"embeddings of {encoder_id} hold NaN or infinity")
    frames = unit_vectors(picture_frames_TD)
    sound = unit_vectors(sound_D)
    picture = unit_vectors(frames.mean(axis=0))
    cosines_T = np.clip(_products(frames, sound), -1.0, 1.0)
    cosine = np.clip(_products(picture, sound), -1.0, 1.0)
    margin, shown_class, heard_class = (
        (None, None, None) if prompts is None else class_measures(picture, sound, prompts, labels)
    )
    return AgreementMeasures(encoder_id, float(cosine), float(cosines_T.max()), margin, shown_class, heard_class)


def class_measures(
    picture_D: NDArray[np.floating], sound_D: NDArray[np.floating], prompts: ClassPrompts, labels: Sequence[str] = ()
) -> tuple[float | None, str | None, str | None]:
    """Margin, class nearest to the picture, and class nearest to the sound. The vectors have length 1 or 0.

    The clip's own class is the class of its label; of several labels, the one nearest to the sound. If none of its labels is among
    the classes, it is the class nearest to the picture. The margin is cos(sound, own class) - max over all others of
    cos(sound, class). A vector of length 0 has no nearest class (None), and without another class there is no margin (None).
    """
    rows_CD = unit_vectors(prompts.rows)
    picture_cosines_C, sound_cosines_C = _products(rows_CD, picture_D), _products(rows_CD, sound_D)
    nearest_to_picture = int(picture_cosines_C.argmax()) if picture_D.any() else None
    nearest_to_sound = int(sound_cosines_C.argmax()) if sound_D.any() else None
    normalised_labels = {normalised_name(label) for label in labels}
    is_own_C = np.asarray([normalised_name(name) in normalised_labels for name in prompts.names])
    if not is_own_C.any() and nearest_to_picture is not None:
        is_own_C[nearest_to_picture] = True
    margin = None
    if nearest_to_sound is not None and is_own_C.any() and not is_own_C.all():
        margin = float(sound_cosines_C[is_own_C].max() - sound_cosines_C[~is_own_C].max())
    names = prompts.names
    shown_class, heard_class = (
        None if index is None else names[index] for index in (nearest_to_picture, nearest_to_sound)
    )
    return margin, shown_class, heard_class


def _products(rows: NDArray[np.floating], vector_D: NDArray[np.floating]) -> NDArray[np.float64]:
    """The product of each row (..., D) with the vector, shape (...). Unlike ``@`` it adds in the same order on every processor."""
    return np.asarray(np.einsum("...d,d->...", rows, vector_D, optimize=False))
