"""Calibrates agreement on this build's own clips, then judges the clips that were waiting for the threshold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.agreement.calibration import Calibration, calibration_of
from pipeline.agreement.choose_rule import rule_line, rule_of_own_clips
from pipeline.agreement.pairs import ClipPool, DrawnPairs, draw_scores, pass_shares
from pipeline.build.recipe import BuildRecipe
from pipeline.build.shard_contents import embeddings_of
from pipeline.dataset.source_records import ClipRecord, SourceRecord
from pipeline.errors import CalibrationError
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.judge.rules import judge_agreement, passes_other_rules
from pipeline.runtime.folder import Folder
from pipeline.schema import State, Verdict

Records = Callable[[Collection[str] | None], Iterator[SourceRecord]]
"""The records of the sources of these ids; None: of all."""


@dataclass(frozen=True, slots=True)
class AgreementResult:
    """Result of :func:`settle_agreement`."""

    rule: AgreementRule
    """The final rule of agreement."""
    calibration: Calibration | None = None
    """Calibration on this dataset's own clips. None: too few clips, or no encoders."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """Verdicts of the clips that the final rule rejects and the earlier rules kept, by key."""
    notes: tuple[str, ...] = ()
    """Sentences for the build's summary."""


def settle_agreement(
    recipe: BuildRecipe, rule: AgreementRule, encoder_id: str | None, records: Records, state: Folder
) -> AgreementResult:
    """Calibrates agreement on the clips that pass all other rules. If the recipe wants a false-accept rate and ``rule``, by which the
    clips were judged, has no threshold yet, the calibration gives the threshold and the clips are judged by it.

    Clips that another rule rejects are left out: speech, music or silence over a picture is no true pair. Reads the records up to
    three times.

    Raises CalibrationError if the recipe needs a threshold and there are too few clips. Nothing is written before that, so another
    run with another setting only judges.
    """
    if encoder_id is None:
        return AgreementResult(
            rule, notes=("Agreement of sound and picture was not measured: the recipe names no encoders.",)
        )
    drawn = draw_own(records, state)
    waits = recipe.agreement.false_accept_rate is not None and not rule.enforced
    try:
        calibration = calibration_of(drawn, encoder_id)
        final_rule = rule_of_own_clips(recipe.agreement, calibration) if waits else rule
    except CalibrationError as error:
        if waits:
            raise CalibrationError(_too_few(error)) from error
        return AgreementResult(
            rule, notes=(*_rule_notes(recipe, rule, drawn), f"The dataset has no calibration: {error}.")
        )
    verdicts = dict(_rejected(records(None), final_rule)) if waits else {}
    notes = (*_rule_notes(recipe, final_rule, drawn), _calibration_note(calibration))
    return AgreementResult(final_rule, calibration, verdicts, notes)


def draw_own(records: Records, state: Folder) -> DrawnPairs:
    """Draws true and wrong pairs among the clips that pass all rules except that of agreement."""
    pool = ClipPool()
    for record in records(None):
        for clip in record.clips if record.embedded_key is not None else ():
            if passes_other_rules(clip.reason):
                pool.add(record.key_of(clip), record.content_sha256 or record.source.source_id, record.source.labels)
    chosen = pool.clips()
    rows = {}
    for record in records({key.rsplit("_", 2)[0] for key in chosen}):
        rows.update({key: (picture, sound) for key, picture, sound in embeddings_of(record, state) if key in chosen})
    none = np.zeros((0, 1), np.float32)
    return draw_scores(
        np.stack([rows[key][0] for key in chosen]) if chosen else none,
        np.stack([rows[key][1] for key in chosen]) if chosen else none,
        [source for source, _ in chosen.values()],
        [labels for _, labels in chosen.values()],
    )


def _rejected(records: Iterator[SourceRecord], rule: AgreementRule) -> Iterator[tuple[str, Verdict]]:
    for record in records:
        for clip in record.clips:
            if clip.state is State.KEPT and not (verdict := _judged(record, clip, rule)).kept:
                yield record.key_of(clip), verdict


def _judged(record: SourceRecord, clip: ClipRecord, rule: AgreementRule) -> Verdict:
    return judge_agreement(clip.agreement, rule, record.source.labels)


def _too_few(error: CalibrationError) -> str:
    return (
        f"{error}. All measures are kept. Name a calibration of these encoders (agreement.calibration), "
        "or a cosine (judge.min_agreement, without agreement.false_accept_rate), or add sources, and run the build again: "
        "nothing is fetched, decoded or embedded twice"
    )


def _rule_notes(recipe: BuildRecipe, rule: AgreementRule, drawn: DrawnPairs) -> Iterator[str]:
    line = rule_line(recipe.agreement, rule, has_encoders=True)
    yield f"A{line[1:]}."
    if not rule.enforced:
        return
    true, wrong = pass_shares(drawn, rule)
    others = "other classes" if any(drawn.labels) else "other sources"
    if true is not None:
        pairs = f"{len(drawn.scores.matched):,} clips that pass every other rule, {100 * true:.1f} % have that"
        foreign = "" if wrong is None else f"; of their pictures with the sounds of {others}, {100 * wrong:.1f} % would"
        yield f"Of the {pairs}{foreign}."


def _calibration_note(calibration: Calibration) -> str:
    known = f"{calibration.num_classes} classes" if calibration.num_classes else "no classes known"
    return (
        f"Agreement tells true pairs from wrong ones with AUC {calibration.auc:.3f} "
        f"({calibration.auc_low:.3f} to {calibration.auc_high:.3f}; {calibration.num_clips:,} clips, "
        f"{calibration.num_sources:,} sources, {known})."
    )
