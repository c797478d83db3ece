"""The page in a real browser: headless Chromium, as Debian packages it, driven by Playwright."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.tables import ClipRow
from pipeline.judge.rules import judge_clip
from pipeline.report.catalogue import ACROSS_DATASET
from pipeline.report.gallery import GallerySettings
from pipeline.report.make import ReportSettings, make_report
from pipeline.report.serve import open_report
from pipeline.runtime.folder import Folder
from pipeline.schema import State
from tests import browsing
from tests.browsing import CHROMIUM, NO_CHROMIUM, launched, until
from tests.reported import HOSTILE, JUDGE, KOREAN, make_rows, write_dataset, write_previews

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
NUM_CLIPS = 60
PAGE_OF_CLIPS = 48  # that the page shows at once
FEW = ReportSettings(gallery=GallerySettings(max_clips=4))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A report on NUM_CLIPS clips, compared with an earlier build that was more lenient; one rejected clip has previews."""
    root = tmp_path_factory.mktemp("reports")
    rows = rows_of_report()
    write_dataset(
        Folder(root / "before"), make_rows(NUM_CLIPS, JUDGE.model_copy(update={"max_speech_share": 0.9})), name="before"
    )
    write_dataset(Folder(root / "now"), rows, name="now " + HOSTILE)
    write_previews(Folder(root / "now"), rejected(rows))
    make_report(str(root / "now"), compare_with=str(root / "before"))
    return Folder(root / "now")


def rows_of_report() -> list[ClipRow]:
    return make_rows(NUM_CLIPS)


def rejected(rows: list[ClipRow]) -> ClipRow:
    return next(row for row in rows if row.state is State.REJECTED and row.start_ms > 0)


@contextmanager
def page_at(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """The page, drawn, down to its end."""
    with browsing.page_at(browser, url, "html[data-ready=yes][data-whatif=ready]", **context) as page:
        yield page
        for place in range(
            0, page.evaluate("document.documentElement.scrollHeight"), 700
        ):  # charts draw as they come into view
            page.evaluate("top => scrollTo({top, behavior: 'instant'})", place)
            page.wait_for_timeout(30)


def on_disk(folder: Folder) -> str:
    assert folder.local_path is not None
    return (folder.local_path / "report.html").as_uri()


@contextmanager
def served(folder: Folder) -> Iterator[str]:
    with open_report(folder.url) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def facts_of(folder: Folder) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(folder.read_bytes("report.json"))
    return facts


def test_the_page_opens_from_disk_without_errors_or_network(browser: Any, folder: Folder) -> None:
    with page_at(browser, on_disk(folder)) as page:
        assert page.title() == f"now {HOSTILE}: dataset report"
        assert page.inner_text("h1") == f"now {HOSTILE}"
        sections = page.eval_on_selector_all("nav a", "links => links.map(link => link.hash)")
        names = "summary compare funnel clips measures agreement balance sources failures timings recipe"
        assert sections == [f"#{name}" for name in names.split()]
        for section in sections:
            assert page.is_visible(section), section
        page.evaluate("document.querySelector('#measure-speech_share').scrollIntoView()")
        assert until(page, "document.querySelectorAll('#measure-speech_share svg path').length > 5")
        page.evaluate("document.querySelector('#agreement').scrollIntoView()")
        assert until(page, "document.querySelectorAll('#agreement .chart svg').length === 2")


def test_hostile_texts_run_nothing_and_korean_is_shown(browser: Any, folder: Folder) -> None:
    with page_at(browser, on_disk(folder)) as page:
        assert KOREAN in page.inner_text("#balance")
        assert HOSTILE in page.inner_text("#balance")
        key = rows_of_report()[0].key
        page.fill("input[name=text]", key)
        assert until(page, "document.querySelectorAll('.tilebtn').length === 1")
        page.click(".tilebtn")
        assert HOSTILE in page.inner_text("dialog")
        page.keyboard.press("Escape")
        assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        assert page.evaluate("document.querySelectorAll('a[href^=javascript]').length") == 0
        assert page.title() != "hacked"


def test_the_funnel_adds_up(browser: Any, folder: Folder) -> None:
    steps = "rows => rows.map(row => [row.className, Number(row.dataset.count)])"
    with page_at(browser, on_disk(folder)) as page:
        head = facts_of(folder)["headline"]
        wanted = {"clips": (NUM_CLIPS, head["num_kept"]), "sources": (NUM_CLIPS // 2 + 3, head["num_kept_sources"])}
        for what, (total, kept) in wanted.items():
            rows = page.eval_on_selector_all(f"#funnel-{what} tr", steps)
            assert rows[0] == ["step", total]
            assert rows[-1] == ["step", kept]
            assert total - sum(count for look, count in rows if look == "loss") == kept


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_slider_changes_the_numbers_to_what_the_judge_says(browser: Any, folder: Folder, with_keys: bool) -> None:
    rows = rows_of_report()

    def staying(**changes: float | None) -> list[ClipRow]:
        judge = JUDGE.model_copy(update=changes)
        return [
            row
            for row in rows
            if row.reason not in ACROSS_DATASET and row.state is not State.FAILED and row.picture is not None
            and judge_clip(row.picture, row.sound, row.agreement, (1280, 720), judge).kept
        ]  # fmt: skip

    def shown() -> tuple[int, float]:
        return int(page.get_attribute("#whatif-clips", "data-value")), float(
            page.get_attribute("#whatif-hours", "data-value")
        )

    def move(setting: str, step: int) -> None:
        if not with_keys:
            page.evaluate(
                "([id, step]) => { const s = document.getElementById(id); s.value = step; s.dispatchEvent(new Event('input')); }",
                [f"rule-{setting}", step],
            )
            return
        page.focus(f"#rule-{setting}")
        page.keyboard.press("Home")
        for _ in range(step):
            page.keyboard.press("ArrowRight")

    built = staying()
    with page_at(browser, on_disk(folder)) as page:
        data = json.loads(page.inner_text("#data") or page.evaluate("document.getElementById('data').textContent"))
        steps = {rule["setting"]: rule["steps"] for rule in data["what_if"]["rules"]}
        assert shown() == (len(built), pytest.approx(len(built) * 3 / 3600))
        seen = {len(built)}
        for step in (3, 12, 40):
            move("min_agreement", step)
            kept = staying(min_agreement=steps["min_agreement"][step])
            assert shown() == (len(kept), pytest.approx(len(kept) * 3 / 3600))
            seen.add(len(kept))
        move("max_silent_share", 2)
        kept = staying(min_agreement=steps["min_agreement"][40], max_silent_share=steps["max_silent_share"][2])
        assert shown()[0] == len(kept)
        page.uncheck("#rule-min_agreement-on")
        kept = staying(min_agreement=None, max_silent_share=steps["max_silent_share"][2])
        assert shown()[0] == len(kept)
        words = page.inner_text("#whatif-settings")
        assert words == f"--set judge.max_silent_share={steps['max_silent_share'][2]:g} --set judge.min_agreement=none"
        page.click("#whatif-reset")
        assert shown()[0] == len(built)
        assert len(seen) >= 3


def test_the_gallery_filters_sorts_and_opens(browser: Any, folder: Folder) -> None:
    rows = rows_of_report()
    keys = "document.querySelectorAll('.tilebtn').length"
    listed = "buttons => buttons.map(button => button.dataset.key)"
    with page_at(browser, on_disk(folder)) as page:
        page.select_option("select[name=state]", "rejected")
        num_rejected = sum(row.state is State.REJECTED for row in rows)
        assert until(page, f"{keys} === {num_rejected}")
        page.select_option("select[name=reason]", "duplicate")
        assert until(page, f"{keys} === {sum(row.reason == 'duplicate' for row in rows)}")
        page.select_option("select[name=reason]", "")
        page.select_option("select[name=sort]", "luma_mean")
        page.select_option("select[name=order]", "rising")
        wanted = sorted(
            (row for row in rows if row.state is State.REJECTED),
            key=lambda row: row.picture.luma_mean if row.picture else 0,
        )
        assert until(page, f"document.querySelector('.tilebtn').dataset.key === '{wanted[0].key}'")
        assert page.eval_on_selector_all(".tilebtn", listed) == [row.key for row in wanted]
        page.focus(".tilebtn")
        page.keyboard.press("Enter")
        assert wanted[0].key in page.inner_text("dialog")
        page.keyboard.press("ArrowRight")
        assert wanted[1].key in page.inner_text("dialog")
        link = page.get_attribute("dialog dd a", "href")
        assert link == f"{wanted[1].url}#t={wanted[1].start_ms // 1000},{wanted[1].end_ms // 1000}"
        page.keyboard.press("Escape")
        # a browser tells of the closing later
        assert until(page, f"document.activeElement.dataset.key === '{wanted[1].key}'")
        assert not page.is_visible("dialog")


def test_served_the_gallery_plays_kept_and_rejected_clips(browser: Any, folder: Folder) -> None:
    row = rejected(rows_of_report())
    with served(folder) as url, page_at(browser, url) as page:
        page.select_option("select[name=state]", "kept")
        num_kept = sum(one.state is State.KEPT for one in rows_of_report())
        assert until(
            page, f"document.querySelectorAll('.tilebtn .badge.kept').length === {min(num_kept, PAGE_OF_CLIPS)}"
        )
        assert until(page, "document.querySelectorAll('.tilebtn .badge:not(.kept)').length === 0")
        page.click(".tilebtn")
        assert until(page, "document.querySelector('video#player')?.currentTime > 0.3")
        assert page.evaluate("(p => [p.videoWidth, p.videoHeight, p.error])(document.querySelector('#player'))") == [
            256,
            144,
            None,
        ]
        assert page.evaluate("document.querySelector('#player').duration") == pytest.approx(3, abs=0.1)
        page.keyboard.press("Escape")
        page.select_option("select[name=state]", "")
        page.fill("input[name=text]", row.key)
        assert until(
            page,
            f"document.querySelectorAll('.tilebtn').length === 1 && document.querySelector('.tilebtn').dataset.key === '{row.key}'",
        )
        page.click(".tilebtn")
        assert until(page, "document.querySelector('audio#player')?.currentTime > 0.3")
        assert page.evaluate("document.querySelector('#player').duration") == pytest.approx(3, abs=0.1)
        page.keyboard.press("Escape")


def test_served_what_is_shown_opens_while_a_filter_waits_for_its_answer(browser: Any, folder: Folder) -> None:
    asked: list[Any] = []

    def held_back(route: Any) -> None:
        asked.append(route)

    with served(folder) as url, page_at(browser, url) as page:
        assert until(page, "document.querySelectorAll('.tilebtn').length > 1")
        page.route("**/api/clips?*", held_back)
        key = page.get_attribute(".tilebtn", "data-key")
        page.select_option("select[name=state]", "failed")
        page.click(".tilebtn")
        assert page.is_visible("dialog")
        assert key in page.inner_text("dialog")
        page.keyboard.press("ArrowRight")
        assert key not in page.inner_text("dialog")
        page.keyboard.press("Escape")
        for route in asked:
            route.continue_()
        num_failed = sum(row.state is State.FAILED for row in rows_of_report())
        assert until(page, f"document.querySelectorAll('.tilebtn .badge.failed').length === {num_failed}")
        assert until(page, f"document.querySelectorAll('.tilebtn').length === {num_failed}")
        assert len(asked) == 1


def test_flipped_verdicts_are_shown(browser: Any, folder: Folder) -> None:
    flips = facts_of(folder)["compare"]["flips"]
    assert ("kept", "speech") in {(flip["before"], flip["now"]) for flip in flips}
    with page_at(browser, on_disk(folder)) as page:
        text = page.inner_text("#compare")
        assert "judge.max_speech_share" not in text  # the recipes are alike here: only the verdicts were made otherwise
        for flip in flips:
            assert flip["examples"][0]["key"] in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, folder: Folder, scheme: str) -> None:
    with page_at(browser, on_disk(folder), viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[scheme]
        sizes = page.eval_on_selector_all(
            ".filters select, .filters input", "all => all.map(one => [one.offsetHeight, one.offsetWidth])"
        )
        assert len(sizes) == 10
        assert all(30 < height < 60 and 120 < width < 340 for height, width in sizes), sizes
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: light"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_every_section_is_named_at_the_top_of_a_desk_screen(browser: Any, folder: Folder) -> None:
    with page_at(browser, on_disk(folder), viewport={"width": 1280, "height": 900}) as page:
        ends = page.eval_on_selector_all("nav a", "links => links.map(link => link.getBoundingClientRect().right)")
        assert len(ends) == 11
        assert max(ends) <= page.evaluate("document.querySelector('nav').getBoundingClientRect().right")


def test_the_measure_that_rejected_a_clip_is_marked(browser: Any, folder: Folder) -> None:
    row = next(row for row in rows_of_report() if row.reason == "speech")
    with page_at(browser, on_disk(folder)) as page:
        page.fill("input[name=text]", row.key)
        assert until(page, "document.querySelectorAll('.tilebtn').length === 1")
        page.click(".tilebtn")
        marked = page.eval_on_selector_all("dialog td .bad", "all => all.map(one => one.closest('tr').innerText)")
        assert [text.split("\t")[0] for text in marked][:1] == ["Speech"]
        assert "≤ 30 %" in marked[0]
        page.keyboard.press("Escape")


def test_no_clip_at_all_and_one_clip(browser: Any, tmp_path: Path) -> None:
    only = [row for row in make_rows(40) if row.state is State.REJECTED]
    for name, rows in (("none", only), ("one", [next(row for row in make_rows(20) if row.state is State.KEPT)])):
        folder = Folder(tmp_path / name)
        write_dataset(folder, rows)
        make_report(folder.url, settings=FEW)
        with page_at(browser, on_disk(folder)) as page:
            assert page.get_attribute("#whatif-clips", "data-value") == ("0" if name == "none" else "1")
            assert until(page, f"document.querySelectorAll('.tilebtn').length === {min(len(rows), 4)}")
