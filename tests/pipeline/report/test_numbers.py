"""What the report counts is what the judge decides, and it adds up."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.agreement.roc import auc
from pipeline.dataset.tables import ClipRow, samples_schema, write_samples
from pipeline.judge.agreement_rule import AgreementRule, Calibration, RocPoint
from pipeline.judge.rules import JudgeSettings, judge_clip
from pipeline.report.catalogue import ACROSS_DATASET, MEASURES, RULES, thresholds_of
from pipeline.report.compare import compare, recipe_changes
from pipeline.report.facts import gather, read_manifest_if_any
from pipeline.report.gallery import choose
from pipeline.report.pairs import roc_points, wrong_partners
from pipeline.report.query import Query, find
from pipeline.report.tables import Tables
from pipeline.report.whatif import WhatIf, for_page, what_if
from pipeline.runtime.folder import Folder
from pipeline.schema import Reason, State
from tests.reported import JUDGE, KOREAN, LABELS, RECIPE, make_rows, write_dataset

Make = Callable[..., tuple[Folder, list[ClipRow]]]


def staying(rows: Sequence[ClipRow], judge: JudgeSettings, rule: AgreementRule | None = None) -> list[ClipRow]:
    """What the real judge keeps, less what was rejected across the dataset or failed."""
    return [
        row
        for row in rows
        if row.reason not in ACROSS_DATASET
        and row.state is not State.FAILED
        and row.picture is not None
        and judge_clip(row.picture, row.sound, row.agreement, (1280, 720), judge, rule, row.labels).kept
    ]


def opened(folder: Folder, rule: AgreementRule | None = None) -> tuple[Tables, WhatIf]:
    tables = Tables(folder)
    found = what_if(tables, thresholds_of(RECIPE, rule))
    assert found is not None
    return tables, found


def test_every_rule_of_the_judge_is_in_the_catalogue() -> None:
    assert {rule.setting for rule in RULES} == set(JudgeSettings.model_fields)
    columns = {*samples_schema().names, "cropped_share", "seconds"}
    assert {measure.name for measure in MEASURES} <= columns


@pytest.mark.slow
def test_each_slider_says_what_the_judge_says_at_every_step(tmp_path: Path) -> None:
    rows = make_rows(300)
    write_samples(rows, Folder(tmp_path))
    tables, found = opened(Folder(tmp_path))
    page = for_page(found)
    now = staying(rows, JUDGE)
    assert page["now"] == {"clips": len(now), "millis": sum(row.end_ms - row.start_ms for row in now)}
    assert len(now) == sum(row.state is State.KEPT for row in rows)
    assert [rule["setting"] for rule in page["rules"]] == [rule.setting for rule in RULES]
    changes = 0
    for index, rule in enumerate(page["rules"]):
        for step in [*range(0, len(rule["steps"]), 5), rule["now"], None]:
            if step is None and rule["now"] is None:
                continue
            limit = None if step is None else rule["steps"][step]
            kept = staying(rows, JUDGE.model_copy(update={rule["setting"]: limit}))
            counted = rule["off"]["clips"] if step is None else rule["clips"][step]
            assert counted == len(kept), (rule["setting"], limit)
            millis = rule["off"]["millis"] if step is None else rule["millis"][step]
            assert millis == sum(row.end_ms - row.start_ms for row in kept)
            chosen = list(found.now)
            chosen[index] = step
            assert int(found.stays(chosen).sum()) == len(kept)
            changes += len(kept) != len(now)
    assert changes > 100  # the thresholds that were tried do decide
    tables.close()


def test_several_sliders_at_once_say_what_the_judge_says(tmp_path: Path) -> None:
    rows = make_rows(300, seed=1)
    write_samples(rows, Folder(tmp_path))
    tables, found = opened(Folder(tmp_path))
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(40):
        chosen = [
            int(rng.integers(len(steps))) if rng.random() < 0.3 else now
            for steps, now in zip(found.steps, found.now, strict=True)
        ]
        settings = {
            rule.setting: None if k is None else steps[k]
            for rule, steps, k in zip(found.rules, found.steps, chosen, strict=True)
        }
        kept = staying(rows, JUDGE.model_copy(update=settings))
        assert int(found.stays(chosen).sum()) == len(kept)
        counts.add(len(kept))
    assert len(counts) > 5
    tables.close()


def test_a_threshold_of_its_own_for_a_class_holds_until_the_slider_moves(tmp_path: Path) -> None:
    rule = AgreementRule(
        min_agreement=0.2, per_class={"ocean": 0.45, KOREAN: 0.05}, origin="own clips", false_accept_rate=0.05
    )
    judge = JUDGE.model_copy(update={"min_agreement": None})
    rows = make_rows(300, judge, rule)
    write_samples(rows, Folder(tmp_path))
    tables, found = opened(Folder(tmp_path), rule)
    now = staying(rows, judge, rule)
    page = for_page(found)
    assert page["now"]["clips"] == len(now) == sum(row.state is State.KEPT for row in rows)
    place = [r.setting for r in found.rules].index("min_agreement")
    assert page["rules"][place]["by_class"] is True
    for step in (0, 30, 60):
        limit = found.steps[place][step]
        one_for_all = staying(rows, judge.model_copy(update={"min_agreement": limit}))
        assert page["rules"][place]["clips"][step] == len(one_for_all)
    assert page["rules"][place]["clips"][found.now[place] or 0] != len(now)
    tables.close()


def test_of_very_many_clips_the_page_holds_a_sample_and_counts_one_slider_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.whatif.MAX_CLIPS", 100)
    rows = make_rows(300)
    write_samples(rows, Folder(tmp_path))
    tables, found = opened(Folder(tmp_path))
    page = for_page(found)
    assert (page["num_packed"], page["num_clips"]) == (100, 300)
    speech = next(rule for rule in page["rules"] if rule["setting"] == "max_speech_share")
    step = speech["steps"].index(0.1)
    assert speech["clips"][step] == len(staying(rows, JUDGE.model_copy(update={"max_speech_share": 0.1})))
    tables.close()


def test_distributions_hold_every_clip_once(dataset: Make) -> None:
    folder, rows = dataset()
    with Tables(folder) as tables:
        facts = gather(folder, read_manifest_if_any(folder), tables)
    found = {measure["name"]: measure for measure in facts["measures"]}
    for name, measure in found.items():
        for state in ("kept", "rejected"):
            assert sum(measure[state]) + measure["missing"][state] == sum(row.state == state for row in rows), name
    speech = found["speech_share"]
    assert (speech["threshold"], speech["side"], speech["setting"]) == (0.3, "at_most", "max_speech_share")
    kept = sorted(row.picture.luma_mean for row in rows if row.state is State.KEPT and row.picture)
    assert found["luma_mean"]["quantiles"]["kept"][2] == pytest.approx(np.median(kept), rel=1e-5)
    assert found["white_share"]["threshold"] is None
    assert "margin" not in found  # not measured here


def test_the_funnel_adds_up(dataset: Make) -> None:
    folder, rows = dataset()
    with Tables(folder) as tables:
        facts = gather(folder, read_manifest_if_any(folder), tables)
    steps = facts["funnel"]["sources"]["steps"]
    lost = sum(step["count"] for step in steps if step["what"] == "lost")
    assert steps[0]["count"] - lost == steps[-1]["count"] == facts["headline"]["num_kept_sources"]
    assert steps[0]["count"] == len({row.source_id for row in rows}) + 3 == facts["headline"]["num_sources"]
    rejected = {entry["reason"]: entry["count"] for entry in facts["rejections"] if entry["what"] == "clips"}
    assert rejected == dict(Counter(row.reason.value for row in rows if row.reason))
    states = facts["funnel"]["clips"]["states"]
    assert (
        facts["headline"]["num_clips"] - sum(rejected.values()) - states["failed"]
        == states["kept"]
        == facts["headline"]["num_kept"]
    )
    assert facts["funnel"]["problems"] == []
    assert facts["headline"]["kept_hours"] == pytest.approx(states["kept"] * 3 / 3600, abs=1e-6)
    failures = {(entry["what"], entry["code"]): entry for entry in facts["failures"]}
    assert failures["source", "http_404"]["count"] == failures["clip", "encode"]["count"] == 1
    assert failures["source", "bad_row"]["examples"][0]["listed_at"] == "list.csv:9"
    assert failures["source", "http_404"]["advice"].startswith("The link is dead")


def test_numbers_that_do_not_agree_are_told(dataset: Make) -> None:
    folder, rows = dataset()
    write_samples(rows[:-1], folder)
    with Tables(folder) as tables:
        problems = gather(folder, read_manifest_if_any(folder), tables)["funnel"]["problems"]
    state = rows[-1].state
    num = sum(row.state is state for row in rows)
    assert problems == [f"the manifest counts {num} {state} clips, samples.parquet holds {num - 1}"]


def test_classes_splits_and_sources(dataset: Make) -> None:
    folder, rows = dataset()
    with Tables(folder) as tables:
        facts = gather(folder, read_manifest_if_any(folder), tables)
    kept = [row for row in rows if row.state is State.KEPT]
    found = {entry["label"]: entry for entry in facts["classes"]["listed"]}
    assert set(found) == set(LABELS)
    for label in LABELS:
        own = [row for row in kept if label in row.labels]
        assert (found[label]["kept"], found[label]["splits"]) == (len(own), dict(Counter(row.split for row in own)))
    assert {entry["split"]: entry["clips"] for entry in facts["splits"]} == dict(Counter(row.split for row in kept))
    per_source = Counter(row.source_id for row in kept)
    assert facts["sources"]["most"][0]["kept"] == facts["sources"]["highest_clips"] == max(per_source.values())
    top = -(-len(per_source) // 10)
    assert facts["sources"]["clips_of_top_tenth"] == sum(sorted(per_source.values(), reverse=True)[:top])
    assert facts["sources"]["num_nothing"] == facts["headline"]["num_sources"] - len(per_source)
    assert facts["sources"]["hosts"][0]["host"] == "example.org"
    assert {s["stage"]: (s["seconds"], s["sources"]) for s in facts["timings"]["stages"]} == {
        "fetch": (2.0, 2),
        "measure": (2.5, 1),
    }


def test_leaks_between_splits_are_found(dataset: Make) -> None:
    folder, rows = dataset()
    with Tables(folder) as tables:
        assert [check["count"] for check in gather(folder, None, tables)["leakage"]] == [0, 0, 0, 0]
    first, second = next(
        (i, j) for i, j in itertools.combinations(range(len(rows)), 2)
        if rows[i].state is rows[j].state is State.KEPT and rows[i].split != rows[j].split
    )  # fmt: skip
    assert rows[first].picture is not None
    rows[second] = replace(rows[second], video_sha256=rows[first].video_sha256, picture=rows[first].picture)
    write_samples(rows, folder)
    with Tables(folder) as tables:
        found = {check["check"]: check for check in gather(folder, None, tables)["leakage"]}
    assert {name: check["count"] for name, check in found.items()} == {
        "source_id": 0,
        "video_sha256": 1,
        "picture_id": 1,
        "sound_id": 0,
    }
    assert found["picture_id"]["examples"] == [sorted([rows[first].key, rows[second].key])]


def test_the_area_is_the_chance_that_a_true_pair_wins() -> None:
    matched, shuffled = np.asarray([0.9, 0.5, 0.5]), np.asarray([0.5, 0.1])
    wins = [1.0 if m > s else 0.5 if m == s else 0.0 for m in matched for s in shuffled]
    assert auc(matched, shuffled) == pytest.approx(np.mean(wins)) == pytest.approx(5 / 6)
    rates = roc_points(matched, shuffled)
    assert [0.5, 1.0, 0.5] in rates
    assert [1.0, 1.0, 0.1] in rates


def test_wrong_pairs_are_of_another_source_and_class() -> None:
    sources = np.asarray([f"s{i // 3}" for i in range(60)])
    labels = np.asarray(["rain"] * 50 + ["wind"] * 10)  # nearly all of one class
    partners = wrong_partners(sources, labels)
    assert (partners >= 0).all()
    assert (sources[partners] != sources).all()
    assert (labels[partners] != labels).all()
    assert (wrong_partners(sources[:3], labels[:3]) == -1).all()


def test_agreement_parts_matched_from_shuffled(dataset: Make) -> None:
    folder, rows = dataset()
    with Tables(folder) as tables:
        found = gather(folder, read_manifest_if_any(folder), tables)["agreement"]
    embedded = sum(row.agreement is not None for row in rows)
    assert found["num_measured"] == found["pairs"]["num_matched"] == embedded
    assert sum(found["pairs"]["matched"]) == sum(found["pairs"]["shuffled"]) == embedded
    assert found["pairs"]["auc"] > 0.97  # classes point to different corners
    assert found["threshold"] == 0.1
    assert found["pairs"]["at_threshold"]["true_accept_rate"] > 0.95


def test_a_calibration_of_the_manifest_is_shown(dataset: Make) -> None:
    point = {
        "false_accept_rate": 0.05, "threshold": 0.31, "true_accept_rate": 0.8, "threshold_low": 0.3, "threshold_high": 0.32,
        "false_accept_low": 0.04, "false_accept_high": 0.06, "true_accept_low": 0.75, "true_accept_high": 0.85,
    }  # fmt: skip
    calibration = Calibration(
        encoder_id="pair-1", num_clips=100, num_sources=50, num_classes=4, num_wrong_pairs=400, num_independent_pairs=50, num_left_out=0,
        auc=0.93, auc_low=0.9, auc_high=0.95, points=(RocPoint(**point),),
    )  # fmt: skip
    folder, _ = dataset()
    manifest = read_manifest_if_any(folder)
    assert manifest is not None
    with Tables(folder) as tables:
        found = gather(folder, manifest.model_copy(update={"calibration": calibration}), tables)["agreement"][
            "calibration"
        ]
    assert (found["auc"], found["auc_low"], found["auc_high"], found["num_sources"]) == (0.93, 0.9, 0.95, 50)
    assert found["points"] == [{"false_accept_rate": 0.05, "threshold": 0.31, "true_accept_rate": 0.8}]


def test_of_many_embeddings_some_of_some_groups_are_read(dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dataset.tables._GROUP_ROWS", 20)
    monkeypatch.setattr("pipeline.report.pairs.MAX_PAIRS", 40)
    monkeypatch.setattr("pipeline.report.pairs.MAX_GROUPS", 4)
    folder, _ = dataset(120)
    with Tables(folder) as tables:
        pairs = gather(folder, read_manifest_if_any(folder), tables)["agreement"]["pairs"]
    assert 36 <= pairs["num_matched"] <= 44
    assert pairs["auc"] > 0.9


def test_an_older_table_without_a_measure_is_shown_without_it(dataset: Make) -> None:
    folder, rows = dataset(embed=False)
    assert folder.local_path is not None
    path = folder.local_path / "samples.parquet"
    older = pq.read_table(path).drop_columns(["music_share", "agreement", "best_agreement", "labels"])
    pq.write_table(older, path)
    with Tables(folder) as tables:
        facts = gather(folder, read_manifest_if_any(folder), tables)
        found = what_if(tables, thresholds_of(RECIPE, None))
    assert found is not None
    assert "music_share" not in {measure["name"] for measure in facts["measures"]}
    assert facts["agreement"] is None
    assert (
        "samples.parquet has no column music_share, agreement, best_agreement: another version wrote it."
        in facts["notes"][-1]
    )
    assert facts["headline"]["num_classes"] == 0
    assert facts["headline"]["num_clips"] == len(rows)


def test_the_gallery_shows_every_class_and_every_reason(dataset: Make) -> None:
    folder, rows = dataset(200)
    by_key = {row.key: row for row in rows}
    with Tables(folder) as tables:
        keys = choose(tables, 60)
        assert len(choose(tables, 10_000)) == len(rows)
    assert len(set(keys)) == 60
    chosen = [by_key[key] for key in keys]
    assert {row.reason for row in chosen} == {row.reason for row in rows}
    assert {row.labels[0] for row in chosen if row.state is State.KEPT} == set(LABELS)
    assert sum(row.state is State.KEPT for row in chosen) == 30
    assert sum(row.state is State.KEPT for row in chosen[:20]) in range(8, 13)


def test_clips_are_found_by_what_is_asked(dataset: Make) -> None:
    folder, rows = dataset(200)
    with Tables(folder) as tables:
        total, keys = find(tables, Query(state="rejected", label=KOREAN, sort="luma_mean", order="rising", limit=500))
        wanted = [row for row in rows if row.state is State.REJECTED and KOREAN in row.labels and row.picture]
        assert keys == [row.key for row in sorted(wanted, key=lambda row: (row.picture.luma_mean, row.key))]
        assert total == len(wanted)
        bright, _ = find(tables, Query(measure="luma_mean", low=100, high=150))
        assert bright == sum(100 <= row.picture.luma_mean <= 150 for row in rows if row.picture)
        assert find(tables, Query(text="SOURCE007_0001", reason=""))[1] == [rows[15].key]
        assert find(tables, Query(text="'; DROP TABLE clips; --"))[0] == 0
        first, rest = find(tables, Query(limit=3))[1], find(tables, Query(limit=3, offset=3))[1]
        assert len({*first, *rest}) == 6


def test_two_builds_are_compared(tmp_path: Path) -> None:
    before_rows, strict = make_rows(200), JUDGE.model_copy(update={"max_speech_share": 0.0})
    now_rows = [row for row in make_rows(204, strict) if row.source_id != "source001"]
    folders = [Folder(tmp_path / name) for name in ("before", "now")]
    write_dataset(folders[0], before_rows, name="before")
    write_dataset(folders[1], now_rows, name="now", recipe={**RECIPE, "judge": strict.model_dump(mode="json")})
    with Tables(folders[1]) as now, Tables(folders[0]) as before:
        found = compare(now, before, read_manifest_if_any(folders[1]), read_manifest_if_any(folders[0]), "before")
    assert found["recipe"] == [{"setting": "judge.max_speech_share", "before": "0.3", "now": "0.0"}]
    assert (found["num_only_before"], found["num_only_now"]) == (2, 4)
    old = {row.key: str(row.reason or row.state) for row in before_rows}
    new = {row.key: str(row.reason or row.state) for row in now_rows}
    flipped = Counter((old[key], new[key]) for key in old.keys() & new.keys() if old[key] != new[key])
    assert {(flip["before"], flip["now"]): flip["count"] for flip in found["flips"]} == dict(flipped)
    assert found["num_flipped"] == flipped.total()
    spoken = next(flip for flip in found["flips"] if (flip["before"], flip["now"]) == ("kept", "speech"))
    assert spoken["examples"][0]["now_detail"].startswith("speech_share ")
    states = {entry["name"]: (entry["before"], entry["now"]) for entry in found["clips"]}
    assert states["kept"] == tuple(sum(row.state is State.KEPT for row in rows) for rows in (before_rows, now_rows))
    assert recipe_changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}) == [
        {"setting": "a.c", "before": "2", "now": "not there"}
    ]


def test_reasons_that_other_clips_cause_are_those_of_the_schema() -> None:
    assert set(ACROSS_DATASET) == {Reason.DUPLICATE, Reason.CLASS_FULL, Reason.SOURCE_FULL}
