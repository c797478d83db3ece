"""The facts of a report as plain values, which the page, the dataset card and ``report.json`` show."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pipeline.dataset.bugs import BUG, bug_note
from pipeline.dataset.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.dataset.tables import SAMPLES_NAME
from pipeline.report.advice import about_reason
from pipeline.report.catalogue import RULES, Thresholds, thresholds_of
from pipeline.report.contents import classes, hours, shapes, sources, splits
from pipeline.report.distributions import distributions
from pipeline.report.leakage import leakage
from pipeline.report.outcomes import Outcomes, read_outcomes, read_timings
from pipeline.report.pairs import agreement_facts
from pipeline.report.tables import Tables
from pipeline.runtime.folder import Folder

logger = logging.getLogger(__name__)

FORMAT = "hearscape-report"
VERSION = 1
MAX_LICENCES = 50


def read_manifest_if_any(folder: Folder) -> Manifest | None:
    """The manifest; None where no build has finished or it kept nothing. Raises ManifestError for a damaged one."""
    if not folder.exists(FILE_NAME):
        return None
    return read_manifest(folder.url)


def gather(
    folder: Folder, manifest: Manifest | None, tables: Tables, recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The facts of a dataset. ``recipe`` is used where there is no manifest, since the build kept nothing."""
    known: Mapping[str, Any] = manifest.recipe if manifest else recipe or {}
    thresholds = thresholds_of(known, getattr(manifest, "agreement_rule", None))
    outcomes = read_outcomes(folder)
    clips = clip_counts(tables)
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": manifest.name if manifest else str(known.get("name") or folder.url.rstrip("/").rsplit("/", 1)[-1]),
        "versions": dict(manifest.versions) if manifest else {},
        "recipe": dict(known),
        "thresholds": {
            "values": dict(thresholds.values),
            "per_class": dict(thresholds.per_class),
            "origin": thresholds.origin,
        },
        "headline": headline(tables, manifest, outcomes, clips),
        "funnel": funnel(outcomes, manifest, clips),
        "rejections": rejections(tables, outcomes, thresholds),
        "failures": outcomes.failure_list(),
        "measures": distributions(tables, thresholds),
        "agreement": agreement_facts(folder, manifest, tables, thresholds),
        "classes": classes(tables),
        "splits": splits(tables),
        "leakage": leakage(tables),
        "shapes": shapes(tables),
        "sources": sources(tables, outcomes),
        "timings": read_timings(folder),
        "notes": notes(manifest, outcomes, clips, tables),
    }


def clip_counts(tables: Tables) -> dict[str, Any]:
    """Clips by state, with their hours."""
    rows = tables.rows("SELECT state, count(*) AS clips, sum(seconds) AS seconds FROM clips GROUP BY state")
    return {row["state"]: {"clips": row["clips"], "hours": hours(row["seconds"])} for row in rows}


def headline(tables: Tables, manifest: Manifest | None, outcomes: Outcomes, clips: Mapping[str, Any]) -> dict[str, Any]:
    """The figures at the top of the page."""
    kept = clips.get("kept", {"clips": 0, "hours": 0.0})
    licences = tables.rows(
        "SELECT coalesce(licence, '') AS licence, count(*) AS clips, sum(seconds) AS seconds FROM clips WHERE state = 'kept' "
        "GROUP BY ALL ORDER BY clips DESC, licence LIMIT ?",
        [MAX_LICENCES],
    )
    counted = tables.one(
        "SELECT count(DISTINCT source_id) AS sources, (SELECT count(DISTINCT label) FROM "
        "(SELECT unnest(labels) AS label FROM clips WHERE state = 'kept')) AS classes FROM clips WHERE state = 'kept'"
    )
    return {
        "num_sources": outcomes.total if outcomes.found else (manifest.sources.total if manifest else 0),
        "num_kept_sources": counted["sources"],
        "num_clips": sum(each["clips"] for each in clips.values()),
        "measured_hours": round(sum(each["hours"] for each in clips.values()), 6),
        "num_kept": kept["clips"],
        "kept_hours": kept["hours"],
        "num_classes": counted["classes"],
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards) if manifest else 0,
        "renditions": _renditions(manifest) if manifest else [],
        "licences": [
            {"licence": row["licence"] or None, "clips": row["clips"], "hours": hours(row["seconds"])}
            for row in licences
        ],
        "encoder_id": manifest.encoder_id if manifest else None,
    }


def _renditions(manifest: Manifest) -> list[dict[str, Any]]:
    listed = []
    for rendition in manifest.renditions:
        shards = [shard for shard in manifest.shards if shard.rendition == rendition.name]
        listed.append(
            {
                "name": rendition.name,
                "short_side_px": rendition.short_side_px,
                "video_codec": rendition.video_codec,
                "sound_codec": rendition.sound_codec,
                "num_shards": len(shards),
                "num_bytes": sum(s.num_bytes for s in shards),
            }
        )
    return listed


def funnel(outcomes: Outcomes, manifest: Manifest | None, clips: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of sources and clips. Listed sources less the losses in ``steps`` are the kept sources.

    ``problems``: differences between the counts of the manifest, the ledger and ``samples.parquet``.
    """
    source_steps = _source_steps(outcomes)
    reasons = manifest.clips.reasons if manifest else {}
    problems = []
    if manifest is not None:
        for state in ("kept", "rejected", "failed"):
            expected, counted = manifest.clips.states.get(state, 0), clips.get(state, {}).get("clips", 0)
            if expected != counted:
                problems.append(f"the manifest counts {expected} {state} clips, samples.parquet holds {counted}")
            expected, counted = manifest.sources.states.get(state, 0), outcomes.states.get(state, 0)
            if outcomes.found and expected != counted:
                problems.append(f"the manifest counts {expected} {state} sources, the ledger {counted}")
    return {
        "sources": {
            "total": outcomes.total,
            "states": dict(outcomes.states),
            "reasons": dict(outcomes.reasons),
            "steps": source_steps,
            "num_scenes": outcomes.num_scenes,
            "num_with_clips": outcomes.num_with_clips,
        },
        "clips": {
            "total": sum(each["clips"] for each in clips.values()),
            "states": {n: c["clips"] for n, c in clips.items()},
            "manifest_reasons": dict(reasons),
        },
        "problems": problems,
    }


def _source_steps(outcomes: Outcomes) -> list[dict[str, Any]]:
    """The steps of the funnel: listed sources, then the losses by cause, then the sources that are kept."""
    failed = sum(group["count"] for group in outcomes.failures.values() if group["what"] == "source")
    clips_failed = outcomes.states["failed"] - failed
    steps = [{"what": "listed", "count": outcomes.total}]
    if outcomes.states["pending"]:
        steps.append({"what": "lost", "why": "pending", "count": outcomes.states["pending"], "kind": "pending"})
    codes: dict[str, int] = {}
    for group in outcomes.failures.values():
        if group["what"] == "source":
            codes[group["code"]] = codes.get(group["code"], 0) + group["count"]
    steps += [
        {"what": "lost", "why": code, "count": n, "kind": "failed"}
        for code, n in sorted(codes.items(), key=lambda i: (-i[1], i[0]))
    ]
    if clips_failed > 0:
        steps.append({"what": "lost", "why": "clips_failed", "count": clips_failed, "kind": "failed"})
    steps += [
        {"what": "lost", "why": reason, "count": count, "kind": "rejected"}
        for reason, count in sorted(outcomes.reasons.items(), key=lambda i: (i[0] == "no_clip_kept", -i[1], i[0]))
    ]
    steps.append({"what": "kept", "count": outcomes.states["kept"]})
    return steps


def rejections(tables: Tables, outcomes: Outcomes, thresholds: Thresholds) -> list[dict[str, Any]]:
    """Reasons for which clips and whole sources were rejected, with counts, meanings and advice."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for rule in RULES:
        limit = thresholds.values.get(rule.setting)
        settings.setdefault(rule.reason, []).append({"setting": f"judge.{rule.setting}", "value": limit})
    rows = tables.rows(
        "SELECT reason, count(*) AS clips, sum(seconds) AS seconds, count(DISTINCT source_id) AS sources FROM clips "
        "WHERE state = 'rejected' GROUP BY reason ORDER BY clips DESC, reason"
    )
    listed = []
    for row in rows:
        meaning, advice = about_reason(str(row["reason"]))
        listed.append(
            {
                "what": "clips",
                "reason": row["reason"],
                "count": row["clips"],
                "hours": hours(row["seconds"]),
                "sources": row["sources"],
                "meaning": meaning,
                "advice": advice,
                "settings": settings.get(str(row["reason"]), []),
            }
        )
    for reason, count in sorted(outcomes.reasons.items(), key=lambda item: (-item[1], item[0])):
        meaning, advice = about_reason(reason)
        listed.append(
            {
                "what": "sources",
                "reason": reason,
                "count": count,
                "hours": None,
                "sources": count,
                "meaning": meaning,
                "advice": advice,
                "settings": [],
            }
        )
    return listed


def notes(manifest: Manifest | None, outcomes: Outcomes, clips: Mapping[str, Any], tables: Tables) -> list[str]:
    """Warnings that a reader needs before the figures, such as a missing file."""
    listed = []
    if manifest is None:
        listed.append(
            "No clip was kept, so there is no manifest and there are no shards. The reasons below say what to change."
            if not clips.get("kept")
            else "There is no manifest: the build did not come to its end, and these are earlier tables."
        )
    if not outcomes.found:
        listed.append("ledger.jsonl is missing: what became of the sources is not shown.")
    if num_bugs := sum(
        group["count"] for (what, _, code), group in outcomes.failures.items() if (what, code) == ("source", BUG)
    ):
        listed.append(f"{bug_note(num_bugs)}.")
    if outcomes.num_damaged_lines:
        listed.append(f"{outcomes.num_damaged_lines} lines of ledger.jsonl cannot be read and are left out.")
    if manifest is not None and manifest.encoder_id is None:
        listed.append("Agreement of sound and picture was not measured: the recipe names no encoders.")
    if absent := tables.absent_measures:
        listed.append(
            f"{SAMPLES_NAME} has no column {', '.join(absent)}: another version wrote it. What rests on them is not shown."
        )
    return listed
