"""Masks secrets in texts that are shown or stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/\s?#]*@")
_PARAMETER = re.compile(
    r"""([?&;](?:[^=&\s?]*(?:sig|token|key|auth|pass|secret|session|credential|policy|hmac|jwt|cookie|expire)[^=&\s?]*
    |st|code|hash|pot)=)[^&\s\#"'<>)]+""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADER = re.compile(r"\b((?:set-)?cookie|(?:proxy-)?authorization)(['\"]?\s*:\s*)[^\n]+", re.IGNORECASE)


def mask_secrets(text: str) -> str:
    """The text with ``***`` in place of passwords in URLs, signature-like query parameters, cookies and authorization headers."""
    text = _USERINFO.sub("***@", text)
    text = _PARAMETER.sub(r"\1***", text)
    return _HEADER.sub(r"\1\2***", text)


def masked_values(values: Any) -> Any:
    """Nested mappings, lists and texts with the secrets of every text masked."""
    if isinstance(values, str):
        return mask_secrets(values)
    if isinstance(values, Mapping):
        return {name: masked_values(value) for name, value in values.items()}
    return [masked_values(value) for value in values] if isinstance(values, list | tuple) else values
