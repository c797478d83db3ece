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


MAX_AGE_SECONDS = 90
"""Age from which a browser is closed and another opened before the next page.

Three minutes after its start Chromium 156 measures which language models the machine could run; no switch was found that stops it. A page
was seen to stand still for good at that moment.
"""


class Browser:
    """Headless Chromium; an old one is replaced."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._opened: Any = None
        self._since = 0.0

    def new_context(self, **context: Any) -> Any:
        """A context of Playwright, without cookies or files of others. The one before must be closed."""
        if self._opened is None or time.monotonic() - self._since > MAX_AGE_SECONDS:
            self.close()
            # a container's root has no sandbox of its own; only pages of these tests are opened
            self._opened = self._driver.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
            )
            self._since = time.monotonic()
        return self._opened.new_context(**context)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = Browser(driver)
        yield browser
        browser.close()


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
