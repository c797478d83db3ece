"""The calibration of agreement as it is stored, and the rule of agreement that it gives for a wanted share of false accepts.

Calibrations are made in :mod:`pipeline.agreement.calibration`. This module imports neither numpy nor torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import CalibrationError
from pipeline.schema import stable_hash
from pipeline.settings import JsonRecord

FORMAT: Literal["hearscape-calibration"] = "hearscape-calibration"

Origin = Literal["recipe", "packaged", "calibration", "own clips"]
Share = Field(ge=0, le=1)
Cosine = Field(ge=-1.001, le=1.001)
"""A threshold may be slightly above the highest score."""
Count = Field(ge=0)


class AgreementRule(JsonRecord):
    """The thresholds of agreement that a clip must reach."""

    min_agreement: float | None = None
    """Lowest cosine. None: there is no threshold."""
    per_class: dict[str, float] = Field(default_factory=dict)
    """Lowest cosine for clips with this label, instead of ``min_agreement``. Of several labels the highest threshold applies."""
    false_accept_rate: float | None = None
    """Share of wrong pairs that pass at this threshold, by the calibration. None: the recipe gave the cosine."""
    origin: Origin | None = None
    """Origin of the threshold: a cosine of the recipe, the packaged pair's calibration, the calibration that the recipe names, or this
    dataset's own clips. None: there is no threshold."""
    calibration_id: str | None = None
    """:attr:`Calibration.calibration_id` of the calibration. None: no calibration was used."""

    @property
    def enforced(self) -> bool:
        return self.min_agreement is not None

    def limit(self, labels: Iterable[str] = ()) -> float | None:
        """The lowest cosine for a clip with these labels. None: there is no threshold."""
        own = [self.per_class[label] for label in labels if label in self.per_class]
        return max(own) if own else self.min_agreement

    def words(self) -> str:
        """The rate of the threshold, for verdicts and notes: ``false accepts 5 %``. Empty for a cosine of the recipe."""
        return "" if self.false_accept_rate is None else f"false accepts {100 * self.false_accept_rate:g} %"


class ClassPoint(JsonRecord):
    """One point of a receiver operating characteristic."""

    false_accept_rate: float = Share
    """Share of wrong pairs that score ``threshold`` or more."""
    threshold: float = Cosine
    true_accept_rate: float = Share
    """Share of true pairs that score ``threshold`` or more."""


class RocPoint(ClassPoint):
    """A point with its 95 % intervals, from resampled sources."""

    threshold_low: float = Cosine
    threshold_high: float = Cosine
    """Interval of the threshold for this rate, for other sources of the same kind."""
    false_accept_low: float = Share
    false_accept_high: float = Share
    """Interval of the share of wrong pairs that pass ``threshold``, for other sources."""
    true_accept_low: float = Share
    true_accept_high: float = Share
    """Interval of the share of true pairs that pass ``threshold``, for other sources."""


class ClassCalibration(JsonRecord):
    """Calibration of one class. True pairs are its pictures with their own sounds, wrong pairs with the sounds of other classes."""

    num_clips: int = Count
    num_independent_pairs: int = Count
    auc: float = Share
    points: tuple[ClassPoint, ...] = Field(min_length=1, strict=False)


class Calibration(JsonRecord):
    """How well agreement separates true pairs (a clip's picture and its own sound) from wrong pairs, for one encoder pair.

    All clips are taken for true pairs. If some have dubbed or unfitting sound, the true-accept rates are too low.
    """

    format: Literal["hearscape-calibration"] = FORMAT
    version: Literal[1] = 1
    encoder_id: str = Field(min_length=1)
    """The encoder pair of the embeddings. The thresholds hold for this pair only."""
    num_clips: int = Count
    """Number of true pairs."""
    num_sources: int = Count
    """Number of sources (videos) of the clips."""
    num_classes: int = Count
    """Number of labels. 0: the clips have no labels, and pictures were paired with the sounds of any other source. Then some "wrong"
    pairs fit, and the thresholds are higher than necessary."""
    num_wrong_pairs: int = Count
    """Number of wrong pairs: pictures with the sound of another source and class."""
    num_independent_pairs: int = Count
    """Wrong pairs in which no source gives two pictures or two sounds. It limits the smallest rate."""
    num_left_out: int = Count
    """Clips that were not used: those with an embedding of length 0, and those without a label if others have one."""
    auc: float = Share
    """Area under the curve: the probability that a true pair scores higher than a wrong one."""
    auc_low: float = Share
    auc_high: float = Share
    """95 % interval, from resampled sources."""
    points: tuple[RocPoint, ...] = Field(min_length=1, strict=False)
    """Sorted by rising false-accept rate. The first rate is the smallest that can be estimated from so many pairs."""
    per_class: dict[str, ClassCalibration] = Field(default_factory=dict)
    """Classes with enough pairs for a threshold of their own."""

    @model_validator(mode="after")
    def _in_order(self) -> Calibration:
        for points in (self.points, *(each.points for each in self.per_class.values())):
            rates = [point.false_accept_rate for point in points]
            if rates != sorted(set(rates)) or rates[0] <= 0:
                raise ValueError(f"the points' false_accept_rate must rise from above 0, got {rates[:5]}")
        return self

    @property
    def calibration_id(self) -> str:
        """Hash of all its values."""
        return stable_hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def point(self, false_accept_rate: float) -> RocPoint:
        """The point of the curve at a rate, interpolated linearly over the logarithm of the rate.

        Raises CalibrationError for a rate that is too small for the number of pairs.
        """
        if false_accept_rate < self.points[0].false_accept_rate - 1e-9:
            raise CalibrationError(
                f"a false-accept rate of {false_accept_rate:g} needs at least {pairs_needed(false_accept_rate)} independent wrong "
                f"pairs (sources of two classes or more), and the calibration has {self.num_independent_pairs}: ask for "
                f"{self.points[0].false_accept_rate:g} or more, or calibrate on more sources"
            )
        return RocPoint(**_between(self.points, false_accept_rate))

    def threshold(self, false_accept_rate: float, label: str | None = None) -> float:
        """The cosine at which this share of wrong pairs passes: that of the class ``label`` if it has one, else the overall one.

        Raises CalibrationError as :meth:`point` does.
        """
        overall = self.point(false_accept_rate).threshold
        own = self.per_class.get(label) if label is not None else None
        if own is None or false_accept_rate < own.points[0].false_accept_rate - 1e-9:
            return overall
        return _between(own.points, false_accept_rate)["threshold"]

    def rule(self, false_accept_rate: float, *, per_class: bool, origin: Origin) -> AgreementRule:
        """The rule that lets this share of wrong pairs pass. Raises CalibrationError as :meth:`point` does."""
        return AgreementRule(
            min_agreement=self.threshold(false_accept_rate),
            per_class={
                label: self.threshold(false_accept_rate, label)
                for label, own in (sorted(self.per_class.items()) if per_class else ())
                if false_accept_rate >= own.points[0].false_accept_rate - 1e-9
            },
            false_accept_rate=false_accept_rate,
            origin=origin,
            calibration_id=self.calibration_id,
        )

    def to_json(self) -> bytes:
        """The same bytes for the same calibration."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, where: str = "the calibration") -> Calibration:
        """Parses a stored calibration. Raises CalibrationError, which lists the problems and begins with ``where``."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'calibration'}: {e['msg']}" for e in error.errors()[:10]]
            raise CalibrationError("\n  ".join([f"{where} cannot be read as a calibration:", *problems])) from error


def pairs_needed(false_accept_rate: float) -> int:
    """Number of independent wrong pairs of which one passes on average at this rate."""
    return math.ceil(1 / false_accept_rate - 1e-9)


def _between(points: tuple[ClassPoint, ...], rate: float) -> dict[str, float]:
    """The numbers of a point at ``rate``. Above the rate of the last point they are those of the last point, whose threshold is higher."""
    after = next((i for i, point in enumerate(points) if point.false_accept_rate >= rate - 1e-9), None)
    if after is None or after == 0 or abs(points[after].false_accept_rate - rate) < 1e-9:
        return dict(points[-1 if after is None else after])
    below, above = points[after - 1], points[after]
    position = math.log(rate / below.false_accept_rate) / math.log(above.false_accept_rate / below.false_accept_rate)
    mixed = {name: round(value + position * (getattr(above, name) - value), 6) for name, value in dict(below).items()}
    return {**mixed, "false_accept_rate": rate}
