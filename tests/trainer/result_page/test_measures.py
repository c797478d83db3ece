"""What of a result the page shows, which sounds it compares, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.proof.evaluation import ROWS
from trainer.result_page.make import fitting, next_steps
from trainer.result_page.measures import IN_WORDS, measures_of, read_measures
from trainer.result_page.page import ResultPage, render
from trainer.result_page.videos import Change, Clip, Comparison, Missing, PageSound, partner_of

RESULT = {
    "measured_by_loss_encoder": True,
    "verdict": "The sound matters.",
    "measures": {
        "right_minus_wrong": 0.5, "right_minus_wrong_low": 0.25, "right_minus_wrong_high": 0.75, "real_right_minus_wrong": 0.8,
        "class_accuracy": 0.75, "class_accuracy_low": 0.5, "class_accuracy_high": 1.0, "class_chance": 0.125,
        "agreement_right": None, "retrieval_at_1": "high", "retrieval_class": float("nan"), "num_clips": 16.0,
    },
}  # fmt: skip


def sound(name: str, *labels: str) -> PageSound:
    return PageSound(Path(f"{name}.wav"), labels)


def page_with(**changed: object) -> str:
    values: dict[str, object] = {
        "name": "demo", "lead": "", "comparisons": [], "changes": [], "picture_note": "", "measures": measures_of(RESULT), "steps": [],
        "provenance": [], "recipe_json": None,
    }  # fmt: skip
    return render(ResultPage(**(values | changed)))  # type: ignore[arg-type]


def test_every_measure_of_the_table_is_said_in_words() -> None:
    assert set(IN_WORDS) == {name for _, name, _ in ROWS}


def test_a_row_has_value_interval_chance_and_real_frames() -> None:
    measures = measures_of(RESULT)
    rows = {row.name: row for row in measures.rows}
    assert list(rows) == ["right_minus_wrong", "class_accuracy"]
    lead, accuracy = rows.values()
    assert (lead.value, lead.low, lead.high, lead.chance, lead.real) == (0.5, 0.25, 0.75, 0.0, 0.8)
    assert (accuracy.chance, accuracy.real) == (0.125, None)
    assert "agreement, right sound" in measures.missing and "nearest sound of its class" in measures.missing
    assert "part of the losses" in measures.notes[0]
    page = page_with()
    assert "<b>+0.500</b>" in page and "+0.250 to +0.750" in page and "+0.800" in page
    assert "<b>75.0 %</b>" in page and "50.0 % to 100.0 %" in page and "12.5 %" in page
    assert "Not measured here: agreement, right sound, " in page


def test_a_result_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "sound-matters.json"
    contents = {
        None: "No such file",
        "{": "is damaged",
        "[]": "holds no measures",
        '{"measures": 3}': "holds no measures",
    }
    for content, words in contents.items():
        if content is not None:
            path.write_text(content)
        why = read_measures(path)
        assert isinstance(why, str) and words in why
        assert page_with(measures=why).count(words) == 2  # above, and in place of the table
    path.write_text(json.dumps({"measures": {}}))
    nothing = read_measures(path)
    assert not isinstance(nothing, str) and len(nothing.missing) == len(ROWS)
    assert "Not measured here" in page_with(measures=nothing)


def test_a_sound_is_compared_with_one_of_another_class() -> None:
    sounds = [sound("a", "rain"), sound("b", "ocean"), sound("c", "rain"), sound("d", "fire"), sound("e")]
    # half the list further is two places; that of a is of its own class, and e of none
    assert [partner_of(sounds, index) for index in range(5)] == [3, 3, 1, 0, None]
    assert partner_of([sound("a", "rain"), sound("b", "rain", "thunder")], 0) is None
    assert partner_of([sound("a", "rain")], 0) is None


def test_a_page_that_would_be_too_large_leaves_videos_out_and_says_so() -> None:
    clip = Clip(bytes(300_000), bytes(30))
    rain, fire = sound("a", "rain"), sound("b", "fire")
    comparisons = [
        Comparison(rain, fire, clip, clip, None),
        Comparison(fire, rain, Missing("it is damaged"), clip, None),
    ]
    changes = [Change(rain, fire, clip, 8.0, 4.0, None)]
    kept, changing = fitting(comparisons, changes, 500_000 + 3 * 400_040)
    assert (kept, changing) == (comparisons, changes) or isinstance(kept[1].wrong, Missing)
    kept, changing = fitting(comparisons, changes, 500_000 + 2 * 400_040)
    assert kept[0].right is clip and changing[0].clip is clip
    assert [type(each.wrong) for each in kept] == [Missing, Missing]
    assert kept[1].right == Missing("it is damaged")
    page = page_with(comparisons=kept, changes=changing)
    assert page.count("<video") == 2
    assert page.count("No video: the page would be larger than 1 MB") == 2
    assert "No video: it is damaged" in page


def test_without_sounds_each_part_says_so() -> None:
    page = page_with()
    assert "There is no sound to show." in page
    assert "no two sounds of different classes" in page
    assert "<video" not in page


def test_paths_in_commands_are_quoted() -> None:
    steps = next_steps(Path("runs/my run"), "manifests/a;b")
    commands = "\n".join(step.command for step in steps)
    assert "--checkpoint 'runs/my run' --sound" in commands
    assert "--shards 'manifests/a;b'" in commands
    project = Path(__file__).parents[3]
    assert [step.file for step in steps if not (project / step.file).is_file()] == []


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{style}}", "a & b"])
def test_texts_are_escaped(text: str) -> None:
    clip = Clip(b"video", b"poster")
    hostile = PageSound(Path(text.replace("/", "_")), (text,))
    result = {**RESULT, "verdict": text}
    page = page_with(
        name=text, lead=text, picture_note=text, provenance=[(text, text)], recipe_json=text, measures=measures_of(result),
        comparisons=[Comparison(hostile, hostile, clip, Missing(text), None)], changes=[Change(hostile, hostile, clip, 8.0, 4.0, None)],
        steps=next_steps(Path(text), text),
    )  # fmt: skip
    assert "<img src=x" not in page and "<script>alert" not in page
    assert page.count("<script>") == 1
    if text in ("{{style}}", "a & b"):
        assert page.count(text.replace("&", "&amp;")) >= 10, "a text was taken for a place of the template"
