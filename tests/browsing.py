"""Headless Chromium, as Debian packages it, driven by Playwright."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
NO_CHROMIUM = "no Chromium on this machine: apt-get install chromium"


@contextmanager
def launched() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # A container's root has no sandbox of its own; only pages of these tests are opened. Without a GPU process Chromium 156 does not
        # measure, three minutes after its start, what the GPU can do for language models: a page stood still for good at that moment.
        opened = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        yield opened
        opened.close()


@contextmanager
def page_at(browser: Any, url: str, ready: str, **context: Any) -> Iterator[Any]:
    """The page, once the selector ``ready`` is there; fails where it logs an error, or asks for anything but itself and its server."""
    opened = browser.new_context(**context)
    page = opened.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    own = ("data:", url)
    page.on(
        "request", lambda request: None if request.url.startswith(own) else problems.append(f"asked for {request.url}")
    )
    page.goto(url)
    page.wait_for_selector(ready)
    yield page
    assert problems == []
    opened.close()


def until(page: Any, script: str, seconds: float = 60) -> Any:
    """What the script gives once it is true. (Playwright's own waiting needs eval, which the pages' policy forbids.)"""
    deadline = time.monotonic() + seconds
    while not (found := page.evaluate(script)) and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    return found
