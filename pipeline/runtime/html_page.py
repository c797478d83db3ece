"""What the pages of this project share: their look, the theme button, and a policy that forbids other files and scripts.

A page is one HTML file. Its template has a place ``{{NAME}}`` for each part. :func:`filled` also gives ``{{head}}``, the element of that
name, which has places for the parts ``policy``, ``title`` and ``style``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 8h2l2-5 3 10 3-8 1 3h3' fill='none' stroke='%230072b2' stroke-width='2'/%3E%3C/svg%3E"
)


def asset(package: str, name: str) -> str:
    """The text of a file in the folder ``assets`` of a package."""
    return (resources.files(package) / "assets" / name).read_text(encoding="utf-8")


def script_of(sources: Sequence[str]) -> str:
    """One script in strict mode from several, whose names are not visible outside. The theme's button is part of it."""
    return '(() => {\n"use strict";\n' + "\n".join([asset("pipeline.runtime", "theme.js"), *sources]) + "})();\n"


def policy(scripts: Sequence[str], media: str) -> str:
    """A content security policy: only these inline scripts run. ``media``: the directives of pictures, videos and requests."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            "style-src 'unsafe-inline'",
            media,
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with its parts, which are inserted as they are: text in them must be escaped already."""
    of_head = {"look": asset("pipeline.runtime", "look.css"), "icon": html.escape(ICON), **parts}
    return _filled(template, {"head": _filled(asset("pipeline.runtime", "head.html"), of_head), **parts})


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
