"""From a wanted share of false accepts to the agreement that is asked of a clip: the calibration as it is stored, and the rule
that comes of it. How one is made is in calibration.py. Light to import."""

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
"""A threshold may stand just beyond the highest score."""
Count = Field(ge=0)


class AgreementRule(JsonRecord):
    """The agreement that is asked of a clip, resolved: numbers only."""

    min_agreement: float | None = None
    """Cosine at the least. None: nothing is asked."""
    per_class: dict[str, float] = Field(default_factory=dict)
    """Cosine at the least for clips with this label, in place of the other. Of several labels the strictest counts."""
    false_accept_rate: float | None = None
    """Share of wrong pairs that the calibration lets pass at this threshold. None: the threshold is a bare cosine."""
    origin: Origin | None = None
    """Where the threshold comes from: a bare cosine of the recipe; the packaged pair's calibration; the one that the recipe
    names; this dataset's own clips. None: there is no threshold."""
    calibration_id: str | None = None
    """:attr:`Calibration.calibration_id` of the calibration that was used. None: none was."""

    @property
    def enforced(self) -> bool:
        return self.min_agreement is not None

    def limit(self, labels: Iterable[str] = ()) -> float | None:
        """The cosine that a clip with these labels needs. None: nothing is asked of it."""
        own = [self.per_class[label] for label in labels if label in self.per_class]
        return max(own) if own else self.min_agreement

    def words(self) -> str:
        """What the threshold promises, for verdicts and notes: ``false accepts 5 %``. Empty for a bare cosine."""
        return "" if self.false_accept_rate is None else f"false accepts {100 * self.false_accept_rate:g} %"


class ClassPoint(JsonRecord):
    """One point of a receiver operating characteristic."""

    false_accept_rate: float = Share
    """Share of wrong pairs that score ``threshold`` or more."""
    threshold: float = Cosine
    true_accept_rate: float = Share
    """Share of true pairs that do."""


class RocPoint(ClassPoint):
    """A point with its 95 % intervals, from resampled sources."""

    threshold_low: float = Cosine
    threshold_high: float = Cosine
    """Where the threshold for this rate would lie with other sources of the same kind."""
    false_accept_low: float = Share
    false_accept_high: float = Share
    """The share of wrong pairs that pass this very threshold, with other sources."""
    true_accept_low: float = Share
    true_accept_high: float = Share
    """The share of true pairs that pass this very threshold, with other sources."""


class ClassCalibration(JsonRecord):
    """One class: its pictures with their own sounds, against its pictures with the sounds of other classes."""

    num_clips: int = Count
    num_independent_pairs: int = Count
    auc: float = Share
    points: tuple[ClassPoint, ...] = Field(min_length=1, strict=False)


class Calibration(JsonRecord):
    """What agreement tells true pairs (a clip's picture and its own sound) from wrong ones, for one encoder pair.

    True pairs are taken for true: where the clips hold dubbed or unfitting sound, the shares of true pairs come out too low.
    """

    format: Literal["hearscape-calibration"] = FORMAT
    version: Literal[1] = 1
    encoder_id: str = Field(min_length=1)
    """The pair that made the embeddings; the thresholds hold for no other."""
    num_clips: int = Count
    """True pairs."""
    num_sources: int = Count
    """Sources (videos) that the clips come from."""
    num_classes: int = Count
    """Labels by which wrong pairs were told from true ones. 0: the clips had none, and pictures were paired with the sounds of any
    other source, so that some "wrong" pairs fit, and thresholds are stricter than they need be."""
    num_wrong_pairs: int = Count
    """Pictures with the sound of another source and class."""
    num_independent_pairs: int = Count
    """Wrong pairs in which no source's picture and no source's sound comes twice: what a rate can rest on."""
    num_left_out: int = Count
    """Clips that were not used: without direction in the space, or without a label among labelled ones."""
    auc: float = Share
    """Area under the curve: the chance that a true pair scores higher than a wrong one."""
    auc_low: float = Share
    auc_high: float = Share
    """95 % interval, from resampled sources."""
    points: tuple[RocPoint, ...] = Field(min_length=1, strict=False)
    """By rising false-accept rate. Smaller rates than the first one's cannot be told from so few pairs."""
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
        """Changes with any number in it."""
        return stable_hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def point(self, false_accept_rate: float) -> RocPoint:
        """The curve at a rate; between stored points, on a straight line over the rate's logarithm.

        Raises CalibrationError for a rate that is too small for so few pairs.
        """
        if false_accept_rate < self.points[0].false_accept_rate - 1e-9:
            raise CalibrationError(
                f"a false-accept rate of {false_accept_rate:g} needs at least {pairs_needed(false_accept_rate)} independent wrong "
                f"pairs (sources of two classes or more), and the calibration has {self.num_independent_pairs}: ask for "
                f"{self.points[0].false_accept_rate:g} or more, or calibrate on more sources"
            )
        return RocPoint(**_between(self.points, false_accept_rate))

    def threshold(self, false_accept_rate: float, label: str | None = None) -> float:
        """The agreement at which this share of wrong pairs passes; that of a class where it has one, else the overall one.

        Raises CalibrationError as :meth:`point` does.
        """
        overall = self.point(false_accept_rate).threshold
        own = self.per_class.get(label) if label is not None else None
        if own is None or false_accept_rate < own.points[0].false_accept_rate - 1e-9:
            return overall
        return _between(own.points, false_accept_rate)["threshold"]

    def rule(self, false_accept_rate: float, *, per_class: bool, origin: Origin) -> AgreementRule:
        """What is asked of clips so that this share of wrong pairs passes. Raises CalibrationError as :meth:`point` does."""
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
        """Raises CalibrationError, which says all that is wrong; ``where`` names it."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'calibration'}: {e['msg']}" for e in error.errors()[:10]]
            raise CalibrationError("\n  ".join([f"{where} cannot be read as a calibration:", *problems])) from error


def pairs_needed(false_accept_rate: float) -> int:
    """Independent wrong pairs without which not even one would be expected to pass."""
    return math.ceil(1 / false_accept_rate - 1e-9)


def _between(points: tuple[ClassPoint, ...], rate: float) -> dict[str, float]:
    """The numbers of a point at ``rate``; beyond the last point, those of the last, which is stricter."""
    after = next((i for i, point in enumerate(points) if point.false_accept_rate >= rate - 1e-9), None)
    if after is None or after == 0 or abs(points[after].false_accept_rate - rate) < 1e-9:
        return dict(points[-1 if after is None else after])
    below, above = points[after - 1], points[after]
    position = math.log(rate / below.false_accept_rate) / math.log(above.false_accept_rate / below.false_accept_rate)
    mixed = {name: round(value + position * (getattr(above, name) - value), 6) for name, value in dict(below).items()}
    return {**mixed, "false_accept_rate": rate}
