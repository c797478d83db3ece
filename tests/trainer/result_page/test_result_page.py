"""The page of a run with a small model: made by the real commands from real videos, and opened in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests import paired
from tests.browsing import CHROMIUM, NO_CHROMIUM, launched, page_at, until
from tests.reported import HOSTILE
from tests.trainer.sounding import saved_run, tone
from trainer import evaluate, generate
from trainer.rendering.sound_to_video import GenerateSettings
from trainer.result_page.make import PAGE_NAME, PageSource, write_page
from trainer.result_page.videos import PageSound

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open

RATE_HZ = 44_100
SECONDS = 2.0
LABELS = {"a & b": "rain", "low <b>": "ocean", "high": HOSTILE, "no class": ""}
HERTZ = (300.0, 900.0, 2700.0, 5000.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PageSource:
    """A run, the videos of four sounds, and measures; one sound has no class, and one a hostile one."""
    folder = tmp_path_factory.mktemp("run")
    run = saved_run(folder / "runs" / "<i>run")
    (run / "recipe.json").write_text(json.dumps({"run": {"name": HOSTILE}}))
    ticks = [{"stage": "video", "kind": "tick", "samples_seen": seen, "samples_per_second": 0.5} for seen in (30, 90)]
    (run / "stats.jsonl").write_text("".join(json.dumps(tick) + "\n" for tick in ticks))
    paired.build_paired(folder / "shards", {"train": 1, "validation": 2})
    for name, hertz in zip(LABELS, HERTZ, strict=True):
        soundfile.write(folder / f"{name}.wav", tone(hertz, 3.0), RATE_HZ)
    sounds = [PageSound(folder / f"{name}.wav", (label,) if label else ()) for name, label in LABELS.items()]
    files = [str(sound.path) for sound in sounds]
    words = ["--checkpoint", str(run), "--sound", *files, "--out", str(run / "videos"), "--seconds", str(SECONDS)]
    assert generate.main([*words, "--resolution", "64", "--fps", "10"]) == 0
    measured = ["--set", "encoders.device=cpu", "--device", "cpu", "--json", str(run / "measures.json")]
    assert evaluate.main(["--checkpoint", str(run), "--shards", str(folder / "shards"), *measured]) == 0
    settings = GenerateSettings(seconds=SECONDS, resolution=64, fps=10)
    source = PageSource(
        run, str(folder / "shards"), sounds, run / "videos", settings, run / "measures.json", "fit-tiny"
    )
    assert write_page(source) == run / PAGE_NAME
    return source


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with launched() as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, source: PageSource) -> Iterator[Any]:
    """The page; fails where it logs anything wrong or asks for anything but itself."""
    url = (source.run / PAGE_NAME).resolve().as_uri()
    with page_at(browser, url, "html[data-ready=yes]", viewport={"width": 400, "height": 800}) as page:
        yield page


def text_of(source: PageSource) -> str:
    return (source.run / PAGE_NAME).read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(source: PageSource) -> None:
    page = text_of(source)
    sources = re.findall(r'\b(?:src|poster|href|srcset|data|action)="([^"]*)"', page)
    assert len(sources) > 20
    assert [each[:60] for each in sources if not each.startswith(("data:", "#"))] == []
    assert "@import" not in page and "url(" not in page
    assert "default-src 'none'" in page and "connect-src 'none'" in page


def test_it_says_what_the_run_was(source: PageSource) -> None:
    page = text_of(source)
    for words in (
        "fit-tiny",
        "3 minutes",
        "paired: 12 clips (train 4, validation 8)",
        "8 clips of 8 sources",
        "hearscape ",
    ):
        assert words in page, words
    assert "You hear <b>rain</b>" in page and "another sound: <b>&lt;/script&gt;" in page
    assert "From <b>rain</b> to <b>&lt;/script&gt;" in page
    assert (
        page.count("No video: none of the other sounds is known to be of another class") == 1
    )  # for that without a class
    assert page.count("<video") == 4 + 3 + 1


def test_every_video_plays_with_its_sound(opened: Any) -> None:
    assert until(opened, "[...document.querySelectorAll('video')].every(video => video.readyState === 4)")
    durations = opened.evaluate("[...document.querySelectorAll('video')].map(video => video.duration)")
    assert durations == pytest.approx([SECONDS] * 8, abs=0.11)
    for index in range(8):
        video = f"document.querySelectorAll('video')[{index}]"
        opened.evaluate(f"{video}.play()")
        assert until(opened, f"{video}.currentTime > 0.2")
        playing = opened.evaluate("[...document.querySelectorAll('video')].map(video => !video.paused)")
        assert playing == [number == index for number in range(8)], "others play too"
        assert opened.evaluate(f"{video}.webkitAudioDecodedByteCount") > 0, "it has no sound"
    assert opened.evaluate("document.documentElement.scrollWidth") == 400, "wider than a phone"


def test_a_pair_plays_together_and_is_heard_once(opened: Any) -> None:
    pair = "[...document.querySelectorAll('#sounds .show video')].slice(0, 2)"
    opened.click("#sounds .show .play")
    assert until(opened, f"{pair}.every(video => video.currentTime > 0.3)")
    assert opened.evaluate(f"{pair}.map(video => video.muted)") == [False, True]
    assert opened.inner_text("#sounds .show .play").endswith("Pause")
    assert until(opened, "document.querySelector('#sounds .show .play').textContent.endsWith('Play both')")


def test_the_class_that_is_heard_changes_at_the_mark(opened: Any) -> None:
    mark = opened.evaluate("document.querySelector('#change .turn').style.left")
    assert float(mark.rstrip("%")) == pytest.approx(50, abs=0.1)
    for seconds, heard in ((0.5, "rain"), (1.5, HOSTILE)):
        opened.evaluate(f"document.querySelector('#change video').currentTime = {seconds}")
        assert until(opened, f"document.querySelector('#change .heard b').textContent === {json.dumps(heard)}")
    assert opened.title() == "Video from sound: <i>run"


def test_what_is_missing_costs_its_own_part(source: PageSource, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(source.run, run)
    (run / "videos" / "high.mp4").unlink()
    (run / "videos" / "low <b>.mp4").write_text("no video")
    (run / "stats.jsonl").unlink()
    (run / "recipe.json").write_text("{")
    gone = PageSource(run, str(tmp_path / "nowhere"), source.sounds, run / "videos", source.settings, run / "none.json")
    write_page(gone)
    page = text_of(gone)
    assert "none.json: No such file" in page
    assert (
        page.count("high.mp4: it is no video that can be read") == 2
    )  # its own, and with the sound that it is compared with
    assert "low &lt;b&gt;.mp4: it is no video that can be read" in page
    assert "cannot be read: " in page and "not known" in page
    assert "All settings" not in page
    assert page.count("<video") == 2 + 2 + 1
