"""The report's page: one HTML file with its data, pictures and scripts. Its policy forbids other files and scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from pipeline.runtime.html_page import asset, filled, policy, script_of

PACKAGE = "pipeline.report"
SCRIPTS = ("base.js", "charts.js", "whatif.js", "gallery.js", "sections.js", "main.js")
CHART_LIBRARY = "vendor/echarts.common.min.js"
"""Apache ECharts 6.1.0, ``dist/echarts.common.min.js`` of its npm package, unchanged. Its licence stands beside it."""

_FROM_DISK = "img-src data:; media-src 'none'; connect-src 'none'"
_SERVED = "img-src data: 'self'; media-src 'self'; connect-src 'self'"
_NOT_SERVED_MARK, _SERVED_MARK = '<html lang="en" data-served="no">', '<html lang="en" data-served="yes">'


def render_page(
    facts: Mapping[str, Any],
    gallery: Mapping[str, Any],
    what_if: Mapping[str, Any] | None,
    measures: list[dict[str, str]],
) -> str:
    """The page as HTML. ``measures``: name, label and unit of every measure that a clip may have."""
    charts = asset(PACKAGE, CHART_LIBRARY)
    script = script_of([asset(PACKAGE, name) for name in SCRIPTS])
    data = {"facts": facts, "gallery": gallery, "what_if": what_if, "measures": measures}
    parts = {
        "policy": policy([charts, script], _FROM_DISK),
        "title": html.escape(f"{facts['name']}: dataset report"),
        "style": asset(PACKAGE, "page.css"),
        "data": script_json(data),
        "charts": charts,
        "script": script,
    }
    return filled(asset(PACKAGE, "page.html"), parts)


def as_served(page: str) -> str:
    """The page for the report server: its policy lets it request clips from that server."""
    return page.replace(_FROM_DISK, _SERVED, 1).replace(_NOT_SERVED_MARK, _SERVED_MARK, 1)


def script_json(value: Any) -> str:
    """JSON for a script element, escaped so that no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace").decode()
