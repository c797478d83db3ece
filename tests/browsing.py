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
        # a container's root has no sandbox of its own; only pages of these tests are opened
        opened = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield opened
        opened.close()


def until(page: Any, script: str, seconds: float = 60) -> Any:
    """What the script gives once it is true. (Playwright's own waiting needs eval, which the pages' policy forbids.)"""
    deadline = time.monotonic() + seconds
    while not (found := page.evaluate(script)) and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    return found
