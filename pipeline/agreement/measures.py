"""Agreement: how well a clip's sound fits its picture, from their embeddings in the shared space.

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
"""What nature sounds like, in words that pictures and sounds share."""


class AgreementSettings(Settings):
    """What is asked of sound and picture in the shared space."""

    false_accept_rate: float | None = Field(None, gt=0, lt=1)
    """Share of wrong pairs (a picture with the sound of another class) that may pass, 0..1: the calibration turns it into a
    cosine. None: agreement is stored and, unless ``judge.min_agreement`` names a bare cosine, not enforced."""
    calibration: str | None = None
    """Where the calibration stands: a dataset's folder or manifest, or a calibration's JSON; path or URL. None: the one that
    comes with the packaged pair; with other encoders, this dataset's own clips are calibrated on at the end of the build."""
    per_class: bool = False
    """Whether every class with enough pairs gets a threshold of its own."""
    classes: tuple[str, ...] | None = NATURE_CLASSES
    """The classes that a sound is held against for its margin. A source's label that is among them (in any case, spaces or
    underscores) is its own class. None: neither margin nor classes are measured."""
    prompt: str = "a photo of {}"
    """The words that stand for a class, with {} for its name."""

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
        """The text of each class; none where margins are not measured."""
        return tuple(self.prompt.replace("{}", normalised_name(name)) for name in self.classes or ())


@dataclass(frozen=True, slots=True)
class ClassPrompts:
    """Classes, and where their words lie in the shared space: (C, D), rows of length 1."""

    names: tuple[str, ...]
    rows: NDArray[np.float32]


def agreement(
    picture_frames_TD: NDArray[np.float32],
    sound_D: NDArray[np.float32],
    encoder_id: str,
    prompts: ClassPrompts | None = None,
    labels: Sequence[str] = (),
) -> AgreementMeasures:
    """Cosine of the mean picture embedding and the sound, and the best of any one frame, both -1..1; with prompts, the margin.

    The mean is taken over frame embeddings of length 1. Vectors of any length will do; one without direction (frames
    that cancel out) agrees with nothing: 0. For the margin see :func:`class_measures`.

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
    each = np.clip(_products(frames, sound), -1.0, 1.0)
    whole = np.clip(_products(picture, sound), -1.0, 1.0)
    margin, shown, heard = (None, None, None) if prompts is None else class_measures(picture, sound, prompts, labels)
    return AgreementMeasures(encoder_id, float(whole), float(each.max()), margin, shown, heard)


def class_measures(
    picture_D: NDArray[np.floating], sound_D: NDArray[np.floating], prompts: ClassPrompts, labels: Sequence[str] = ()
) -> tuple[float | None, str | None, str | None]:
    """Margin, shown class and heard class of a clip. The vectors have length 1, or 0 where they have no direction.

    The clip's own class is the one of its labels (the best heard of several); where none of them is among the classes, the
    shown class, the one nearest to the picture. The margin is cos(sound, own class) - max over all others of cos(sound, class).
    None: a vector without direction is near to nothing, and with no other class there is no margin.
    """
    rows = unit_vectors(prompts.rows)
    of_picture, of_sound = _products(rows, picture_D), _products(rows, sound_D)
    shown = int(of_picture.argmax()) if picture_D.any() else None
    heard = int(of_sound.argmax()) if sound_D.any() else None
    wanted = {normalised_name(label) for label in labels}
    own = np.asarray([normalised_name(name) in wanted for name in prompts.names])
    if not own.any() and shown is not None:
        own[shown] = True
    margin = None
    if heard is not None and own.any() and not own.all():
        margin = float(of_sound[own].max() - of_sound[~own].max())
    names = prompts.names
    return margin, None if shown is None else names[shown], None if heard is None else names[heard]


def _products(rows: NDArray[np.floating], vector_D: NDArray[np.floating]) -> NDArray[np.float64]:
    """The product of each row (..., D) with the vector. Unlike ``@`` it adds in one order, whatever the processor and its cores."""
    return np.asarray(np.einsum("...d,d->...", rows, vector_D, optimize=False))
