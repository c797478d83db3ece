"""Classes chosen by name: in any case, with ``*`` and ``?``, several between commas, and names that hold commas."""

from __future__ import annotations

import re


def normalised_name(name: str) -> str:
    """A name as it is compared: lower case, spaces for underscores, one space after a comma."""
    return re.sub(r"\s*,\s*", ", ", " ".join(name.replace("_", " ").casefold().split()))
