"""The report's page: one HTML file with its data, pictures and scripts. Its policy forbids other files and scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

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
    charts = _asset(CHART_LIBRARY)
    script = '(() => {\n"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"
    data = {"facts": facts, "gallery": gallery, "what_if": what_if, "measures": measures}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(charts)} {_hash(script)}",
            "style-src 'unsafe-inline'",
            _FROM_DISK,
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "policy": policy,
        "title": html.escape(f"{facts['name']}: dataset report"),
        "style": _asset("page.css"),
        "data": script_json(data),
        "charts": charts,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], _asset("page.html"))


def as_served(page: str) -> str:
    """The page for the report server: its policy lets it request clips from that server."""
    return page.replace(_FROM_DISK, _SERVED, 1).replace(_NOT_SERVED_MARK, _SERVED_MARK, 1)


def script_json(value: Any) -> str:
    """JSON for a script element, escaped so that no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace").decode()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (resources.files("pipeline.report") / "assets" / name).read_text(encoding="utf-8")
