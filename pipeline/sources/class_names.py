"""The form in which names of classes are compared."""

from __future__ import annotations

import re


def normalised_name(name: str) -> str:
    """The name in lower case, with spaces instead of underscores, and one space after a comma."""
    return re.sub(r"\s*,\s*", ", ", " ".join(name.replace("_", " ").casefold().split()))
